"""Variants of the allocation: specs/wireless §4.6, §7.2 and §7.4 to §7.6."""

import numpy as np
import pytest
from scipy.optimize import linprog

from fedbonsai.errors import ConfigError
from fedbonsai.methods.wireless_pruning.allocation import (
    Energy,
    Load,
    PruningError,
    allocate,
    allocate_blocks,
    common_ratio,
)
from fedbonsai.methods.wireless_pruning.allocation.curve import curve
from fedbonsai.methods.wireless_pruning.allocation.rate import rate
from tests.methods.wireless_pruning.cells import case, few_then_many

# common ratio


@few_then_many
def test_the_common_ratio_uses_the_whole_band(seeds):
    for seed in seeds:
        each = case(seed)
        plan = common_ratio(each.load, each.snr, each.deadline, each.bandwidth, each.ratio_max)
        assert np.ptp(plan.ratio) == 0
        assert np.abs(plan.seconds / each.deadline - 1).max() < 1e-9
        assert plan.bandwidth.sum() == pytest.approx(each.bandwidth, rel=1e-9)
        assert plan.bandwidth.sum() <= each.bandwidth


@pytest.mark.slow
@few_then_many
def test_the_common_ratio_is_the_least_greatest_ratio(seeds):
    for seed in seeds:
        each = case(seed)
        plan = common_ratio(each.load, each.snr, each.deadline, each.bandwidth, each.ratio_max)
        assert plan.ratio[0] <= allocate(*each.args).ratio.max() + 1e-9


def test_the_common_ratio_at_either_end():
    each = case(1)
    assert (common_ratio(each.load, each.snr, 100 * each.deadline, each.bandwidth).ratio == 0).all()
    assert not common_ratio(each.load, each.snr, 0.01 * each.deadline, each.bandwidth).feasible


# whole blocks


def by_table(ratio, weights, spare):
    """Exact dynamic programme: the least cost of handing out at most ``spare`` blocks."""
    best = np.zeros(spare + 1)
    for k in range(ratio.shape[1]):
        costs = weights[k] * ratio[:, k]
        best = np.array([min(best[n - j] + costs[j] for j in range(n + 1)) for n in range(spare + 1)])
    return best[spare]


@pytest.mark.slow
@pytest.mark.parametrize("with_error", [False, True])
def test_taking_the_greatest_gain_is_exact(with_error):
    tried = 0
    for seed in range(60):
        each = case(seed, 2 + seed % 5, tightness=0.6)
        error = PruningError.of(np.random.default_rng(seed).normal(size=50)) if with_error else None
        block = each.bandwidth / (12 + seed % 29)
        plan = allocate_blocks(*each.args, block, error=error)
        if not plan.feasible:
            continue
        tried += 1
        counts = plan.bandwidth / block
        assert np.abs(counts - counts.round()).max() < 1e-9
        assert plan.bandwidth.sum() <= each.bandwidth * (1 + 1e-9)
        assert plan.latency <= each.deadline * (1 + 1e-9)
        curves = curve(each.load, each.snr, each.deadline)
        start = np.ceil(curves.bandwidth(1 - each.ratio_max) / block)
        spare = round(each.bandwidth / block) - int(start.sum())
        rows = np.array([curves.kept((start + j) * block) for j in range(spare + 1)])
        ratio = 1 - np.clip(rows, 1 - each.ratio_max, 1)
        cost = plan.objective(each.weights) if error is None else float(each.weights @ error(plan.ratio))
        assert cost == pytest.approx(by_table(ratio if error is None else error(ratio), each.weights, spare), abs=1e-12)
    assert tried > 40


def test_fine_blocks_come_close_to_any_bandwidth():
    each = case(4, 6, tightness=0.5)
    best = allocate(*each.args).objective(each.weights)
    costs = [allocate_blocks(*each.args, each.bandwidth / n).objective(each.weights) for n in (40, 400, 4000)]
    assert best <= costs[2] <= costs[1] <= costs[0]
    assert costs[2] - best < 1e-3


def test_too_few_blocks_are_infeasible():
    each = case(4, 6)
    assert not allocate_blocks(*each.args, each.bandwidth / 3).feasible
    with pytest.raises(ConfigError, match="block"):
        allocate_blocks(*each.args, 2 * each.bandwidth)


# energy


@pytest.mark.slow
@few_then_many
def test_a_budget_of_energy_is_kept_and_binds(seeds):
    bound = 0
    for seed in seeds:
        each = case(seed, tightness=0.5)
        load, k = each.load, len(each.load)
        free = allocate(*each.args)
        wide = Energy(np.full(k, 1e9), 0.1, 1.0, 0.2)
        assert (allocate(*each.args, energy=wide).ratio == free.ratio).all()
        spent = wide.joules(load, 1 - free.ratio, rate(free.bandwidth, each.snr))
        tight = Energy(0.1 + 0.9 * (spent - 0.1), 0.1, 1.0, 0.2)
        plan = allocate(*each.args, energy=tight)
        if plan.feasible:
            bound += 1
            used = tight.joules(load, 1 - plan.ratio, rate(plan.bandwidth, each.snr))
            assert (used <= np.asarray(tight.limit) * (1 + 1e-9)).all()
            assert plan.latency <= each.deadline * (1 + 1e-9)
            assert plan.objective(each.weights) > free.objective(each.weights)
    assert bound > 0.5 * len(seeds)


