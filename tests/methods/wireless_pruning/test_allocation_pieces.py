"""Compute by measured points: specs/wireless §7.2."""

import numpy as np
import pytest
from scipy.optimize import minimize

from fedbonsai.errors import ConfigError
from fedbonsai.methods.wireless_pruning.allocation import (
    Load,
    allocate,
    common_ratio,
    min_latency,
    pieces,
)
from tests.methods.wireless_pruning.cells import case

DEVICES = 4
KEPT = np.array([0.1, 0.25, 0.5, 0.75, 1.0])


def bent(seed):
    """A case whose compute is x^2 beside x, measured at five points."""
    each = case(seed, DEVICES)
    load = each.load
    took = load.b * (0.5 + 0.3 * KEPT[:, None] + 0.7 * KEPT[:, None] ** 2)
    constants, slopes = pieces(KEPT, took)
    return each.but(load=Load(load.a + constants, slopes, load.s0, load.s1)), took


def test_chords_go_through_the_points():
    each, took = bent(0)
    fixed = case(0, DEVICES).load.a
    for x, seconds in zip(KEPT, took, strict=True):
        assert each.load.before_upload(x) == pytest.approx(fixed + seconds)
    middle = each.load.before_upload(0.6) - fixed
    assert middle == pytest.approx(0.6 * took[2] + 0.4 * took[3])


@pytest.mark.slow
def test_points_on_a_line_are_the_affine_load():
    for seed in range(30):
        each = case(seed)
        load = each.load
        constants, slopes = pieces([0.2, 0.6, 1.0], load.a + load.b * np.array([[0.2], [0.6], [1.0]]))
        plan = allocate(*each.but(load=Load(constants, slopes, load.s0, load.s1)).args)
        assert plan.ratio == pytest.approx(allocate(*each.args).ratio, abs=1e-9)


@pytest.mark.slow
def test_no_local_solver_beats_the_optimum_on_points():
    compared = 0
    for seed in range(25):
        each, _ = bent(seed)
        load = each.load
        full, least = (min_latency(load, each.snr, each.bandwidth, x)[0] for x in (1.0, 1 - each.ratio_max))
        each = each.but(deadline=least + 0.5 * (full - least))
        plan = allocate(*each.args)
        assert plan.latency <= each.deadline * (1 + 1e-9)
        assert plan.bandwidth.sum() == pytest.approx(each.bandwidth)
        shared = common_ratio(load, each.snr, each.deadline, each.bandwidth, each.ratio_max)
        assert plan.objective(each.weights) <= shared.objective(each.weights) + 1e-9

        def room(v, each=each):
            speed = v[DEVICES:] * each.bandwidth * np.log2(1 + each.snr / (v[DEVICES:] * each.bandwidth))
            rows = each.load.a + each.load.b * (1 - v[:DEVICES]) + each.load.bits(1 - v[:DEVICES]) / speed
            return (1 - rows / each.deadline).ravel()

        limits = [{"type": "ineq", "fun": room}, {"type": "ineq", "fun": lambda v: 1 - v[DEVICES:].sum()}]
        start = np.concatenate([shared.ratio, shared.bandwidth / each.bandwidth])
        with np.errstate(all="ignore"):
            end = minimize(
                lambda v, each=each: each.weights @ v[:DEVICES], start, method="SLSQP", constraints=limits,
                bounds=[(0, each.ratio_max)] * DEVICES + [(1e-6, 1)] * DEVICES, options={"maxiter": 300, "ftol": 1e-12},
            )  # fmt: skip
        if room(end.x).min() >= -1e-9 and end.x[DEVICES:].sum() <= 1 + 1e-9:
            compared += abs(plan.objective(each.weights) - end.fun) < 1e-5
            assert plan.objective(each.weights) <= end.fun + 1e-6
    assert compared >= 15


def test_points_without_a_known_optimum_are_refused():
    with pytest.raises(ConfigError, match="convex"):
        pieces(KEPT, [1.0, 2.0, 2.5, 2.7, 2.8])
    with pytest.raises(ConfigError, match="convex"):
        pieces(KEPT, [5.0, 4.0, 3.5, 3.2, 3.1])
    with pytest.raises(ConfigError, match="rising fractions"):
        pieces([0.5, 0.5], [1.0, 2.0])
    with pytest.raises(ConfigError, match="below 0"):
        pieces([0.5, 1.0], [0.1, 2.0])
