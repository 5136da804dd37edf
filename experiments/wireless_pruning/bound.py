"""specs/wireless check 14 with noise: the theorem of specs/wireless §3.1 on quadratics, and how its floor grows.

    python -m experiments.wireless_pruning.bound

Writes ``bound.json``. F_k(u, v) = (1/2) (z - c)^T H (z - c) with z = (u, v); Gaussian noise is added to every gradient of
every step. Expectations are means over repeats that share the system and the start; all constants are the smallest that
the assumptions allow: rho_k the true |u - u m|^2 / |u|^2, delta^2 and Gamma the extremes of all repeats, F* exact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbonsai.runs.provenance import commit

Array = NDArray[np.float64]

SYSTEMS, ROUNDS, REPEATS = 120, 30, 64
NOISE = (0.0, 0.3, 1.0)  # standard deviation of each coordinate of a stochastic gradient
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of the floor
FLOORS, LONG = 20, 200  # systems; rounds, of which the second half is the floor


@dataclass(frozen=True)
class Problem:
    """Quadratics of K devices with W global and P personal weights, a start, and how they are trained."""

    hessian: Array
    """(K, W + P, W + P), positive definite."""
    centre: Array
    """(K, W + P)."""
    u: Array
    """(W,)."""
    vs: Array
    """(K, P)."""
    ratios: Array
    """(K,)."""
    rotating: bool
    """Each device orders the smaller half of the weights at random, instead of one order by magnitude for all."""
    tau_u: int
    tau_v: int
    eta_u: float
    eta_v: float

    @property
    def k(self) -> int:
        """Devices."""
        return len(self.vs)

    @property
    def w(self) -> int:
        """Global weights."""
        return len(self.u)

    def norm(self, rows: slice, columns: slice) -> float:
        """A Lipschitz constant: the largest spectral norm of a block over devices."""
        return max(float(np.linalg.norm(h[rows, columns], 2)) for h in self.hessian)

    @property
    def constants(self) -> tuple[float, float, float]:
        """L_u, L_v and L_uv."""
        one, two = slice(0, self.w), slice(self.w, None)
        return self.norm(one, one), self.norm(two, two), self.norm(two, one)

    def gradient(self, device: int, u: Array, v: Array) -> Array:
        """(repeats, W + P) of one device at (repeats, W) and (repeats, P)."""
        return (np.concatenate([u, v], 1) - self.centre[device]) @ self.hessian[device]

    def shared(self, u: Array, vs: Array) -> Array:
        """(repeats, K, W): each device's gradient by the global part, at (repeats, W) and (repeats, K, P)."""
        return np.stack([self.gradient(k, u, vs[:, k])[:, : self.w] for k in range(self.k)], 1)

    def loss(self, u: Array, vs: Array) -> float:
        """F at (W,) and (K, P)."""
        away = np.concatenate([np.broadcast_to(u, (self.k, self.w)), vs], 1) - self.centre
        return float(0.5 * np.einsum("ki,kij,kj->k", away, self.hessian, away).mean())

    def least(self) -> float:
        """F*: personal parts are minimised away (Schur complements), then the global one."""
        w = self.w
        schur = np.stack([h[:w, :w] - h[:w, w:] @ np.linalg.solve(h[w:, w:], h[w:, :w]) for h in self.hessian])
        u = np.linalg.solve(schur.sum(0), np.einsum("kij,kj->i", schur, self.centre[:, :w]))
        vs = [
            c[w:] - np.linalg.solve(h[w:, w:], h[w:, :w] @ (u - c[:w]))
            for h, c in zip(self.hessian, self.centre, strict=True)
        ]
        return self.loss(u, np.stack(vs))


def drawn(rng: np.random.Generator) -> Problem:
    """A random system, with step sizes that the theorem allows whatever the coverage is."""
    k, w, p = int(rng.integers(2, 7)), int(rng.integers(4, 12)), int(rng.integers(2, 5))
    tau_u, tau_v = int(rng.integers(1, 6)), int(rng.integers(1, 6))
    root = rng.normal(size=(k, w + p, w + p)) / (w + p) ** 0.5
    hessian = root @ root.transpose(0, 2, 1) + 0.05 * np.eye(w + p)
    centre, rotating = rng.normal(size=(k, w + p)), bool(rng.integers(2))
    ratios = np.concatenate([[0.0], rng.uniform(0, 0.8, k - 1)])  # somebody keeps all, so Gamma is at least 1
    made = Problem(
        hessian, centre, rng.normal(size=w), rng.normal(size=(k, p)), ratios, rotating, tau_u, tau_v, 0.0, 0.0
    )
    l_u, l_v, _ = made.constants
    eta_v = rng.uniform(0.3, 1) / l_v
    return replace(
        made, eta_v=eta_v, eta_u=rng.uniform(0.3, 1) * min(1 / (2 * l_u * tau_u), k**-0.5 / (13 * l_u * tau_u))
    )


