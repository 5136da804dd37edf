"""specs/wireless check 14: the theorem of specs/wireless §3.1 on random quadratic systems, with noise in a few.

F_k(u, v) = (1/2) (z - c)^T H (z - c) with z = (u, v), so every constant of the theorem is known. The protocol is that of
specs/wireless §1.3: the personal part descends beneath the masked global part, then the kept coordinates of the global
part do, and each coordinate becomes the mean over those that kept it.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from experiments.wireless_pruning.bound import drawn, sides


@dataclass(frozen=True)
class System:
    """Quadratics of K devices with W global and P personal weights."""

    hessian: np.ndarray  # (K, W + P, W + P), positive definite
    centre: np.ndarray  # (K, W + P)
    w: int

    def gradient(self, k, u, v):
        whole = self.hessian[k] @ (np.concatenate([u, v]) - self.centre[k])
        return whole[: self.w], whole[self.w :]

    def loss(self, u, vs):
        away = np.stack([np.concatenate([u, v]) for v in vs]) - self.centre
        return 0.5 * np.einsum("ki,kij,kj->k", away, self.hessian, away).mean()

    def norm(self, rows, columns):
        """The largest spectral norm of a block over devices: a Lipschitz constant."""
        return max(np.linalg.norm(h[rows, columns], 2) for h in self.hessian)


def system(rng, k, w, p):
    root = rng.normal(size=(k, w + p, w + p)) / (w + p) ** 0.5
    hessian = root @ root.transpose(0, 2, 1) + 0.05 * np.eye(w + p)
    return System(hessian, rng.normal(size=(k, w + p)), w)


def masks_of(rng, u, ratios, rotating):
    """Kept coordinates of each device: nested, by magnitude; or rotating, its own random order of the smaller half."""
    k, w = len(ratios), len(u)
    kept = np.ones((k, w), bool)
    for each, ratio in enumerate(ratios):
        order = np.argsort(np.abs(u), kind="stable")
        if rotating:
            order[: w // 2] = rng.permutation(order[: w // 2])
        kept[each, order[: int(ratio * w)]] = False
    return kept


def both_sides(seed):
    """Left and right side of the theorem for one run; rho_k is the true |u - u m|^2 / |u|^2, the theorem's least."""
    rng = np.random.default_rng(seed)
    k, w, p = int(rng.integers(2, 7)), int(rng.integers(4, 12)), int(rng.integers(2, 5))
    tau_u, tau_v, rounds = int(rng.integers(1, 6)), int(rng.integers(1, 6)), 30
    s, rotating = system(rng, k, w, p), bool(rng.integers(2))
    left_of, right_of = slice(0, w), slice(w, None)
    l_u, l_v, l_uv = s.norm(left_of, left_of), s.norm(right_of, right_of), s.norm(right_of, left_of)
    ratios = np.concatenate([[0.0], rng.uniform(0, 0.8, k - 1)])  # somebody keeps all, so coverage is at least 1
    u, vs = rng.normal(size=w), rng.normal(size=(k, p))
    eta_v = rng.uniform(0.3, 1) / l_v
    eta_u = rng.uniform(0.3, 1) * min(1 / (2 * l_u * tau_u), k**-0.5 / (13 * l_u * tau_u))
    first, gradients, pruning, apart, coverage = s.loss(u, vs), 0.0, [], 0.0, k
    for _ in range(rounds):
        masks = masks_of(rng, u, ratios, rotating)
        coverage = min(coverage, int(masks.sum(0).min()))
        true = ((u * ~masks) ** 2).sum(1) / (u @ u)
        pruning.append((u @ u) * true.sum())
        new, steps = np.zeros((k, w)), 0.0
        after = vs.copy()
        for each in range(k):
            part, v = u * masks[each], vs[each]
            for _ in range(tau_v):
                whole = s.gradient(each, u, v)[1]
                steps += whole @ whole / k
                v = v - eta_v * s.gradient(each, part, v)[1]
            after[each] = v
        shared = np.stack([s.gradient(each, u, after[each])[0] for each in range(k)])
        mean = shared.mean(0)
        gradients += eta_u * tau_u / 4 * (mean @ mean) + eta_v / 2 * steps
        spread = ((shared - mean) ** 2).sum(1).mean()
        for each in range(k):
            part = u * masks[each]
            drift = part.copy()
            for _ in range(tau_u):
                drift = drift - eta_u * masks[each] * s.gradient(each, drift, after[each])[0]
                at = np.stack([s.gradient(other, drift, after[other])[0] for other in range(k)])
                spread = max(spread, ((at - at.mean(0)) ** 2).sum(1).mean())
            new[each] = drift
        apart = max(apart, spread)
        u, vs = (new * masks).sum(0) / masks.sum(0), after
    kappa = 0.0 if coverage == k else k / coverage
    per_ratio = 9 / 4 * eta_u * tau_u * l_u**2 / coverage + eta_v * tau_v * l_uv**2 / (2 * k)
    local = 42 * l_u**2 * k / coverage * tau_u * (tau_u - 1) * eta_u**2
    right = first / rounds + np.mean(pruning) * per_ratio + eta_u * tau_u * (kappa + local) * apart  # F* >= 0
    return gradients / rounds, right


@pytest.mark.slow
@pytest.mark.parametrize("runs", [50, pytest.param(200, marks=pytest.mark.exhaustive)])
def test_the_bound_holds_in_every_run(runs):
    shares = np.array([left / right for left, right in map(both_sides, range(runs))])
    assert (shares <= 1).all()
    assert shares.max() > 0.05


def test_the_bound_holds():
    for seed in range(5):
        left, right = both_sides(seed)
        assert 0 < left <= right


@pytest.mark.parametrize("seed", range(4))  # masks of one order for all, and of an order of each device's own
def test_the_experiment_with_noise_trains_as_this_does(seed):
    rng = np.random.default_rng(seed)
    problem = drawn(rng)
    left, right = sides(problem, 0.0, 30, 1, rng)
    ours, looser = both_sides(seed)  # F* >= 0 here, and delta^2 over more places
    assert left == pytest.approx([ours], rel=1e-9)
    assert problem.least() > 0
    assert ours <= right <= looser


def test_no_point_is_below_the_least_loss():
    problem = drawn(np.random.default_rng(5))
    rng, least = np.random.default_rng(0), problem.least()
    for scale in (0.01, 0.1, 1.0, 10.0):
        assert problem.loss(scale * rng.normal(size=problem.w), scale * rng.normal(size=problem.vs.shape)) >= least


@pytest.mark.parametrize("seed", range(6))
def test_the_bound_holds_with_noise(seed):
    rng = np.random.default_rng(seed)
    problem = drawn(rng)
    left, right = sides(problem, 0.3, 30, 16, rng)
    quiet, _ = sides(problem, 0.0, 30, 16, rng)
    assert left.mean() > quiet.mean() or problem.rotating
    assert (left <= right).all()
