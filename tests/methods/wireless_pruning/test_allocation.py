"""specs/wireless check 2 and check 4 to check 6, and the optimum's own conditions."""

import numpy as np
import pytest

from fedbonsai.errors import ConfigError
from fedbonsai.methods.wireless_pruning.allocation import (
    Load,
    allocate,
    alternating,
    common_ratio,
    decoupled,
    equal_bandwidth,
    min_latency,
)
from fedbonsai.methods.wireless_pruning.allocation.curve import curve
from tests.methods.wireless_pruning.cells import case, few_then_many


def objective(each, **options):
    return allocate(*each.args, **options).objective(each.weights)


@pytest.mark.parametrize("compute", [True, False])
@few_then_many
def test_plans_are_feasible_and_satisfy_the_conditions_of_the_optimum(compute, seeds):
    for seed in seeds:
        each = case(seed, compute=compute)
        plan = allocate(*each.args)
        assert plan.active.all(), plan.reason
        assert plan.latency / each.deadline - 1 <= 1e-9
        assert abs(plan.bandwidth.sum() / each.bandwidth - 1) <= 1e-9
        assert (plan.ratio >= 0).all()
        assert (plan.ratio <= each.ratio_max).all()
        # each device's gain from one Hz more is the common price, or on the right side of it at a bound
        gain = each.weights * curve(each.load, each.snr, each.deadline).slope(plan.bandwidth)
        residual = gain / plan.multiplier - 1
        none, most = plan.ratio <= 1e-12, plan.ratio >= each.ratio_max - 1e-12
        assert np.abs(residual[~none & ~most]).max(initial=0) <= 1e-6
        assert (residual[none] >= -1e-6).all()
        assert (residual[most] <= 1e-6).all()


@pytest.mark.slow
@few_then_many
def test_relaxing_never_raises_the_optimum(seeds):
    for seed in seeds:
        each = case(seed)
        load, best = each.load, objective(each)
        more = np.random.default_rng(seed).uniform(1.01, 2)
        for relaxed in (
            each.but(deadline=each.deadline * more),
            each.but(bandwidth=each.bandwidth * more),
            each.but(snr=each.snr * more),
            each.but(load=Load(load.a / more, load.b / more, load.s0, load.s1)),
            each.but(ratio_max=min(each.ratio_max * more, 0.99)),
        ):
            assert objective(relaxed) <= best + 1e-10


@few_then_many
def test_a_long_deadline_needs_no_pruning(seeds):
    for seed in seeds:
        each = case(seed)
        full, _ = min_latency(each.load, each.snr, each.bandwidth)
        plan = allocate(*each.but(deadline=full * 1.001).args)
        assert (plan.ratio == 0).all()
        assert (plan.bandwidth == curve(each.load, each.snr, full * 1.001).bandwidth(1.0)).all()
        assert plan.multiplier == 0


@pytest.mark.slow
@few_then_many
def test_a_short_deadline_is_infeasible_and_says_so(seeds):
    for seed in seeds:
        each = case(seed)
        least, _ = min_latency(each.load, each.snr, each.bandwidth, 1 - each.ratio_max)
        plan = allocate(*each.but(deadline=least * 0.999).args)
        assert not plan.feasible
        assert not plan.active.any()
        assert plan.reason
        just = allocate(*each.but(deadline=least * (1 + 1e-7)).args)
        assert just.feasible
        assert just.objective(each.weights) >= each.ratio_max * each.weights.sum() - 0.02


def test_who_no_band_can_help_is_named():
    each = case(3, 5)
    snr = each.snr.copy()
    snr[2] = 1.0
    plan = allocate(*each.but(snr=snr).args)
    assert not plan.feasible
    assert plan.limited.tolist() == [False, False, True, False, False]
    assert "1 of 5 devices" in plan.reason


def test_identical_devices_share_equally():
    for seed in range(20):
        one = case(seed, 1)
        k = 2 + seed % 9
        load = Load(*(np.repeat(part, k) for part in (one.load.a, one.load.b, one.load.s0, one.load.s1)))
        plan = allocate(load, np.repeat(one.snr, k), one.deadline, one.bandwidth * k, None, one.ratio_max)
        assert np.ptp(plan.ratio) == 0
        assert np.abs(plan.bandwidth / one.bandwidth - 1).max() < 1e-12


@few_then_many
def test_one_device_has_the_whole_band(seeds):
    for seed in seeds:
        each = case(seed, 1)
        plan = allocate(*each.args)
        assert plan.bandwidth[0] == pytest.approx(each.bandwidth, rel=1e-13)
        kept = curve(each.load, each.snr, each.deadline).kept(np.array([each.bandwidth]))
        assert plan.ratio[0] == pytest.approx(1 - kept[0], rel=1e-9)


@few_then_many
def test_the_closed_form_without_compute_is_the_general_search(seeds):
    for seed in seeds:
        each = case(seed, compute=False)
        load = each.load
        searched = each.but(load=Load(load.a, np.full(len(load), 1e-250), load.s0, load.s1))
        closed, general = allocate(*each.args), allocate(*searched.args)
        assert np.abs(closed.ratio - general.ratio).max() <= 1e-10
        assert np.abs(closed.bandwidth / general.bandwidth - 1).max() <= 1e-10


