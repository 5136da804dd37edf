"""Who prunes how far, on what band and what is sent in a round: the plan before training, and its correction after it.

The rules are the optimum of `allocation` and the baselines to compare it with
(specs/wireless §4 and §6). A deadline is a share of T_full, the shortest round without pruning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar, Literal

import numpy as np

from fedbonsai.choice import Choice, choice
from fedbonsai.methods.wireless_pruning.allocation import (
    Flags,
    Floats,
    Load,
    Plan,
    PruningError,
    admit,
    allocate,
    allocate_blocks,
    alternating,
    common_ratio,
    decoupled,
    drop_stragglers,
    equal_bandwidth,
    min_latency,
    truncated,
)
from fedbonsai.methods.wireless_pruning.allocation.curve import curve
from fedbonsai.stages.settings import NOT_NEGATIVE, PART, outside, refuse

ROUNDING = 1e-9  # an upload that is cut by less than this is not cut


@dataclass(frozen=True)
class Problem:
    """What is to be planned."""

    load: Load
    snr: Floats
    bandwidth: float
    weights: Floats
    """lambda of each device in the objective."""
    ratio_max: float = 0.9
    cap: float = inf
    values: Floats | None = None
    """Who is served first where not all can be; the most devices where none are given."""
    error: PruningError | None = None
    """True error of pruning, for `optimum` with `surrogate = "error"`."""
    deadline: float = inf

    def among(self, chosen: Flags) -> Problem:
        """The same for some of the devices, all of whom can be served."""
        return replace(
            self, load=self.load.among(chosen), snr=self.snr[chosen], weights=self.weights[chosen], values=None
        )


class Allocation(Choice):
    """How ratios and bands are decided."""

    waits: ClassVar[bool] = True
    """Whether the round has a deadline."""

    @property
    def prunes(self) -> bool:
        """Whether anything must be prunable."""
        return True

    @property
    def by_error(self) -> bool:
        """Whether it needs `Problem.error`."""
        return False

    def plan(self, problem: Problem) -> Plan:
        """The plan of a round."""
        raise NotImplementedError


@choice("optimum")
class Optimum(Allocation):
    """The least weighted pruning that meets the deadline (P1); who cannot be served is dropped for the round."""

    surrogate: Literal["ratio", "error"] = "ratio"
    """What is least: the ratios, or the true errors of pruning by magnitude (7.5)."""
    block: float = 0.0
    """If positive: bands are whole numbers of blocks of so many Hz."""

    def __post_init__(self) -> None:
        """Refuse what is no band."""
        refuse(outside(self, block=NOT_NEGATIVE))

    @property
    def by_error(self) -> bool:
        """With the true errors as surrogate."""
        return self.surrogate == "error"

    def plan(self, problem: Problem) -> Plan:
        """`allocate`, or `allocate_blocks`, of the devices that can be served."""
        error = problem.error if self.by_error else None

        def solve(some: Problem) -> Plan:
            numbers = (some.load, some.snr, some.deadline, some.bandwidth, some.weights, some.ratio_max)
            if self.block:
                return allocate_blocks(*numbers, block=self.block, cap=some.cap, error=error)
            return allocate(*numbers, cap=some.cap, error=error)

        return served(problem, solve)


@choice("fixed")
class Fixed(Allocation):
    """One given ratio for all and the bands of the shortest round; no deadline. At 0 it is no pruning at all."""

    ratio: float = 0.0
    """Pruning ratio of every device."""
    waits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what is no ratio."""
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio = {self.ratio}: expected a share in [0, 1)")

    @property
    def prunes(self) -> bool:
        """At a ratio above 0."""
        return self.ratio > 0

    def plan(self, problem: Problem) -> Plan:
        """The bands of `min_latency`."""
        count, kept = len(problem.load), 1 - self.ratio
        seconds, bands = min_latency(problem.load, problem.snr, problem.bandwidth, kept, cap=problem.cap)
        everybody = np.ones(count, np.bool_)
        return Plan(np.full(count, self.ratio), bands, everybody, np.full(count, seconds))


@choice("common")
class Common(Allocation):
    """The least ratio that all devices can share (4.6)."""

    def plan(self, problem: Problem) -> Plan:
        """`common_ratio` of the devices that can be served."""
        return served(problem, lambda some: common_ratio(*_numbers(some), some.ratio_max, cap=some.cap))


@choice("equal")
class Equal(Allocation):
    """Equal bands, each device prunes as little as it can on its own."""

    def plan(self, problem: Problem) -> Plan:
        """`equal_bandwidth`."""
        return equal_bandwidth(*_numbers(problem), problem.ratio_max, cap=problem.cap)


@choice("decoupled")
class Decoupled(Allocation):
    """Bands of the shortest round at one ratio, then the least ratios on those bands."""

    initial: float = 0.5
    """The one ratio."""

    def __post_init__(self) -> None:
        """Refuse what is no ratio."""
        refuse(outside(self, initial=PART))

    def plan(self, problem: Problem) -> Plan:
        """`decoupled`."""
        return decoupled(*_numbers(problem), problem.ratio_max, self.initial, cap=problem.cap)


