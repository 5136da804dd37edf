"""A round from its plan to its uploads: whom a plan can serve, when its deadline moves, and what the channel then carries.

A deadline is a share of T_full, the shortest round without pruning (specs/wireless §2.3, §7.2 and §7.3). How ratios and
bands are decided is the caller's: any function from a `Problem` to a `Plan`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

import numpy as np

from fedbonsai.methods.wireless_pruning.allocation.curve import curve
from fedbonsai.methods.wireless_pruning.allocation.infeasible import admit
from fedbonsai.methods.wireless_pruning.allocation.late import truncated
from fedbonsai.methods.wireless_pruning.allocation.minmax import min_latency
from fedbonsai.methods.wireless_pruning.allocation.problem import Flags, Floats, Load, Plan
from fedbonsai.methods.wireless_pruning.allocation.surrogate import PruningError

ROUNDING = 1e-9  # an upload that is cut by less than this is not cut


@dataclass(frozen=True)
class Problem:
    """What is to be planned; arrays have a value for each device."""

    load: Load
    snr: Floats
    """SNR-bandwidth products, Hz."""
    bandwidth: float
    """Hz, for all together."""
    weights: Floats
    """lambda: how much a device counts in the objective."""
    ratio_max: float = 0.9
    cap: float = inf
    """Most bit/s/Hz."""
    values: Floats | None = None
    """Who is served first where not all can be; the most devices where none are given."""
    error: PruningError | None = None
    """True error of pruning, for who minimises it instead of the ratio."""
    deadline: float = inf
    """Seconds."""

    @property
    def limits(self) -> tuple[Load, Floats, float, float]:
        """Return load, products, deadline and bandwidth, with which every solver begins."""
        return self.load, self.snr, self.deadline, self.bandwidth

    def among(self, chosen: Flags) -> Problem:
        """Pose the same for some of the devices, all of whom can be served."""
        load, snr, weights = self.load.among(chosen), self.snr[chosen], self.weights[chosen]
        return replace(self, load=load, snr=snr, weights=weights, values=None)

    def shortest(self, kept: float = 1.0) -> float:
        """Find the seconds of the shortest round at a kept fraction: T_full at 1, T_min at the least one."""
        return min_latency(self.load, self.snr, self.bandwidth, kept, cap=self.cap)[0]


Solver = Callable[[Problem], Plan]


@dataclass(frozen=True)
class Schedule:
    """A round as it goes; arrays have a value for each device."""

    trains: Flags
    """Who trains shared weights; the others only their personal ones."""
    ratio: Floats
    """Pruning ratio of training."""
    sends: Flags
    """Who is in time with an upload."""
    sent: Floats
    """Pruning ratio of the upload: above `ratio` where it was cut short."""
    bandwidth: Floats
    """Hz of the upload."""
    latency: float
    """Seconds of the round: of the slowest that sends; where nobody does, the deadline."""
    deadline: float
    """T_th, seconds; inf where the rule knows none."""
    full: float
    """T_full, seconds: the shortest round without pruning."""


def scheduled(
    solve: Solver,
    problem: Problem,
    share: float,
    true: tuple[Load, Floats] | None = None,
    remedy: Literal["drop", "extend"] = "drop",
    waits: bool = True,
) -> Schedule:
    """Plan a round by the channel that is predicted, and correct its uploads by the true one (specs/wireless §7.2).

    Args:
        solve: how ratios and bands are decided.
        problem: by the predicted channel; its deadline is set here.
        share: phi: the deadline as a share of T_full.
        true: load and SNR-bandwidth products as they turn out; None where the prediction was true.
        remedy: what to do where not all can be served in time: ``drop`` leaves some out, ``extend`` moves the deadline to
            the share between T_min, the shortest that has a plan for all, and T_full. Where nobody can be served, as
            with slow processors that pruning does not relieve, it is moved in any case.
        waits: whether the deadline holds for uploads.
    """
    full = problem.shortest()
    deadline = share * full
    plan = solve(replace(problem, deadline=deadline))
    if not plan.feasible or (remedy == "extend" and not plan.active.all()):
        least = problem.shortest(1 - problem.ratio_max)
        deadline = max(deadline, least + share * (full - least))
        plan = solve(replace(problem, deadline=deadline))
    limit = deadline if waits else inf
    late, active = plan, plan.active
    if true is not None and active.any():
        load, snr, kept, weights = (
            true[0].among(active),
            true[1][active],
            1 - plan.ratio[active],
            problem.weights[active],
        )
        late = truncated(load, snr, limit, problem.bandwidth, kept, weights=weights, cap=problem.cap).spread(active)
    sent = np.where(late.ratio > plan.ratio + ROUNDING, late.ratio, plan.ratio)
    latency = late.latency if late.feasible else deadline
    return Schedule(active, plan.ratio, late.active & active, sent, late.bandwidth, latency, limit, full)


def served(problem: Problem, solve: Solver) -> Plan:
    """Plan for everybody, or where that cannot be for those that can be served together (specs/wireless §7.3)."""
    plan = solve(problem)
    if plan.feasible:
        return plan
    chosen = admit(*problem.limits, problem.ratio_max, problem.values, cap=problem.cap)
    while chosen.any():
        part = solve(problem.among(chosen))
        if part.feasible:
            return part.spread(chosen)
        # bands are whole blocks: the device that needs most of the band gives way
        needed = curve(problem.load, problem.snr, problem.deadline, problem.cap).bandwidth(1 - problem.ratio_max)
        chosen[np.where(chosen, needed, -1.0).argmax()] = False
    return plan
