"""Means of each coordinate by itself: the median, and the mean without the ends.

Yin, Chen, Kannan, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedbonsai.choice import choice
from fedbonsai.settings import out_of_range, raise_all
from fedbonsai.stages.robust.rule import MINORITY, Decided, MeanRule, liars, too_few
from fedbonsai.stages.robust.votes import Votes
from fedbonsai.tree import Weights

Ends = Callable[
    [Tensor], tuple[Tensor, Tensor]
]  # votes on each coordinate -> first rank that counts, and first that does not
FEWEST = 3  # votes among which one liar is a minority


@choice("median")
class Median(MeanRule):
    """The median of each coordinate; of an even number the mean of the two in the middle."""

    def fault(self, devices: int) -> str:
        """Among two nobody is in the middle."""
        if devices >= FEWEST:
            return ""
        return f"mean = median: {devices} devices, among which nobody is in the middle; ask at least {FEWEST}"

    def decide(self, votes: Votes) -> Decided:
        """Coordinates on which fewer than three vote stay as they were."""

        def middle(count: Tensor) -> tuple[Tensor, Tensor]:
            low, high = (count - 1).div(2, rounding_mode="floor"), count.div(2, rounding_mode="floor") + 1
            return low, torch.where(count < FEWEST, low, high)

        return _between(votes, middle)


@choice("trimmed")
class Trimmed(MeanRule):
    """The mean of each coordinate without its largest and its smallest values, as many of each as devices may lie."""

    share: float = 0.2
    """Share of the devices that may lie."""

    def __post_init__(self) -> None:
        """Refuse what is no minority."""
        raise_all(out_of_range(self, share=MINORITY))

    def fault(self, devices: int) -> str:
        """Something must be cut, and something be left."""
        return too_few(self, self.share, devices, 2 * liars(self.share, devices) + 1)

    def decide(self, votes: Votes) -> Decided:
        """As many are cut whoever votes, so that those who may lie never decide; where nobody is left nothing moves."""
        cut = liars(self.share, len(votes))
        return _between(votes, lambda count: (count.new_full(count.shape, cut), count - cut))


def _between(votes: Votes, ends: Ends) -> Decided:
    """The mean of the sorted values of each coordinate from the first rank to below the last; 0 where there are none."""
    found: Weights = {}
    ranks = torch.arange(len(votes))[:, None]
    for name in votes.names:
        values, counts = votes.stacked(name)
        first, last = ends(counts.sum(0))
        ordered = torch.where(counts, values, torch.inf).sort(0).values  # who has no vote stands behind all
        inside = (ranks >= first) & (ranks < last)
        total = torch.where(inside, ordered, 0.0).sum(0)
        found[name] = votes.shaped(name, total / inside.sum(0).clamp(min=1))
    return Decided(found, [1 / len(votes)] * len(votes))
