"""specs/wireless check 1: cvxpy judges the convex form, SLSQP the original problem, from many starts."""

import warnings

import cvxpy as cp
import numpy as np
import pytest
from scipy.optimize import minimize

from fedbonsai.methods.wireless_pruning.allocation import Energy, PruningError, allocate, min_latency
from fedbonsai.methods.wireless_pruning.allocation.rate import LN2, rate
from tests.methods.wireless_pruning.cells import case


def convex(each, energy=None, pieces=None):
    """The optimum by Clarabel, in units that suit it; None where it gives up."""
    load, k = each.load, len(each.load)
    unit = each.bandwidth / k
    share = cp.Variable(k, nonneg=True)  # in equal shares
    snr = each.snr / unit
    speed = -cp.rel_entr(share, share + snr) / LN2  # bit/s per Hz of an equal share
    kept, reached = cp.Variable(k), cp.Variable(k, nonneg=True)
    rows = [(each.deadline - load.a, load.b)]
    if energy is not None:
        rows.append(energy.row())
    limits = [reached <= speed, cp.sum(share) <= k, kept <= 1, kept >= 1 - each.ratio_max]
    for left, b in rows:
        bits0, bits1 = (
            load.s0 / (unit * left),
            load.s1 / (unit * left),
        )  # bits in equal shares for the time that is left
        slow = b / left
        some = slow > 0
        if some.any():
            excess = (bits1[some] + slow[some] * bits0[some]) / slow[some]
            limits.append(
                kept[some]
                <= 1 / slow[some]
                - cp.multiply(excess, cp.inv_pos(cp.multiply(slow[some], reached[some]) + bits1[some]))
            )
        if (~some).any():
            limits.append(cp.multiply(bits1[~some], kept[~some]) <= reached[~some] - bits0[~some])
    if pieces is None:
        cost = each.weights @ (1 - kept)
    else:
        error = cp.Variable(k)
        limits += [error >= height + tilt * (1 - kept) for height, tilt in pieces]
        cost = each.weights @ error
    problem = cp.Problem(cp.Minimize(cost), limits)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Solution may be inaccurate")  # such a judge is not heard
        try:
            problem.solve(solver=cp.CLARABEL)
        except cp.SolverError:
            return None
    return problem.value if problem.status == "optimal" else None


def judged(seeds, solve):
    """How many were judged; both bounds of specs/wireless check 1 hold in each."""
    count = 0
    for seed in seeds:
        ours, theirs = solve(seed)
        if theirs is not None:
            count += 1
            assert abs(ours - theirs) <= 1e-5, seed
            assert ours - theirs <= 1e-6, seed
    return count


def plain(seed):
    each = case(seed, compute=seed % 5 > 0)
    return allocate(*each.args).objective(each.weights), convex(each)


def with_energy(seed):
    each = case(seed, tightness=0.5)
    load, rng = each.load, np.random.default_rng(seed)
    plan = allocate(*each.args)
    power, pruned = rng.uniform(0.1, 0.4, len(load)), rng.uniform(0, 2, len(load))
    speed = rate(plan.bandwidth, each.snr)
    spent = pruned * (1 - plan.ratio) + power * load.bits(1 - plan.ratio) / speed
    energy = Energy(0.1 + spent * rng.uniform(0.9, 1.5, len(load)), 0.1, pruned, power)
    after = allocate(*each.args, energy=energy)
    if not after.feasible:
        return 0.0, None
    speed = rate(after.bandwidth, each.snr)
    assert (energy.joules(load, 1 - after.ratio, speed) <= np.asarray(energy.limit) * (1 + 1e-9)).all()
    assert after.latency <= each.deadline * (1 + 1e-9)
    return after.objective(each.weights), convex(each, energy)


def by_error(seed):
    each = case(seed)
    error = PruningError.of(np.random.default_rng(seed).normal(size=40))
    pieces = [(error.sums[i] - error.slope(i / 40) * i / 40, error.slope(i / 40)) for i in range(40)]
    plan = allocate(*each.args, error=error)
    return float(each.weights @ error(plan.ratio)), convex(each, pieces=pieces)


@pytest.mark.slow
@pytest.mark.parametrize("solve", [plain, with_energy, by_error])
def test_the_optimum_is_that_of_a_convex_solver(solve):
    assert judged(range(5), solve) >= 3


MANY = [(plain, 70), (with_energy, 20), (by_error, 20)]
ALL = [pytest.param(solve, 3 * seeds, marks=pytest.mark.exhaustive) for solve, seeds in MANY]


@pytest.mark.slow
@pytest.mark.parametrize(("solve", "seeds"), [*MANY, *ALL])
def test_the_optimum_is_that_of_a_convex_solver_in_many_cells(solve, seeds):
    assert judged(range(seeds), solve) >= 0.8 * seeds


def best_of_starts(each, starts):
    """The best feasible end of SLSQP on ratios and bands as they are, from random starts."""
    load, k = each.load, len(each.load)
    rng = np.random.default_rng(k)

    def room(v):
        speed = rate(v[k:] * each.bandwidth, each.snr)
        return 1 - (load.a + load.b * (1 - v[:k]) + load.bits(1 - v[:k]) / speed) / each.deadline

    limits = [{"type": "ineq", "fun": room}, {"type": "ineq", "fun": lambda v: 1 - v[k:].sum()}]
    best = np.inf
    for _ in range(starts):
        start = np.concatenate([rng.uniform(0, each.ratio_max, k), rng.dirichlet(np.full(k, 3.0))])
        bounds = [(0, each.ratio_max)] * k + [(1e-6, 1)] * k
        end = minimize(
            lambda v: each.weights @ v[:k], start, method="SLSQP", bounds=bounds, constraints=limits,
            options={"maxiter": 200, "ftol": 1e-12},
        )  # fmt: skip
        if room(end.x).min() >= -1e-9 and end.x[k:].sum() <= 1 + 1e-9:
            best = min(best, float(end.fun))
    return best


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "starts"),
    [(range(40), 4), pytest.param(range(200), 4, marks=pytest.mark.exhaustive)],
    ids=["few", "many"],
)
def test_no_start_of_a_local_solver_ends_below_the_optimum(seeds, starts):
    reached = 0
    with np.errstate(all="ignore"):
        for seed in seeds:
            each = case(seed, 2 + seed % 4)
            ours = allocate(*each.args).objective(each.weights)
            theirs = best_of_starts(each, starts)
            assert ours <= theirs + 1e-6, seed
            reached += theirs - ours < 1e-5
    assert reached >= 0.7 * len(seeds)


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 60), marks=pytest.mark.slow)], ids=["few", "many"])
def test_the_shortest_round_is_that_of_a_convex_solver(seeds):
    for seed in seeds:
        each = case(seed, 2 + seed % 6)
        load, unit = each.load, each.bandwidth / len(each.load)
        kept = np.random.default_rng(seed).uniform(0.1, 1, len(load))
        seconds, _ = min_latency(load, each.snr, each.bandwidth, kept)
        share, speed, latency = (cp.Variable(n) for n in (len(load), len(load), ()))
        fixed, bits = (load.a + load.b * kept) / seconds, load.bits(kept) / (unit * seconds)
        limits = [
            speed <= -cp.rel_entr(share, share + each.snr / unit) / LN2,
            fixed + cp.multiply(bits, cp.inv_pos(speed)) <= latency,
            cp.sum(share) <= len(load),
        ]
        problem = cp.Problem(cp.Minimize(latency), limits)
        problem.solve(solver=cp.CLARABEL)
        assert problem.value == pytest.approx(1, rel=2e-5)
