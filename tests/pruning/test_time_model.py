"""A time model from a device's profile says what the virtual clock says."""

import tomllib
from dataclasses import replace
from importlib.resources import files

import pytest
import tomli_w
import torch

from fedbonsai.arch import Arch
from fedbonsai.devices.clock import compute_seconds
from fedbonsai.devices.link import Ask, link
from fedbonsai.devices.profile import profile
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.stages.pruning.masks import prunable
from fedbonsai.stages.pruning.time_model import Measured, Profiled, Seconds
from fedbonsai.training.optimizers import SGD
from fedbonsai.work import Episode

NET = Model.init(Arch("cnn-bn", {"size": 8}), 0)
NAMES = prunable(NET)
LOCAL = SGD(lr=0.1, batch=20, steps=5)


@pytest.fixture
def sparse(tmp_path):
    """A device whose kernels gain from a mask, and a link of known rates."""
    table = tomllib.loads((files("fedbonsai.devices") / "profiles" / "raspberry-pi-4.toml").read_text())
    table["masked"]["affine"] = [0.4, 0.6, 1.0]
    (tmp_path / "device.toml").write_text(tomli_w.dumps(table))
    wires = tomllib.loads((files("fedbonsai.devices") / "links" / "wifi.toml").read_text())
    (tmp_path / "link.toml").write_text(tomli_w.dumps(wires))
    return Profiled(str(tmp_path / "device.toml"), str(tmp_path / "link.toml"))


@pytest.mark.parametrize("kept", [1.0, 0.3, 0.0])
def test_steps_under_a_mask_take_what_the_clock_says(sparse, kept):
    times = sparse.seconds(NET, NAMES, (1, 8, 8), LOCAL)
    random = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(NET.weights[name].shape, generator=random) < kept for name in NAMES}
    shapes = {name: tuple(value.shape) for name, value in NET.weights.items()}
    shares = {name: float(mask.double().mean()) for name, mask in masks.items()}
    step = Episode(NET.arch, shapes, (1, 8, 8), shares, backward=20, passes=1, steps=1, batch=20)
    assert times.step(masks) == pytest.approx(compute_seconds(profile(sparse.device), (step,)))
    assert times.dense == pytest.approx(times.step({n: torch.ones_like(m) for n, m in masks.items()}))
    assert times.steps == 5


def test_bytes_take_what_the_link_says(sparse):
    times, carrier = sparse.seconds(NET, NAMES, (1, 8, 8), LOCAL), link(sparse.link)
    size = 4 * sum(NET.weights[name].numel() for name in NAMES)
    both = sum(carrier.seconds(way, size, 0.0, "a", Ask(("a",))) for way in ("down", "up"))
    assert times.latency + times.communication * size / 4 == pytest.approx(both)


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_sparse_training_takes_the_sparse_curve_by_hand(tmp_path, mode):
    table = tomllib.loads((files("fedbonsai.devices") / "profiles" / "raspberry-pi-4.toml").read_text())
    table["sparse"] = {"mark": "assumed", "source": "test", "affine": [0.25, 2.0, 1.0]}
    table["compute"]["values"]["value"], table["compute"]["overhead"]["value"] = 1e18, 0.0
    (tmp_path / "device.toml").write_text(tomli_w.dumps(table))
    setting = Profiled(str(tmp_path / "device.toml"))
    net = Model.init(Arch("mlp", {"channels": 1, "size": 8, "widths": [16], "classes": 10}), 0)
    first, last = prunable(net)
    times = setting.seconds(net, [first, last], (1, 8, 8), replace(LOCAL, sparse=mode))
    dense = 20 * (2 * 1024 + 3 * 160) / table["compute"]["linear"]["value"]  # batch 20; no input gradient in the first
    assert times.dense == pytest.approx(dense)
    assert times.base == pytest.approx(0.25 * dense)
    assert times.slopes == pytest.approx(dict.fromkeys([first, last], 2 * dense / 1184))  # each weight is used once
    assert times.step({first: torch.ones(16, 64), last: torch.zeros(10, 16)}) == pytest.approx(
        dense * (0.25 + 2 * 1024 / 1184)
    )
    alone = setting.seconds(net, [first], (1, 8, 8), replace(LOCAL, sparse=mode))  # the other layer stays dense
    assert alone.base == pytest.approx(dense * (160 + 0.25 * 1024) / 1184)
    off = setting.seconds(net, [first, last], (1, 8, 8), LOCAL)
    assert (off.base, set(off.slopes.values())) == (off.dense, {0.0})


@pytest.mark.parametrize("kept", [1.0, 0.3, 0.0])
def test_sparse_steps_take_what_the_clock_says(tmp_path, kept):
    table = tomllib.loads((files("fedbonsai.devices") / "profiles" / "raspberry-pi-4.toml").read_text())
    table["sparse"] = {"mark": "assumed", "source": "test", "affine": [0.25, 2.0, 1.0]}
    (tmp_path / "device.toml").write_text(tomli_w.dumps(table))
    times = Profiled(str(tmp_path / "device.toml")).seconds(NET, NAMES, (1, 8, 8), replace(LOCAL, sparse="on"))
    shapes = {name: tuple(value.shape) for name, value in NET.weights.items()}
    shares = dict.fromkeys(NAMES, kept)
    step = Episode(NET.arch, shapes, (1, 8, 8), shares, backward=20, passes=1, steps=1, batch=20, sparse=tuple(NAMES))
    held = profile(str(tmp_path / "device.toml"))
    masks = {name: torch.arange(NET.weights[name].numel()) < round(kept * NET.weights[name].numel()) for name in NAMES}
    assert times.step(masks) == pytest.approx(compute_seconds(held, (step,)), rel=1e-2)  # whole numbers of weights


def test_a_device_with_dense_kernels_has_no_slopes():
    times = Profiled().seconds(NET, NAMES, (1, 8, 8), LOCAL)
    assert set(times.slopes.values()) == {0.0}
    assert times.base == times.dense > 0
    assert Measured(base=2.0).seconds(NET, NAMES, (1, 8, 8), LOCAL) == Seconds(
        Measured().communication, 2.0, 0.0, dict.fromkeys(NAMES, 0.0), 5, 2.0
    )


def test_a_profile_that_is_not_there_is_refused():
    with pytest.raises(ConfigError):
        Profiled("no-such-device").seconds(NET, NAMES, (1, 8, 8), LOCAL)
