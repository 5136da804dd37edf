"""The ways to decide who prunes how far and on what band, and what of a round's schedule each device is told.

The optimum of `allocation` and the baselines to compare it with (specs/wireless §4 and §6).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import ClassVar, Literal

import numpy as np

from fedbonsai.choice import Choice, choice
from fedbonsai.core import Device
from fedbonsai.methods.wireless_pruning.allocation import (
    Plan,
    Problem,
    Schedule,
    allocate,
    allocate_blocks,
    alternating,
    common_ratio,
    decoupled,
    drop_stragglers,
    equal_bandwidth,
    min_latency,
    served,
)
from fedbonsai.methods.wireless_pruning.client import Allocation
from fedbonsai.settings import NOT_NEGATIVE, PART, out_of_range, raise_all
from fedbonsai.stages.pruning.derived_masks import Derived
from fedbonsai.tree import seed_of


class Planner(Choice):
    """How ratios and bands are decided."""

    waits: ClassVar[bool] = True
    """Whether the round has a deadline."""

    @property
    def prunes(self) -> bool:
        """Tell whether anything must be prunable."""
        return True

    @property
    def by_error(self) -> bool:
        """Tell whether it needs `Problem.error`."""
        return False

    def plan(self, problem: Problem) -> Plan:
        """Plan a round."""
        raise NotImplementedError


@choice("optimum")
class Optimum(Planner):
    """The least weighted pruning that meets the deadline (P1); who cannot be served is dropped for the round."""

    surrogate: Literal["ratio", "error"] = "ratio"
    """What is least: the ratios, or the true errors of pruning by magnitude (7.5)."""
    block: float = 0.0
    """If positive: bands are whole numbers of blocks of so many Hz."""

    def __post_init__(self) -> None:
        """Refuse what is no band."""
        raise_all(out_of_range(self, block=NOT_NEGATIVE))

    @property
    def by_error(self) -> bool:
        """Tell whether the true errors are the surrogate."""
        return self.surrogate == "error"

    def plan(self, problem: Problem) -> Plan:
        """Solve by `allocate` or `allocate_blocks` for the devices that can be served."""
        error = problem.error if self.by_error else None

        def solve(some: Problem) -> Plan:
            numbers = (*some.limits, some.weights, some.ratio_max)
            if self.block:
                return allocate_blocks(*numbers, block=self.block, cap=some.cap, error=error)
            return allocate(*numbers, cap=some.cap, error=error)

        return served(problem, solve)


@choice("fixed")
class Fixed(Planner):
    """One given ratio for all and the bands of the shortest round; no deadline. At 0 it is no pruning at all."""

    ratio: float = 0.0
    """Pruning ratio of every device."""
    waits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what is no ratio."""
        raise_all(out_of_range(self, ratio=PART))

    @property
    def prunes(self) -> bool:
        """Tell whether the ratio is above 0."""
        return self.ratio > 0

    def plan(self, problem: Problem) -> Plan:
        """Take the bands of `min_latency`."""
        count, kept = len(problem.load), 1 - self.ratio
        seconds, bands = min_latency(problem.load, problem.snr, problem.bandwidth, kept, cap=problem.cap)
        everybody = np.ones(count, np.bool_)
        return Plan(np.full(count, self.ratio), bands, everybody, np.full(count, seconds))


@choice("common")
class Common(Planner):
    """The least ratio that all devices can share (4.6)."""

    def plan(self, problem: Problem) -> Plan:
        """Solve by `common_ratio` for the devices that can be served."""
        return served(problem, lambda some: common_ratio(*some.limits, some.ratio_max, cap=some.cap))


@choice("equal")
class Equal(Planner):
    """Equal bands, each device prunes as little as it can on its own."""

    def plan(self, problem: Problem) -> Plan:
        """Solve by `equal_bandwidth`."""
        return equal_bandwidth(*problem.limits, problem.ratio_max, cap=problem.cap)


@choice("decoupled")
class Decoupled(Planner):
    """Bands of the shortest round at one ratio, then the least ratios on those bands."""

    initial: float = 0.5
    """The one ratio."""

    def __post_init__(self) -> None:
        """Refuse what is no ratio."""
        raise_all(out_of_range(self, initial=PART))

    def plan(self, problem: Problem) -> Plan:
        """Solve by `decoupled`."""
        return decoupled(*problem.limits, problem.ratio_max, self.initial, cap=problem.cap)


@choice("alternating")
class Alternating(Planner):
    """Ratios and bands in turn from equal bands, which stalls (warning in 4.4); a baseline only."""

    step: Literal["min_max", "needed"] = "min_max"
    """Bands of the shortest round at the ratios, or the bands that the ratios need, with which nothing moves."""

    def plan(self, problem: Problem) -> Plan:
        """Solve by `alternating`."""
        return alternating(*problem.limits, problem.ratio_max, self.step, cap=problem.cap)


@choice("drop-stragglers")
class DropStragglers(Planner):
    """No pruning; the largest set of devices that meet the deadline whole."""

    @property
    def prunes(self) -> bool:
        """Say no: devices send all or nothing."""
        return False

    def plan(self, problem: Problem) -> Plan:
        """Solve by `drop_stragglers`."""
        return drop_stragglers(*problem.limits, cap=problem.cap)


def allocated(
    schedule: Schedule, devices: Sequence[Device], explore: float, seed: int, t: int
) -> dict[Device, Allocation]:
    """Tell each device its part of round ``t``.

    Random weights are kept only where every device that trains prunes, so that masks of one ranking would leave weights
    to nobody (specs/wireless §1.5).

    Args:
        schedule: of the round.
        devices: in its order.
        explore: share of the weights that is kept at random.
        seed: of the run.
        t: round.
    """
    if not (schedule.trains.any() and (schedule.ratio[schedule.trains] > 0).all()):
        explore = 0.0
    found: dict[Device, Allocation] = {}
    for k, device in enumerate(devices):
        mask = Derived(float(schedule.ratio[k]), explore, seed_of(seed, f"mask/{device.id}", t, 0))
        sends = float(schedule.sent[k]) if schedule.sends[k] else 1.0
        found[device] = Allocation(bool(schedule.trains[k]), mask, sends, float(schedule.bandwidth[k]))
    return found


def figures(schedule: Schedule) -> dict[str, float]:
    """Fill the log's columns of the schedule; no deadline has none."""
    ratios = schedule.ratio[schedule.trains] if schedule.trains.any() else np.zeros(1)
    return {
        "mean_ratio": float(ratios.mean()),
        "least_ratio": float(ratios.min()),
        "round_latency": schedule.latency,
        "full_latency": schedule.full,
        **({"deadline": schedule.deadline} if schedule.deadline < inf else {}),
        "left_out": float((~schedule.trains).sum()),
        "missed": float((schedule.trains & ~schedule.sends).sum()),
        "cut_short": float((schedule.sends & (schedule.sent > schedule.ratio)).sum()),
    }