def test_an_energy_in_joules():
    load = Load([0.0], [0.0], [1e5], [1e6])
    energy = Energy(5.0, 0.5, 2.0, 0.25)
    assert energy.joules(load, np.array([0.5]), np.array([1e6])) == pytest.approx([0.5 + 1 + 0.25 * 0.6])
    with pytest.raises(ConfigError, match="power"):
        Energy(5.0, 0.5, 2.0, 0.0)


# the error of pruning


def test_the_error_of_pruning_by_magnitude():
    values = np.random.default_rng(0).normal(size=1000)
    error = PruningError.of(values)
    for pruned in (0, 1, 250, 900, 1000):
        kept = np.sort(np.abs(values))[pruned:]
        assert error(pruned / 1000) == pytest.approx(1 - np.sum(kept**2) / np.sum(values**2), abs=1e-12)
    ratios = np.linspace(0, 1, 777)
    assert (error(ratios) <= ratios + 1e-12).all()
    assert (np.diff(error(ratios), 2) >= -1e-12).all()
    equal = PruningError.of(np.full(64, -3.0))
    assert np.abs(equal(ratios) - ratios).max() < 1e-12
    with pytest.raises(ConfigError, match="zero"):
        PruningError.of(np.zeros(5))


@pytest.mark.slow
@few_then_many
def test_minimising_the_error_leaves_less_of_it(seeds):
    for seed in seeds:
        each = case(seed)
        error = PruningError.of(np.random.default_rng(seed).normal(size=5000))
        by_ratio, by_error = allocate(*each.args), allocate(*each.args, error=error)
        assert by_error.latency <= each.deadline * (1 + 1e-9)
        assert by_error.bandwidth.sum() <= each.bandwidth * (1 + 1e-9)
        assert each.weights @ error(by_error.ratio) <= each.weights @ error(by_ratio.ratio) + 1e-9


def test_weights_that_are_zero_already_cost_nothing():
    each = case(2, 6, tightness=0.9)
    error = PruningError.of(np.concatenate([np.zeros(900), np.ones(100)]))
    for ratio_max in (0.85, 0.95):
        plan = allocate(*each.but(ratio_max=ratio_max).args, error=error)
        assert plan.feasible
        assert float(each.weights @ error(plan.ratio)) == 0


# a cap on the rate


@pytest.mark.slow
@few_then_many
def test_a_cap_makes_no_plan_better_and_all_plans_true(seeds):
    for seed in seeds:
        each = case(seed)
        free = allocate(*each.args)
        plan = allocate(*each.args, cap=5.5)
        if not plan.feasible:
            continue
        assert plan.objective(each.weights) >= free.objective(each.weights) - 1e-10
        assert plan.latency <= each.deadline * (1 + 1e-9)
        speed = rate(plan.bandwidth, each.snr, 5.5)
        assert (speed <= 5.5 * plan.bandwidth * (1 + 1e-12)).all()


@pytest.mark.parametrize(  # at some price of the search, a derivative of these three is that price to the last bit
    "seeds",
    [(100, 107, 205), range(20), pytest.param(range(20, 220), marks=pytest.mark.slow)],
    ids=["ties", "few", "many"],
)
def test_a_low_cap_without_compute_is_the_linear_programme(seeds):
    for seed in seeds:
        each = case(seed, compute=False)
        snr, cap = each.snr * 1e6, 2.0  # every useful band is under the cap
        load = each.load
        deadline = 2 * load.a.max() + 1
        lo, hi = (load.bits(kept) / cap / (deadline - load.a) for kept in (1 - each.ratio_max, 1.0))
        bandwidth = float(lo.sum() + 0.5 * (hi.sum() - lo.sum()))
        need = load.s1 / cap / (deadline - load.a) / bandwidth  # kept x need + least <= 1
        least = (load.s0 / cap / (deadline - load.a)).sum() / bandwidth
        bounds = [(1 - each.ratio_max, 1)] * len(load)
        exact = linprog(-each.weights, A_ub=need[None], b_ub=[1 - least], bounds=bounds)
        plan = allocate(load, snr, deadline, bandwidth, each.weights, each.ratio_max, cap=cap)
        assert plan.objective(each.weights) == pytest.approx(each.weights.sum() + exact.fun, abs=1e-9)
        assert plan.bandwidth.sum() == pytest.approx(bandwidth)
