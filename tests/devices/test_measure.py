import numpy as np
import pytest

from fedbonsai.arch import Arch
from fedbonsai.devices.clock import kept, macs
from fedbonsai.devices.curves import affine, curve, masked, narrowed, rising, sparse_curve
from fedbonsai.devices.measure import Step, beside, fitted, least, timed
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model


def test_the_fit_finds_speeds_and_overhead():
    random = np.random.default_rng(0)
    table = random.uniform(0, [1e9, 1e8, 1e6, 40], (12, 4))
    steps = [(*map(float, row), float(row @ [1 / 3e9, 1 / 1e9, 1 / 2e8, 4e-5])) for row in table]
    found = fitted(steps)
    assert (found.conv, found.linear, found.values, found.overhead) == pytest.approx((3e9, 1e9, 2e8, 4e-5), rel=1e-6)
    assert found.error <= found.worst < 1e-9


def test_a_speed_that_would_be_negative_is_left_out():
    rows = [(1e9, 1e6, 1.0), (2e9, 1e6, 2.0), (3e9, 1e6, 3.0), (3e9, 9e8, 2.9)]
    found = fitted([(conv, linear, 0.0, 0.0, took) for conv, linear, took in rows])
    assert found.linear >= 1e14  # it took no time
    assert found.conv == pytest.approx(1e9, rel=0.05)
    assert found.overhead == 0.0


def test_affine_where_it_is_and_piecewise_where_it_is_not():
    kept_ = [1.0, 0.75, 0.5, 0.25, 0.1]
    straight = curve(kept_, [0.5 + 2 * x for x in kept_], 0.0, "test")
    assert (straight.intercept, straight.slope, straight.r2) == pytest.approx((0.2, 0.8, 1.0))
    assert straight.mark == "measured"
    bent = curve(kept_, [1.0, 0.9, 0.3, 0.3, 0.29], 0.0, "test")
    assert bent.kept == (0.1, 0.25, 0.5, 0.75, 1.0)
    assert bent.relative == pytest.approx((0.29, 0.3, 0.3, 0.9, 1.0))
    assert "not affine" in bent.source
    falling = curve(kept_, [1.0, 1.1, 1.2, 1.3, 1.4], 0.0, "test")  # slower with less: the fit's slope is negative
    assert falling.relative == pytest.approx((1.0,) * 5)
    level = curve(kept_, [1.0, 1.01, 0.99, 1.0, 1.02], 0.05, "test")
    assert (level.intercept, level.slope) == (1.0, 0.0)
    assert "level" in level.source


def test_the_sparse_curve_is_relative_to_the_dense_step():
    densities = [1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01]
    straight = sparse_curve(densities, [0.5 + 4 * x for x in densities], 2.0, "test")
    assert (straight.intercept, straight.slope, straight.r2) == pytest.approx((0.25, 2.0, 1.0))
    assert "2.25 of it with all weights" in straight.source
    bent = sparse_curve(densities, [1.0, 1.0, 1.0, 0.2, 0.2, 0.1, 0.1], 1.0, "test")
    assert bent.kept == tuple(sorted(densities))
    assert bent.relative == pytest.approx((0.1, 0.1, 0.2, 0.2, 1.0, 1.0, 1.0))
    assert "not affine" in bent.source


def test_least_squares_by_hand():
    assert affine([0, 1, 2], [0, 1, 5]) == pytest.approx((-0.5, 2.5, 1 - 1.5 / 14))


def test_the_nearest_rising_sequence():
    assert rising([1.0, 3.0, 2.0, 2.0, 5.0]).tolist() == pytest.approx([1.0, 7 / 3, 7 / 3, 7 / 3, 5.0])
    assert rising([3.0, 2.0, 1.0]).tolist() == [2.0, 2.0, 2.0]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet-tiny", "cnn-mnist")]


@pytest.mark.parametrize("name", [*SLOW, "lenet5"])
def test_narrowed_networks_run_and_have_their_share_of_operations(name):
    sample = (3, 32, 32) if name == "resnet-tiny" else (1, 28, 28)
    model = Model.init(Arch(name), 0)
    point = timed([Step(narrowed(model, 0.5))], sample, 4, 0.01)[0]
    assert point.seconds > 0
    assert point.episode.batch == 4
    structure, mask = kept(point.episode)
    assert 0.2 < structure < 0.35  # inner layers a quarter, first and last a half
    assert mask == 1.0
    assert macs([point.episode]).done > 0


def test_masks_keep_their_share():
    model = Model.init(Arch("lenet5"), 0)
    masks = masked(model, 0.25)
    share = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    assert share == pytest.approx(0.25, abs=0.01)
    assert all(mask.shape == model.weights[name].shape for name, mask in masks.items())


def test_steps_that_take_turns_keep_their_ratios_whatever_disturbs_a_turn():
    true, speed = np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.7, 1.2, 1.6, 1.1])
    found = beside(true * speed[:, None])
    assert [seconds for seconds, _ in found] == pytest.approx(true)
    assert [spread for _, spread in found] == pytest.approx([0.0] * 3)
    struck = true * speed[:, None]
    struck[1, 0] *= 3.0  # one step of one turn
    assert [seconds for seconds, _ in beside(struck)] == pytest.approx(true)
    struck[2, 1] = -0.1  # a turn that cannot be: the others count
    assert [seconds for seconds, _ in beside(struck)] == pytest.approx(true)
    with pytest.raises(ConfigError, match="too busy to be measured"):
        beside(np.array([[1.0, 0.0], [1.0, 2.0]]))


def test_a_disturbed_repeat_does_not_make_a_step_shorter():
    # ten steps of 2 s and a call of 1 s; the second short call was disturbed, which its own difference would hide
    assert least([23.0, 23.0, 25.0], [3.0, 11.0, 3.0], 10) == pytest.approx((2.0, 0.0))
    assert least([23.0, 25.0, 27.0], [3.0, 3.0, 3.0], 10) == pytest.approx((2.0, 0.1))
    with pytest.raises(ConfigError, match="too busy to be measured"):
        least([3.0, 3.0], [3.0, 3.1], 10)