def masks_of(problem: Problem, u: Array, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(repeats, K, W), true where a device keeps a coordinate of its repeat's u."""
    order = np.argsort(np.abs(u), axis=1, kind="stable")
    kept = np.ones((len(u), problem.k, problem.w), bool)
    for place, ascending in enumerate(order):
        for device, ratio in enumerate(problem.ratios):
            half = ascending.copy()
            if problem.rotating:
                half[: problem.w // 2] = rng.permutation(half[: problem.w // 2])
            kept[place, device, half[: int(ratio * problem.w)]] = False
    return kept


@dataclass(frozen=True)
class Round:
    """What one round gives to both sides, for each repeat (repeats,)."""

    gradients: Array
    """Its part of the left side."""
    pruning: Array
    """|u|^2 times the sum of rho_k."""
    true: Array
    """Mean over devices of rho_k."""
    apart: Array
    """delta^2 at (u^t, V^(t+1)), where the derivation needs it."""
    coverage: int
    """The least |S_i| of all repeats."""


def trained(problem: Problem, noise: float, rounds: int, repeats: int, rng: np.random.Generator) -> list[Round]:
    """The protocol of specs/wireless §1.3."""
    one, w = problem, problem.w
    u, vs = np.tile(problem.u, (repeats, 1)), np.tile(problem.vs, (repeats, 1, 1))

    def disturbed(gradient: Array) -> Array:
        return gradient + noise * rng.normal(size=gradient.shape) if noise else gradient

    found: list[Round] = []
    for _ in range(rounds):
        masks = masks_of(problem, u, rng)
        squared = (u**2).sum(1)
        ratios = ((u[:, None] * ~masks) ** 2).sum(2) / squared[:, None]
        parts, steps = u[:, None] * masks, np.zeros(repeats)
        after, new = vs.copy(), np.zeros_like(parts)
        for k in range(problem.k):
            for _ in range(problem.tau_v):
                steps += (one.gradient(k, u, after[:, k])[:, w:] ** 2).sum(1) / problem.k
                after[:, k] -= problem.eta_v * disturbed(one.gradient(k, parts[:, k], after[:, k])[:, w:])
            drift = parts[:, k]
            for _ in range(problem.tau_u):
                drift = drift - problem.eta_u * masks[:, k] * disturbed(one.gradient(k, drift, after[:, k])[:, :w])
            new[:, k] = drift
        shared = problem.shared(u, after)
        mean = shared.mean(1)
        left = problem.eta_u * problem.tau_u / 4 * (mean**2).sum(1) + problem.eta_v / 2 * steps
        apart = ((shared - mean[:, None]) ** 2).sum(2).mean(1)
        found.append(Round(left, squared * ratios.sum(1), ratios.mean(1), apart, int(masks.sum(1).min())))
        u, vs = (new * masks).sum(1) / masks.sum(1), after
    return found


def sides(problem: Problem, noise: float, rounds: int, repeats: int, rng: np.random.Generator) -> tuple[Array, float]:
    """Left side of the theorem for each repeat (their mean is its expectation), and its right side."""
    done, k, tau_u, eta_u = trained(problem, noise, rounds, repeats, rng), problem.k, problem.tau_u, problem.eta_u
    l_u, l_v, l_uv = problem.constants
    gamma = min(each.coverage for each in done)
    kappa = 0.0 if gamma == k else k / gamma
    delta = max(float(each.apart.max()) for each in done)
    sigma_u, sigma_v = problem.w * noise**2, problem.vs.shape[1] * noise**2  # variances of whole gradients
    pruning = float(np.mean([each.pruning for each in done]))
    right = (problem.loss(problem.u, problem.vs) - problem.least()) / rounds
    right += pruning * (9 / 4 * eta_u * tau_u * l_u**2 / gamma + problem.eta_v * problem.tau_v * l_uv**2 / (2 * k))
    right += problem.tau_v * l_v * problem.eta_v**2 * sigma_v / 2 + l_u * eta_u**2 * tau_u * k * sigma_u / gamma**2
    local = l_u**2 * k / gamma * (tau_u - 1) * eta_u**2
    right += eta_u * tau_u * (kappa * delta + 42 * local * tau_u * delta + 7 * local * sigma_u)
    return np.mean([each.gradients for each in done], axis=0), right


def share(noise: float) -> dict[str, Any]:
    """Left by right side over random systems: of expectations, of their upper ends, and of single runs."""
    means: list[float] = []
    upper: list[float] = []
    single: list[float] = []
    for seed in range(SYSTEMS):
        rng = np.random.default_rng(seed)
        problem = drawn(rng)
        repeats = REPEATS if noise or problem.rotating else 1
        left, right = sides(problem, noise, ROUNDS, repeats, rng)
        wide = 1.96 * float(left.std(ddof=1)) / len(left) ** 0.5 if repeats > 1 else 0.0
        means.append(float(left.mean()) / right)
        upper.append((float(left.mean()) + wide) / right)
        single += (left / right).tolist()
    return {
        "systems": SYSTEMS,
        "hold": sum(value <= 1 for value in upper),
        "largest share": max(means),
        "largest share, upper end of the 95 % interval": max(upper),
        "median share": float(np.median(means)),
        "single runs": len(single),
        "single runs above": sum(value > 1 for value in single),
        "largest share of a single run": max(single),
    }


def line(x: Array, y: Array) -> tuple[float, float, float]:
    """Intercept, slope and R squared."""
    slope, intercept = np.polyfit(x, y, 1)
    return (
        float(intercept),
        float(slope),
        float(1 - ((y - intercept - slope * x) ** 2).sum() / ((y - y.mean()) ** 2).sum()),
    )


def floors(problem: Problem, noise: float, repeats: int, seed: int) -> tuple[Array, Array]:
    """Mean over devices of rho_k, and the floor of the left side, at each of `RATIOS`; all devices but the first prune."""
    found: list[tuple[float, float]] = []
    for ratio in RATIOS:
        ratios = np.where(np.arange(problem.k) == 0, 0.0, ratio)
        done = trained(replace(problem, ratios=ratios), noise, LONG, repeats, np.random.default_rng(seed))[LONG // 2 :]
        found.append((float(np.mean([each.true for each in done])), float(np.mean([each.gradients for each in done]))))
    x, y = zip(*found, strict=True)
    return np.array(x), np.array(y)


def growth(noise: float, rotating: bool) -> dict[str, Any]:
    """How the floor grows: a line over the mean of rho_k, and over the mean share of pruned weights."""
    rows: dict[str, list[tuple[float, float, float]]] = {"true": [], "share": []}
    repeats = 8 if noise or rotating else 1
    for seed in range(FLOORS):
        problem = replace(drawn(np.random.default_rng(1000 + seed)), rotating=rotating)
        true, floor = floors(problem, noise, repeats, seed)
        pruned = np.floor(np.array(RATIOS) * problem.w) / problem.w * (problem.k - 1) / problem.k
        for name, x in (("true", true), ("share", pruned)):
            rows[name].append(line(x, floor))
    found: dict[str, Any] = {"systems": FLOORS, "rounds": LONG, "repeats": repeats}
    for name, what in (("true", "over the mean of rho_k"), ("share", "over the share of pruned weights")):
        table = np.array(rows[name])
        low, middle, high = np.quantile(table[:, 2], [0.1, 0.5, 0.9])
        found[what] = {
            "R squared, tenth percentile, median, ninetieth": [float(low), float(middle), float(high)],
            "slopes above 0": int((table[:, 1] > 0).sum()),
            "R squared at least .9": int((table[:, 2] >= 0.9).sum()),
        }
    return found


def main() -> None:
    bound = {str(noise): share(noise) for noise in NOISE}
    for noise, found in bound.items():
        print(f"noise {noise}:", json.dumps(found), flush=True)
    floor = {}
    for rotating in (False, True):
        for noise in NOISE[:2]:
            floor[f"{'rotating' if rotating else 'nested'} masks, noise {noise}"] = growth(noise, rotating)
    for name, found in floor.items():
        print(name, json.dumps(found), flush=True)
    record = {"bound": bound, "floor": floor, "seeds": [0, SYSTEMS - 1], "floor seeds": [1000, 1000 + FLOORS - 1]}
    text = json.dumps({**record, "numpy": np.__version__, "commit": commit()}, indent=1)
    (Path(__file__).parent / "bound.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