@choice("alternating")
class Alternating(Allocation):
    """Ratios and bands in turn from equal bands, which stalls (warning in 4.4); a baseline only."""

    step: Literal["min_max", "needed"] = "min_max"
    """Bands of the shortest round at the ratios, or the bands that the ratios need, with which nothing moves."""

    def plan(self, problem: Problem) -> Plan:
        """`alternating`."""
        return alternating(*_numbers(problem), problem.ratio_max, self.step, cap=problem.cap)


@choice("drop-stragglers")
class DropStragglers(Allocation):
    """No pruning; the largest set of devices that meet the deadline whole."""

    @property
    def prunes(self) -> bool:
        """Never."""
        return False

    def plan(self, problem: Problem) -> Plan:
        """`drop_stragglers`."""
        return drop_stragglers(*_numbers(problem), cap=problem.cap)


def _numbers(problem: Problem) -> tuple[Load, Floats, float, float]:
    return problem.load, problem.snr, problem.deadline, problem.bandwidth


def served(problem: Problem, solve: Callable[[Problem], Plan]) -> Plan:
    """A plan for everybody, or where there is none for those that can be served together (7.3)."""
    plan = solve(problem)
    if plan.feasible:
        return plan
    chosen = admit(*_numbers(problem), problem.ratio_max, problem.values, cap=problem.cap)
    while chosen.any():
        part = solve(problem.among(chosen))
        if part.feasible:
            return spread(part, chosen)
        # bands are whole blocks: the device that needs most of the band gives way
        needed = curve(problem.load, problem.snr, problem.deadline, problem.cap).bandwidth(1 - problem.ratio_max)
        chosen[np.where(chosen, needed, -1.0).argmax()] = False
    return plan


def spread(part: Plan, chosen: Flags) -> Plan:
    """A plan for some devices as a plan for all."""

    def wide(values: Floats) -> Floats:
        found = np.zeros(len(chosen))
        found[chosen] = values
        return found

    missing = int((~chosen).sum())
    reason = f"{missing} of {len(chosen)} devices are left out: they cannot be served together in time"
    active = chosen.copy()
    active[chosen] = part.active
    return Plan(wide(part.ratio), wide(part.bandwidth), active, wide(part.seconds), reason, None, part.multiplier)


@dataclass(frozen=True)
class Schedule:
    """A round as it goes: arrays have a value for each device."""

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

    @property
    def explores(self) -> bool:
        """Whether every device that trains prunes, so that masks of one ranking leave weights to nobody (1.5)."""
        return bool(self.trains.any()) and bool(self.ratio[self.trains].min() > 0)

    def figures(self) -> dict[str, float]:
        """Columns of the log; no deadline has none."""
        ratios = self.ratio[self.trains] if self.trains.any() else np.zeros(1)
        return {
            "mean_ratio": float(ratios.mean()),
            "least_ratio": float(ratios.min()),
            "round_latency": self.latency,
            "full_latency": self.full,
            **({"deadline": self.deadline} if self.deadline < inf else {}),
            "left_out": float((~self.trains).sum()),
            "missed": float((self.trains & ~self.sends).sum()),
            "cut_short": float((self.sends & (self.sent > self.ratio)).sum()),
        }


def scheduled(
    rule: Allocation,
    problem: Problem,
    share: float,
    true: tuple[Load, Floats] | None = None,
    remedy: Literal["drop", "extend"] = "drop",
) -> Schedule:
    """Plan a round by the channel that is predicted, and correct its uploads by the true one (7.2).

    Args:
        rule: how ratios and bands are decided.
        problem: by the predicted channel; its deadline is set here.
        share: phi: the deadline as a share of T_full.
        true: load and SNR-bandwidth products as they turn out; None where the prediction was true.
        remedy: what to do where not all can be served in time: ``drop`` leaves some out, ``extend`` moves the deadline to
            the share between T_min, the shortest that has a plan for all, and T_full. Where nobody can be served, as
            with slow processors that pruning does not relieve, it is moved in any case.
    """
    full = min_latency(problem.load, problem.snr, problem.bandwidth, cap=problem.cap)[0]
    deadline = share * full
    plan = rule.plan(replace(problem, deadline=deadline))
    if not plan.feasible or (remedy == "extend" and not plan.active.all()):
        least = min_latency(problem.load, problem.snr, problem.bandwidth, 1 - problem.ratio_max, cap=problem.cap)[0]
        deadline = max(deadline, least + share * (full - least))
        plan = rule.plan(replace(problem, deadline=deadline))
    limit = deadline if rule.waits else inf
    late, active = plan, plan.active
    if true is not None and active.any():
        load, snr = true[0].among(active), true[1][active]
        kept = 1 - plan.ratio[active]
        late = spread(
            truncated(load, snr, limit, problem.bandwidth, kept, weights=problem.weights[active], cap=problem.cap),
            active,
        )
    sent = np.where(late.ratio > plan.ratio + ROUNDING, late.ratio, plan.ratio)
    latency = late.latency if late.feasible else deadline
    return Schedule(active, plan.ratio, late.active & active, sent, late.bandwidth, latency, limit, full)
