"""Every network on real tensors and against the counts of specs/fl-pqsu §1.1, specs/prunefl §4 and specs/fedtiny §3."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedbonsai.arch import Arch, networks, state
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from tests.zoo.kinds import KINDS

torch.set_num_threads(1)

COUNTS: list[tuple[str, dict[str, Any], int]] = [
    ("conv2", {}, 6_603_710),
    ("conv2", {"channels": 1, "size": 28, "classes": 62}, 6_603_710),
    ("cnn-mnist", {}, 1_663_370),
    ("cnn-bn", {}, 24_058),
    ("cnn-bn", {"size": 8}, 24_058),
    ("vgg11", {}, 9_750_922),
    ("vgg11-bn", {}, 9_228_362),
    ("vgg16", {}, 33_642_442),
    ("alexnet", {}, 29_583_562),
    ("alexnet", {"as_coded": True}, 29_583_562),
    ("resnet18", {}, 11_173_962),
    ("resnet18", {"norm": "group"}, 11_173_962),
    ("resnet18-7x7", {}, 11_227_812),
    ("resnet-tiny", {}, 175_258),
    ("wrn-16", {"widen": 8}, 10_961_370),
    ("wrn-16", {"widen": 4}, 2_748_890),
    ("lenet5", {}, 61_706),
    ("lenet5", {"channels": 3, "size": 32}, 62_006),
    ("mlp", {}, 64 * 64 + 64 + 64 * 32 + 32 + 32 * 10 + 10),
    ("mlp", {"widths": ()}, 650),
    ("mobilenet-v2-small", {}, 86_922),
    ("cnn1d", {}, 24_613),
    ("cnn1d", {"length": 256, "norm": "group"}, 24_613),
    ("ds-cnn", {}, 12_760),
    ("ds-cnn", {"widths": (80, 80), "kernel": (3, 8)}, 12_760),
    ("gru", {}, 14_149),
    ("tabular-mlp", {}, 3_841),
    ("char-gru", {}, 66_504),
    ("tiny-transformer", {"vocabulary": 72}, 81_480),
    ("tiny-transformer", {"features": 6, "length": 100, "classes": 5}, 74_245),
]

SMALL: dict[str, tuple[dict[str, Any], int]] = {  # a data set on which each network is cheap, and a size too small
    "conv2": ({"channels": 1, "size": 8, "classes": 10}, 3),
    "cnn-mnist": ({"channels": 1, "size": 8, "classes": 10}, 3),
    "cnn-bn": ({"channels": 1, "size": 8, "classes": 10}, 3),
    "vgg11": ({"channels": 3, "size": 32, "classes": 10}, 28),
    "vgg11-bn": ({"channels": 3, "size": 32, "classes": 10}, 28),
    "vgg16": ({"channels": 3, "size": 32, "classes": 10}, 28),
    "alexnet": ({"channels": 1, "size": 12, "classes": 10}, 8),
    "resnet18": ({"channels": 1, "size": 8, "classes": 10}, 7),
    "resnet18-7x7": ({"channels": 3, "size": 32, "classes": 10}, 28),
    "resnet-tiny": ({"channels": 1, "size": 8, "classes": 10}, 3),
    "wrn-16": ({"channels": 1, "size": 8, "classes": 10, "widen": 1}, 3),
    "lenet5": ({"channels": 1, "size": 12, "classes": 10}, 8),
    "mobilenet-v2-small": ({"channels": 1, "size": 8, "classes": 10}, 7),
    "mlp": ({"channels": 3, "size": 5, "classes": 7}, 0),
}


def shapes(name: str, **options: Any) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return Arch(name, options).build()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "count"), COUNTS)
def test_parameters_as_specified(name: str, options: dict[str, Any], count: int) -> None:
    assert sum(p.numel() for p in shapes(name, **options).parameters()) == count


def test_every_network_is_listed_here() -> None:
    others = {name for name, _, shape in KINDS.values() if len(shape) < 3}
    assert networks().keys() >= SMALL.keys() | others == {name for name, _, _ in COUNTS}


def test_state_elements_of_vgg16() -> None:
    net = shapes("vgg16")
    assert sum(v.numel() for v in net.state_dict().values()) == 33_650_903
    assert len(net.state_dict()) == 84
    assert sum(v.numel() for v in state(net).values()) == 33_650_903 - 13


def test_batch_statistics_of_resnet18_and_tiny() -> None:
    assert sum(b.numel() for n, b in state(shapes("resnet18")).items() if "running" in n) == 9_600
    assert round(4 * sum(v.numel() for v in state(shapes("resnet-tiny")).values()) / 1000) == 706  # kB, dense message


def test_layers_of_alexnet() -> None:
    layers = [m for m in shapes("alexnet").modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    counts = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    assert counts == [960, 221_440, 885_120, 1_327_488, 884_992, 9_441_280, 16_781_312, 40_970]


def test_alexnet_as_coded_is_linear_in_its_linear_layers() -> None:
    def relus(net: nn.Module) -> int:
        return sum(isinstance(m, nn.ReLU) for m in net.modules())

    assert (relus(shapes("alexnet")), relus(shapes("alexnet", as_coded=True))) == (7, 3)


def test_prunable_weights_of_prunefl() -> None:
    def weights(name: str) -> list[int]:
        return [p.numel() for n, p in shapes(name).named_parameters() if p.ndim > 1]

    assert weights("conv2") == [800, 51_200, 6_422_528, 126_976]
    assert sum(weights("vgg11")) == 9_747_136


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_runs_on_a_batch_of_two(name: str) -> None:
    options, _ = SMALL[name]
    torch.manual_seed(0)
    net = Model.init(Arch(name, options), seed=1).build()
    x = torch.randn(2, options["channels"], options["size"], options["size"])
    assert [part for part, _ in net.named_children()] == ["stem", "features", "classifier"]
    for training in (False, True):
        scores = net.train(training)(x)
        assert scores.shape == (2, options["classes"])
        assert torch.isfinite(scores).all()


@pytest.mark.parametrize("name", [name for name in SMALL if name != "mlp"])
def test_too_small_images_are_refused(name: str) -> None:
    options, size = SMALL[name]
    with pytest.raises(ConfigError, match=f"'{name}' needs images of at least .* got {size}x{size}"):
        shapes(name, **options | {"size": size})


def test_smallest_size_is_named() -> None:
    with pytest.raises(ConfigError, match="at least 12x12 pixels, got 8x8"):
        Arch("lenet5", {"size": 8}).build()


@pytest.mark.parametrize("name", ["cnn-bn", "vgg11-bn", "vgg16", "resnet18", "resnet18-7x7", "resnet-tiny", "wrn-16"])
def test_group_norm_keeps_no_statistics(name: str) -> None:
    net = shapes(name, norm="group")
    assert not any("running" in key for key in net.state_dict())
    assert any(isinstance(m, nn.GroupNorm) for m in net.modules())
    with pytest.raises(ConfigError, match="'batch' or 'group'"):
        shapes(name, norm="layer")


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        Arch("resnet_18").build()
    with pytest.raises(ConfigError, match="does not take"):
        Arch("conv2", {"clases": 10}).build()
    with pytest.raises(ConfigError, match="widths"):
        Arch("mlp", {"widths": (0,)}).build()
    with pytest.raises(ConfigError, match="widen = 0"):
        Arch("wrn-16", {"widen": 0}).build()


@pytest.mark.parametrize("name", ["conv2", "resnet-tiny", "vgg11"])
def test_seed_alone_decides_the_weights(name: str) -> None:
    before = torch.get_rng_state()
    a, b, c = (Model.init(Arch(name, SMALL[name][0]), seed).weights for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert any(not torch.equal(a[n], c[n]) for n in a)


def test_initial_values_follow_the_specification() -> None:
    conv2 = Model.init(Arch("conv2"), 0).weights
    assert conv2["features.fc.weight"].abs().max() == pytest.approx((6 / 2048) ** 0.5, rel=1e-3)
    assert conv2["classifier.weight"].abs().max() == pytest.approx((6 / 62) ** 0.5, rel=1e-3)
    vgg11 = Model.init(Arch("vgg11"), 0).weights
    assert vgg11["features.fc1.weight"].abs().max() == pytest.approx((6 / 512) ** 0.5, rel=1e-3)
    assert vgg11["classifier.weight"].abs().max() == pytest.approx((2 / (1 + 1.5**2) * 3 / 10) ** 0.5, rel=1e-2)
    resnet = Model.init(Arch("resnet-tiny"), 0).weights
    block = "features.stage3.block2.conv2.weight"
    assert resnet[block].std() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
