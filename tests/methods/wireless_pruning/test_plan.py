"""The plan of a round: every rule within its limits, whom it drops, and its correction by the true channel."""

from dataclasses import replace

import numpy as np
import pytest

from fedbonsai.devices.channel import Cell
from fedbonsai.methods.wireless_pruning.allocation import (
    Load,
    Problem,
    PruningError,
    admit,
    aged,
    allocate,
    min_latency,
)
from fedbonsai.methods.wireless_pruning.allocation import scheduled as schedule
from fedbonsai.methods.wireless_pruning.plan import (
    Alternating,
    Common,
    Decoupled,
    DropStragglers,
    Equal,
    Fixed,
    Optimum,
)


def scheduled(rule, some, share, true=None, remedy="drop"):
    return schedule(rule.plan, some, share, true, remedy, rule.waits)


IDS = [str(k) for k in range(8)]
CELL = Cell()
ERROR = PruningError.of(np.random.default_rng(0).standard_normal(2000))
RULES = [
    Optimum(),
    Optimum(surrogate="error"),
    Optimum(block=180e3),
    Optimum("error", 180e3),
    Common(),
    Equal(),
    Decoupled(),
    Alternating(),
    DropStragglers(),
]


def problem(seed, t=0):
    draw = np.random.default_rng(seed)
    count = len(IDS)
    load = Load(draw.uniform(0.05, 0.2, count), draw.uniform(0.5, 2, count), np.full(count, 1e4), np.full(count, 2e7))
    weights = draw.uniform(0.5, 2, count)
    return Problem(load, CELL.snr_bandwidth(seed, IDS, t), CELL.bandwidth, weights / weights.sum(), error=ERROR)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.8, 0.4])
def test_every_rule_is_in_time_and_within_the_band(rule, seed, share):
    some = problem(seed)
    plan = scheduled(rule, some, share)
    assert plan.full == pytest.approx(min_latency(some.load, some.snr, some.bandwidth)[0])
    assert plan.latency <= plan.deadline * (1 + 1e-9)
    assert plan.deadline >= share * plan.full
    assert plan.bandwidth.sum() <= some.bandwidth * (1 + 1e-9)
    assert ((plan.ratio >= 0) & (plan.ratio <= 0.9 + 1e-12)).all()
    assert (plan.ratio[~plan.trains] == 0).all()
    assert (plan.sent == plan.ratio).all()
    assert (plan.sends == plan.trains).all()
    assert plan.trains.any()


@pytest.mark.slow
def test_the_optimum_is_the_solvers_and_no_baseline_is_better():
    for seed in range(4):
        some = problem(seed)
        best = scheduled(Optimum(), some, 0.5)
        theirs = allocate(some.load, some.snr, best.deadline, some.bandwidth, some.weights)
        assert best.ratio.tolist() == theirs.ratio.tolist()
        for rule in (Common(), Equal(), Decoupled(), Alternating()):
            other = scheduled(rule, some, 0.5)
            if other.trains.all() and other.deadline == best.deadline:
                assert (some.weights * best.ratio).sum() <= (some.weights * other.ratio).sum() + 1e-9


def test_a_fixed_ratio_has_no_deadline():
    some = problem(1)
    for ratio in (0.0, 0.3, 0.7):
        plan = scheduled(Fixed(ratio), some, 0.1)
        assert plan.deadline == float("inf")
        assert plan.trains.all()
        assert set(plan.ratio) == {ratio}
        assert plan.latency == pytest.approx(min_latency(some.load, some.snr, some.bandwidth, 1 - ratio)[0])
    with pytest.raises(ValueError, match="ratio"):
        Fixed(1.0)


def test_who_cannot_be_served_is_left_out_as_the_allocation_says():
    some = replace(problem(2), ratio_max=0.3)
    plan = scheduled(Optimum(), some, 0.5)
    limits = (some.load, some.snr, plan.deadline, some.bandwidth)
    theirs = allocate(*limits, some.weights, 0.3, among=admit(*limits, 0.3))
    assert 0 < plan.trains.sum() < len(IDS)
    assert plan.trains.tolist() == theirs.active.tolist()
    assert plan.ratio == pytest.approx(theirs.ratio)
    late = int(np.flatnonzero(~plan.trains)[0])
    ages = np.where(np.arange(len(IDS)) == late, 50, 0)
    waited = scheduled(Optimum(), replace(some, values=aged(some.weights, ages, 10.0)), 0.5)
    alone = allocate(some.load, some.snr, plan.deadline, some.bandwidth, ratio_max=0.3, among=ages > 0)
    assert waited.trains[late] == alone.feasible


def test_whole_blocks_leave_out_as_few_as_needed():
    some = replace(problem(2), ratio_max=0.3)
    plan = scheduled(Optimum(block=1e6), some, 0.5)
    bands = plan.bandwidth[plan.trains]
    assert plan.trains.any()
    assert np.allclose(bands, np.round(bands / 1e6) * 1e6)


def test_the_deadline_moves_where_it_is_out_of_reach():
    some = problem(3)
    slow = replace(some, load=Load(some.load.a + 100, some.load.b, some.load.s0, some.load.s1))
    plan = scheduled(Optimum(), slow, 0.5)
    least = min_latency(slow.load, slow.snr, slow.bandwidth, 0.1)[0]
    assert plan.deadline == pytest.approx(least + 0.5 * (plan.full - least))
    assert plan.trains.all()
    few = replace(problem(2), ratio_max=0.3)
    assert not scheduled(Optimum(), few, 0.5).trains.all()
    assert scheduled(Optimum(), few, 0.5, remedy="extend").trains.all()


@pytest.mark.parametrize("rule", [Optimum(), Common(), Fixed(0.3)], ids=repr)
def test_the_true_channel_corrects_the_upload(rule):
    cut = 0
    for t in range(12):
        some, other = problem(5), problem(5, t)
        plan = scheduled(rule, some, 0.5, (some.load, other.snr))
        assert plan.trains.all()
        assert (plan.sent >= plan.ratio).all()
        assert plan.bandwidth.sum() <= some.bandwidth * (1 + 1e-9)
        if rule.waits:
            assert plan.latency <= plan.deadline * (1 + 1e-9)
        else:
            assert plan.sends.all()
            assert (plan.sent == plan.ratio).all()
        cut += int((plan.sends & (plan.sent > plan.ratio)).sum())
    assert (cut > 0) == rule.waits
