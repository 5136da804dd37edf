"""Seconds of the wireless allocation beside general solvers, and how close they come: ``python -m bench.allocation``.

Cells of specs/wireless §5 with more devices in more band (1 MHz each), deadline at half the round without
pruning among those that half serves. cvxpy (Clarabel) solves the convex form, scipy's SLSQP the original problem; both
only where they end in seconds.
"""

from __future__ import annotations

import time
import warnings

import cvxpy as cp
import numpy as np
from scipy.optimize import minimize

from bench.record import interleaved, save
from fedbonsai.devices.channel import Cell, rate
from fedbonsai.methods.wireless_pruning.allocation import Load, allocate, allocate_blocks, common_ratio, min_latency
from fedbonsai.methods.wireless_pruning.allocation.rate import LN2

SIZES = (10, 100, 1000)
PRUNABLE = 1_658_240  # weights of the two-convolution network but for its head
CVXPY_UP_TO, SLSQP_UP_TO = 1000, 100
RATIO_MAX = 0.9


def problem(devices: int) -> tuple[Load, np.ndarray, float, float]:
    """Load, SNR-bandwidth products, deadline and bandwidth; no shadow, so that one device does not decide alone."""
    cell, ids = Cell(shadowing=0.0, fading="none", bandwidth=1e6 * devices), [str(i) for i in range(devices)]
    clock = np.random.default_rng(devices).uniform(1e9, 3e9, devices)
    zero = np.zeros(devices)
    load = Load(zero, 320 * 20 * PRUNABLE / clock, zero, np.full(devices, 32.0 * PRUNABLE))
    snr = cell.snr_bandwidth(0, ids, 0)
    return load, snr, 0.5 * min_latency(load, snr, cell.bandwidth)[0], cell.bandwidth


def by_cvxpy(load: Load, snr: np.ndarray, deadline: float, bandwidth: float) -> float:
    k = len(load)
    unit = bandwidth / k
    share, kept, speed = cp.Variable(k, nonneg=True), cp.Variable(k), cp.Variable(k, nonneg=True)
    slow, bits = load.b / deadline, load.s1 / (unit * deadline)
    limits = [
        speed <= -cp.rel_entr(share, share + snr / unit) / LN2,
        kept <= 1 / slow - cp.multiply(bits / slow, cp.inv_pos(cp.multiply(slow, speed) + bits)),
        cp.sum(share) <= k,
        kept <= 1,
        kept >= 1 - RATIO_MAX,
    ]
    return float(cp.Problem(cp.Minimize(cp.sum(1 - kept) / k), limits).solve(solver=cp.CLARABEL))


def by_slsqp(load: Load, snr: np.ndarray, deadline: float, bandwidth: float) -> float:
    k = len(load)

    def room(v: np.ndarray) -> np.ndarray:
        return 1 - load.seconds(1 - v[:k], rate(v[k:] * bandwidth, snr)) / deadline

    limits = [{"type": "ineq", "fun": room}, {"type": "ineq", "fun": lambda v: 1 - v[k:].sum()}]
    start = np.concatenate([np.full(k, 0.5), np.full(k, 1 / k)])
    bounds = [(0, RATIO_MAX)] * k + [(1e-9, 1)] * k
    options = {"maxiter": 300, "ftol": 1e-10}
    end = minimize(lambda v: v[:k].mean(), start, method="SLSQP", bounds=bounds, constraints=limits, options=options)
    return float(end.fun)


def main() -> None:
    rows: dict[str, object] = {}
    print("| devices | solver | seconds | times ours | mean ratio above ours |\n|---|---|---|---|---|")
    for devices in SIZES:
        given = problem(devices)
        plan = allocate(*given)
        assert plan.feasible, plan.reason
        ours = {
            "allocate": lambda given=given: allocate(*given),
            "allocate_blocks": lambda given=given: allocate_blocks(*given),
            "common_ratio": lambda given=given: common_ratio(*given),
            "min_latency": lambda given=given: min_latency(given[0], given[1], given[3]),
        }
        row: dict[str, dict[str, float]] = {}
        for name, took in interleaved(ours, 9).items():
            row[name] = {"seconds": took["median"], "least": took["min"]}
        for name in ("allocate_blocks", "common_ratio"):
            row[name]["above"] = ours[name]().objective() - plan.objective()
        for name, solve, most in (("cvxpy", by_cvxpy, CVXPY_UP_TO), ("slsqp", by_slsqp, SLSQP_UP_TO)):
            if devices <= most:
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore")
                    start = time.perf_counter()
                    value = solve(*given)
                    row[name] = {"seconds": time.perf_counter() - start, "above": value - plan.objective()}
        for name, facts in row.items():
            facts["times ours"] = facts["seconds"] / row["allocate"]["seconds"]
            above = f"{facts['above']:+.1e}" if "above" in facts else ""
            print(f"| {devices} | {name} | {facts['seconds']:.4f} | {facts['times ours']:.1f} | {above} |")
        rows[str(devices)] = {"mean ratio": plan.objective(), "solvers": row}
    save("allocation", {"ratio_max": RATIO_MAX, "devices": rows})


if __name__ == "__main__":
    main()
