from dataclasses import replace

import pytest
import torch

from fedbonsai.devices.clock import compute_seconds
from fedbonsai.devices.coefficients import mask_times
from fedbonsai.devices.link import link
from fedbonsai.devices.profile import Curve, profile
from fedbonsai.errors import ConfigError
from fedbonsai.model import Arch, Model
from fedbonsai.stages.pruning.time_model import Measured, seconds
from fedbonsai.work import Episode

MODEL = Model.init(Arch("cnn-bn"), 0)
SAMPLE, BATCH = (1, 8, 8), 20
NAMES = [name for name, value in MODEL.weights.items() if value.ndim > 1][1:]


def found(device="raspberry-pi-4", **more):
    return mask_times(replace(profile(device), **more), link("lte"), MODEL, SAMPLE, BATCH, NAMES)


def clocked(device, masks):
    kept = {name: float(mask.float().mean()) for name, mask in masks.items()}
    shapes = {name: tuple(value.shape) for name, value in MODEL.weights.items()}
    step = Episode(MODEL.arch, shapes, SAMPLE, kept, backward=BATCH, passes=1, steps=1, batch=BATCH)
    return compute_seconds(device, [step])


def test_dense_kernels_give_no_slope_and_the_links_rates_give_tau():
    times = found()
    assert set(times.slopes.values()) == {0.0}
    assert times.base == pytest.approx(times.dense)
    assert times.communication == pytest.approx(32 / 13e6 + 32 / 6e6)
    assert times.latency == pytest.approx(0.07)


def test_base_and_slopes_add_up_to_the_clocks_time_where_the_curve_is_affine():
    sparse = replace(profile("raspberry-pi-4"), masked=Curve("assumed", "test", 0.3, 0.7))
    times = found(masked=sparse.masked)
    # forward and backward passes of a layer are not all masked alike: the curve counts the share of one forward pass
    whole = {name: torch.ones_like(MODEL.weights[name], dtype=torch.bool) for name in NAMES}
    total = times.base + sum(k * MODEL.weights[name].numel() for name, k in times.slopes.items())
    assert total == pytest.approx(times.dense) == pytest.approx(clocked(sparse, whole))
    half = {
        name: mask.clone().flatten().index_fill_(0, torch.arange(0, mask.numel(), 2), False).reshape(mask.shape)
        for name, mask in whole.items()
    }
    step = times.base + sum(k * int(half[name].sum()) for name, k in times.slopes.items())
    assert step == pytest.approx(clocked(sparse, half), rel=0.03)


def test_they_are_prunefls_coefficients():
    times = found(masked=Curve("assumed", "test", 0.3, 0.7))
    own = Measured(times.communication, times.base, times.latency, times.slopes, times.dense)
    model = seconds(own, {name: MODEL.weights[name].numel() for name in NAMES}, 5)
    masks = {name: torch.ones_like(MODEL.weights[name], dtype=torch.bool) for name in NAMES}
    weights = sum(MODEL.weights[name].numel() for name in NAMES)
    assert model.step(masks) == pytest.approx(times.dense)
    assert model.round(masks) == pytest.approx(0.07 + 5 * times.dense + times.communication * weights)


def test_a_link_that_changes_and_a_weight_that_is_none_are_refused():
    with pytest.raises(ConfigError, match="fixed rates"):
        mask_times(profile("raspberry-pi-4"), link("cell"), MODEL, SAMPLE, BATCH, NAMES)
    with pytest.raises(ConfigError, match="nothing"):
        mask_times(profile("raspberry-pi-4"), link("lte"), MODEL, SAMPLE, BATCH, ["nothing"])