def test_weights_of_many_magnitudes():
    for compute in (True, False):
        each = case(0, 6, compute=compute)
        each = each.but(weights=10.0 ** np.arange(-6, 6, 2))
        plan = allocate(*each.args)
        assert plan.feasible
        assert plan.bandwidth.sum() == pytest.approx(each.bandwidth)
        assert plan.ratio[0] == pytest.approx(each.ratio_max)
        assert plan.ratio[-1] == plan.ratio.min()


@pytest.mark.slow
@few_then_many
def test_units_and_order_do_not_matter(seeds):
    for seed in seeds:
        each = case(seed)
        load, ratio = each.load, allocate(*each.args).ratio
        c = 10 ** np.random.default_rng(seed).uniform(-3, 3)
        bits = Load(load.a, load.b, load.s0 * c, load.s1 * c)
        hertz = each.but(load=bits, snr=each.snr * c, bandwidth=each.bandwidth * c)
        seconds = each.but(load=Load(load.a * c, load.b * c, load.s0 * c, load.s1 * c), deadline=each.deadline * c)
        assert np.abs(allocate(*hertz.args).ratio - ratio).max() < 1e-9
        assert np.abs(allocate(*seconds.args).ratio - ratio).max() < 1e-9
        order = np.random.default_rng(seed).permutation(len(load))
        shuffled = Load(load.a[order], load.b[order], load.s0[order], load.s1[order])
        moved = each.but(load=shuffled, snr=each.snr[order], weights=each.weights[order])
        assert np.abs(allocate(*moved.args).ratio - ratio[order]).max() < 1e-9


@pytest.mark.slow
@few_then_many
def test_no_other_plan_is_better(seeds):
    for seed in seeds:
        each = case(seed)
        best = objective(each)
        rest = (each.load, each.snr, each.deadline, each.bandwidth, each.ratio_max)
        for other in (equal_bandwidth, common_ratio, decoupled, alternating):
            plan = other(*rest)
            if plan.active.all():
                assert plan.latency <= each.deadline * (1 + 1e-9)
                assert plan.bandwidth.sum() <= each.bandwidth * (1 + 1e-9)
                assert best <= plan.objective(each.weights) + 1e-9


@pytest.mark.slow
def test_block_alternation_stalls_where_it_starts():
    gaps = []
    for seed in range(60):
        each = case(seed)
        rest = (each.load, each.snr, each.deadline, each.bandwidth, each.ratio_max)
        start, end = equal_bandwidth(*rest), alternating(*rest, step="needed")
        assert np.abs(start.ratio - end.ratio).max() < 1e-9
        stuck = alternating(*rest)
        if stuck.active.all():
            gaps.append(stuck.objective(each.weights) - objective(each))
    assert len(gaps) > 20
    assert np.mean(gaps) > 1e-3
    assert max(gaps) > 0.02


def test_only_those_chosen_share_the_band():
    each = case(5, 8)
    some = np.arange(8) % 2 == 0
    plan = allocate(*each.args, among=some)
    alone = allocate(
        each.load.among(some), each.snr[some], each.deadline, each.bandwidth, each.weights[some], each.ratio_max
    )
    assert (plan.active == some).all()
    assert (plan.ratio[some] == alone.ratio).all()
    assert not plan.bandwidth[~some].any()
    assert not allocate(*each.args, among=np.zeros(8, bool)).feasible


def test_devices_with_nothing_to_send_or_to_prune_take_part():
    load = Load([0.1, 0.1, 0.1, 0.1], [1.0, 2.0, 0.0, 0.5], [0.0, 0.0, 5e4, 1e4], [0.0, 0.0, 0.0, 1e6])
    plan = allocate(load, np.full(4, 1e6), 1.6, 2e5, ratio_max=0.9)
    assert plan.active.all(), plan.reason
    assert plan.latency <= 1.6 * (1 + 1e-9)
    assert plan.ratio[[0, 2]].tolist() == [0, 0]
    assert plan.ratio[1] == pytest.approx(0.25)
    assert plan.bandwidth[:2].tolist() == [0, 0]
    assert 0 < plan.ratio[3] < 0.9
    assert plan.bandwidth.sum() == pytest.approx(2e5)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ratio_max": 1.0}, "ratio_max"),
        ({"deadline": 0.0}, "deadline"),
        ({"bandwidth": -1.0}, "bandwidth"),
        ({"snr": np.ones(3)}, "snr"),
        ({"snr": np.zeros(4)}, "snr"),
        ({"weights": np.zeros(4)}, "weights"),
    ],
)
def test_what_cannot_be_is_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        allocate(*case(0, 4).but(**change).args)


def test_loads_are_checked():
    with pytest.raises(ConfigError, match="s1"):
        Load([1.0], [1.0], [1.0], [-1.0])
    with pytest.raises(ConfigError, match="shapes"):
        Load([1.0, 2.0], [1.0], [1.0, 1.0], [1.0, 1.0])


def test_a_thousand_devices():
    each = case(0, 1000)
    plan = allocate(*each.args)
    assert plan.active.all()
    assert plan.latency <= each.deadline * (1 + 1e-9)
    assert plan.bandwidth.sum() == pytest.approx(each.bandwidth)
