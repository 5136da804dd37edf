"""Infeasible rounds, baselines that leave devices out, late uploads: specs/wireless §6, §7.2 and §7.3."""

from itertools import combinations

import numpy as np
import pytest

from fedbonsai.errors import ConfigError
from fedbonsai.methods.wireless_pruning.allocation import (
    Energy,
    Load,
    Problem,
    admit,
    aged,
    allocate,
    decoupled,
    drop_stragglers,
    equal_bandwidth,
    min_latency,
    served,
    truncated,
)
from fedbonsai.methods.wireless_pruning.allocation.curve import curve
from fedbonsai.methods.wireless_pruning.allocation.rate import rate
from tests.methods.wireless_pruning.cells import case


def tight(seed, devices=6):
    """A case whose deadline is too short for all, but not for each alone."""
    each = case(seed, devices)
    shortest, _ = min_latency(each.load, each.snr, each.bandwidth, 1 - each.ratio_max)
    return each.but(deadline=0.7 * shortest)


def rest(each):
    return each.load, each.snr, each.deadline, each.bandwidth, each.ratio_max


@pytest.mark.slow
def test_the_largest_set_is_admitted():
    for seed in range(40):
        each = tight(seed)
        needed = curve(each.load, each.snr, each.deadline).bandwidth(1 - each.ratio_max)
        chosen = admit(*rest(each))
        assert needed[chosen].sum() <= each.bandwidth
        sizes = [n for n in range(7) for some in combinations(needed, n) if sum(some) <= each.bandwidth]
        assert chosen.sum() == max(sizes)
        assert not chosen.all()


@pytest.mark.slow
def test_values_admit_whoever_is_worth_a_band():
    halves = []
    for seed in range(40):
        each = tight(seed)
        needed = curve(each.load, each.snr, each.deadline).bandwidth(1 - each.ratio_max)
        chosen = admit(*rest(each), each.weights)
        assert needed[chosen].sum() <= each.bandwidth
        assert not (~chosen & (needed <= each.bandwidth - needed[chosen].sum())).any() or chosen.sum() == 1
        sets = [list(some) for n in range(1, 7) for some in combinations(range(6), n)]
        best = max((each.weights[some].sum() for some in sets if needed[some].sum() <= each.bandwidth), default=0)
        if best:
            halves.append(each.weights[chosen].sum() / best)
    assert min(halves) >= 0.5
    assert np.mean(halves) > 0.95


def test_no_device_that_can_be_served_starves():
    each = tight(2)
    ages = np.zeros(6)
    can = np.isfinite(curve(each.load, each.snr, each.deadline).bandwidth(1 - each.ratio_max))
    can &= curve(each.load, each.snr, each.deadline).bandwidth(1 - each.ratio_max) <= each.bandwidth
    turns = np.zeros(6, int)
    for _ in range(300):
        chosen = admit(*rest(each), aged(np.full(6, 1 / 6), ages))
        turns += chosen
        ages = np.where(chosen, 0, ages + 1)
    assert can.sum() > 2
    assert (turns[can] > 0).all()
    assert not turns[~can].any()
    assert (turns[can] < 300).any()
    with pytest.raises(ConfigError, match="age"):
        aged([1.0], [-1])


def optimum(some):
    return allocate(*some.limits, some.weights, some.ratio_max)


def problem(each):
    return Problem(each.load, each.snr, each.bandwidth, each.weights, each.ratio_max, deadline=each.deadline)


@pytest.mark.slow
def test_where_not_all_can_be_served_those_who_are_admitted_are():
    for seed in range(30):
        each = tight(seed)
        assert not allocate(*each.args).feasible
        plan = served(problem(each), optimum)
        if plan.feasible:
            assert not plan.active.all()
            assert plan.latency <= each.deadline * (1 + 1e-9)
            assert (plan.active == admit(*rest(each))).all()
            assert not plan.bandwidth[~plan.active].any()


def test_a_plan_for_all_stays_as_it_is():
    each = case(0)
    assert (served(problem(each), optimum).ratio == allocate(*each.args).ratio).all()


def test_whom_a_budget_of_energy_rules_out_is_not_admitted():
    each = case(1, 4)
    poor = Energy(np.array([1e-9, 1e6, 1e6, 1e6]), 0.0, 1.0, 0.2)
    assert not allocate(*each.args, energy=poor).feasible
    chosen = admit(*rest(each), energy=poor)
    assert allocate(*each.args, energy=poor, among=chosen).active.tolist() == [False, True, True, True]


