"""The family of means, and the plain one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedbonsai.choice import Choice, choice
from fedbonsai.settings import Range
from fedbonsai.stages.robust.votes import Votes
from fedbonsai.tree import Weights

MINORITY = Range("a share in (0, 0.5)", lambda value: 0 < value < 0.5)


@dataclass(frozen=True)
class Decided:
    """The change that a rule made of many, and how much each device had a part in it; shares sum to 1."""

    change: Weights
    shares: Sequence[float]


class MeanRule(Choice):
    """How the server makes one change of those of all devices of a round."""

    streams: ClassVar[bool] = False
    """Whether updates are added as they come, weighted by samples; else all are held until the last came."""

    def fault(self, devices: int) -> str:
        """Why the rule has no meaning for so many devices; empty if it has."""
        return ""

    def beside(self, others: Mapping[str, bool]) -> list[str]:
        """A line for each of a method's settings that holds and cannot stand beside the rule.

        Args:
            others: what only a plain mean bears, as half a sentence, and whether it is set.
        """
        if self.streams:
            return []
        text = "which no mean bears that lets all devices count alike: leave one out"
        return [f"mean = {self.choice_name}: {why}, {text}" for why, holds in others.items() if holds]

    def refused(self, votes: Votes) -> dict[int, str]:
        """Places of the changes that shall not count at all, and why."""
        return {}

    def decide(self, votes: Votes) -> Decided:
        """The change; a coordinate of which nothing can be said gets 0 and stays as it was."""
        raise NotImplementedError


@choice("plain")
class Plain(MeanRule):
    """The mean, weighted by samples: one liar can turn it."""

    streams: ClassVar[bool] = True

    def decide(self, votes: Votes) -> Decided:
        """Of votes, which bring no samples, the mean where all count alike."""
        shares = [1 / len(votes)] * len(votes)
        return Decided(votes.mean(shares), shares)


def liars(share: float, devices: int) -> int:
    """How many of so many devices are a share, rounded down.

    >>> liars(0.2, 10), liars(0.2, 9), liars(0.3, 10)
    (2, 1, 3)
    """
    return math.floor(share * devices + 1e-9)


def too_few(rule: MeanRule, share: float, devices: int, needed: int) -> str:
    """Why a rule has no meaning for so many devices: nobody could lie, or those who may are too many.

    Args:
        rule: that asks.
        share: of the devices that may lie.
        devices: of a round.
        needed: fewest devices, where so many may lie.
    """
    count, name = liars(share, devices), rule.choice_name
    if not count:
        return (
            f"mean = {name}: share = {share:g} of {devices} devices is less than one, against whom nothing would be done; "
            f"ask at least {math.ceil(1 / share - 1e-9)}, or raise mean.share"
        )
    if devices < needed:
        return (
            f"mean = {name}: of {devices} devices {count} may lie (share = {share:g}), which takes {needed} devices; "
            "ask more, or lower mean.share"
        )
    return ""