@pytest.mark.slow
def test_equal_bands_leave_out_whom_they_cannot_serve():
    for seed in range(60):
        each = case(seed, tightness=0.1)
        for plan in (equal_bandwidth(*rest(each)), decoupled(*rest(each))):
            if not plan.feasible:
                continue
            assert (plan.seconds[plan.active] <= each.deadline * (1 + 1e-9)).all()
            pruning = plan.active & (plan.ratio > 0)
            assert plan.seconds[pruning] == pytest.approx(each.deadline)
            assert bool(plan.reason) == (not plan.active.all())
            assert not plan.ratio[~plan.active].any()
    assert equal_bandwidth(*rest(case(0, 4))).bandwidth.max() == case(0, 4).bandwidth / 4


@pytest.mark.slow
def test_stragglers_are_dropped_without_pruning():
    for seed in range(40):
        each = case(seed, 6)
        plan = drop_stragglers(*rest(each)[:4])
        needed = curve(each.load, each.snr, each.deadline).bandwidth(1.0)
        most = max(n for n in range(7) for some in combinations(needed, n) if sum(some) <= each.bandwidth)
        assert plan.active.sum() == most
        assert not plan.ratio.any()
        if plan.feasible:
            assert plan.latency <= each.deadline * (1 + 1e-9)


def late(seed, fade, **options):
    """An upload whose channel faded against the prediction."""
    each = case(seed, 6, tightness=0.5)
    plan = allocate(*each.args)
    snr = each.snr * fade(np.random.default_rng(seed))
    after = truncated(each.load, snr, each.deadline, each.bandwidth, 1 - plan.ratio, weights=each.weights, **options)
    return each, plan, snr, after


@pytest.mark.parametrize("by", ["optimum", "min_max"])
def test_a_better_channel_cuts_nothing(by):
    for seed in range(20):
        each, plan, _, after = late(seed, lambda rng: 1.5, by=by)
        assert after.active.all()
        assert (after.ratio == plan.ratio).all()
        assert after.latency < each.deadline


@pytest.mark.slow
@pytest.mark.parametrize("by", ["optimum", "min_max"])
def test_a_worse_channel_sends_less_in_time(by):
    for seed in range(60):
        each, plan, snr, after = late(seed, lambda rng: rng.uniform(0.1, 0.9, 6), by=by)
        on = after.active
        assert on.any()
        assert (after.ratio[on] >= plan.ratio[on] - 1e-12).all()
        kept = 1 - plan.ratio
        elapsed, speed = each.load.a + each.load.b * kept, rate(after.bandwidth, snr)
        seconds = elapsed[on] + each.load.bits(1 - after.ratio)[on] / speed[on]
        assert after.seconds[on] == pytest.approx(seconds)
        assert after.latency <= each.deadline * (1 + 1e-9)
        assert after.bandwidth.sum() <= each.bandwidth * (1 + 1e-9)
        cut = on & (after.ratio > plan.ratio + 1e-9) & (after.ratio < 0.98)
        room = (each.deadline - elapsed) * speed - each.load.s0  # specs/wireless §7.2: x' = ((T - elapsed) R - s0) / s1
        assert 1 - after.ratio[cut] == pytest.approx(room[cut] / each.load.s1[cut])


@pytest.mark.slow
def test_one_deep_fade_does_not_cut_the_others():
    def fade(rng):
        return np.array([1e-4, 1, 1, 1, 1, 1])

    for seed in range(20):
        each, plan, _, best = late(seed, fade)
        after = late(seed, fade, by="min_max")[-1]
        sent, less = (np.where(one.active, 1 - one.ratio, 0) for one in (best, after))
        assert sent[1:] == pytest.approx(1 - plan.ratio[1:], rel=0.2)
        assert each.weights @ less <= each.weights @ sent + 1e-9


def test_who_was_late_before_sending_is_left_out():
    load = Load([0.5, 0.5], [1.0, 1.0], [0.0, 0.0], [1e6, 1e6])
    elapsed = np.array([1.0, 2.5])
    for by in ("optimum", "min_max"):
        plan = truncated(load, np.full(2, 1e7), 2.0, 1e6, np.ones(2), elapsed, by=by)
        assert plan.active.tolist() == [True, False]
        assert plan.latency <= 2.0 * (1 + 1e-12)
    nobody = truncated(load, np.full(2, 1e7), 2.0, 1e6, np.ones(2), np.full(2, 3.0))
    assert not nobody.feasible
    assert nobody.reason
