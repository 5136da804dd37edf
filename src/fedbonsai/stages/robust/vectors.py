"""Means of whole changes: bounded norms, Krum, and the geometric median."""

from __future__ import annotations

import math
import statistics

import torch

from fedbonsai import tree
from fedbonsai.choice import choice
from fedbonsai.settings import COUNT, NOT_NEGATIVE, POSITIVE, out_of_range, raise_all, when
from fedbonsai.stages.robust.coordinates import Median
from fedbonsai.stages.robust.rule import MINORITY, Decided, MeanRule, liars, too_few
from fedbonsai.stages.robust.votes import Votes

STILL = 1e-6  # of its own length, by which the geometric median still moves when it has arrived


@choice("bounded")
class Bounded(MeanRule):
    """The mean of changes that are shortened to a bound where they are longer (Sun et al. 2019, arXiv 1911.07963)."""

    norm: float = 0.0
    """Longest change that counts whole; 0: the median of the round's norms."""
    refuse: float = 0.0
    """If positive: a change more than so many times as long as the bound is refused."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        wrong = 0 < self.refuse < 1, f"refuse = {self.refuse:g}: expected 0, or at least 1"
        raise_all(out_of_range(self, norm=NOT_NEGATIVE, refuse=NOT_NEGATIVE) + when(wrong))

    def fault(self, devices: int) -> str:
        """The median of two norms is moved by each."""
        if self.norm or devices >= 3:
            return ""
        return f"mean = bounded: of {devices} devices' norms there is no median that one could not move; set mean.norm"

    def bound(self, votes: Votes) -> float:
        """Longest change that counts whole."""
        return self.norm or statistics.median(votes.norms())

    def refused(self, votes: Votes) -> dict[int, str]:
        """Changes of a length that no honest one has."""
        if not self.refuse:
            return {}
        most = self.refuse * self.bound(votes)
        return {
            place: f"its change has the norm {norm:.3g}, more than {most:.3g} (mean.refuse = {self.refuse:g})"
            for place, norm in enumerate(votes.norms())
            if norm > most
        }

    def decide(self, votes: Votes) -> Decided:
        """Shorten, and average."""
        bound = self.bound(votes)
        short = [
            {name: value * (bound / norm) for name, value in change.items()} if norm > bound else change
            for change, norm in zip(votes.changes, votes.norms(), strict=True)
        ]
        shares = [1 / len(votes)] * len(votes)
        return Decided(Votes(short, votes.held).mean(shares), shares)


@choice("krum")
class Krum(MeanRule):
    """The change whose nearest neighbours are nearest, or the mean of several such.

    Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    NIPS 2017. Of n devices of which f may lie, the score of a change is the sum of its squared distances to the n - f - 2
    nearest others. Where scores tie the shorter change goes first.
    """

    share: float = 0.2
    """Share of the devices that may lie."""
    keep: int = 1
    """How many changes are averaged: 1 is Krum, more is multi-Krum; 0: all but those that may lie."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        raise_all(out_of_range(self, share=MINORITY, keep=NOT_NEGATIVE))

    def fault(self, devices: int) -> str:
        """A score needs one neighbour who does not lie at least: n >= 2 f + 3."""
        count = liars(self.share, devices)
        if text := too_few(self, self.share, devices, 2 * count + 3):
            return text
        if self.keep <= devices - count:
            return ""
        most = devices - count
        return f"mean = krum: keep = {self.keep} of {devices} devices of which {count} may lie: expected at most {most}"

    def decide(self, votes: Votes) -> Decided:
        """The mean of those of the best scores."""
        devices = len(votes)
        count = liars(self.share, devices)
        squares = votes.squares().fill_diagonal_(torch.inf)
        scores = squares.sort(1).values[:, : devices - count - 2].sum(1).tolist()
        order = sorted(zip(scores, votes.norms(), range(devices), strict=True))
        kept = self.keep or devices - count
        chosen = {place for _, _, place in order[:kept]}
        shares = [1 / kept if place in chosen else 0.0 for place in range(devices)]
        return Decided(votes.mean(shares), shares)


@choice("geometric")
class Geometric(MeanRule):
    """The geometric median, from which the sum of distances to all changes is least (RFA).

    Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", IEEE TSP 2022: the smoothed Weiszfeld algorithm.
    Differs: it begins at the coordinates' medians, and all devices count alike, where RFA weighs by samples.
    """

    smoothing: float = 1e-6
    """Distances below it count as it (nu)."""
    steps: int = 30
    """Most steps of the algorithm; it ends where it no longer moves."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        raise_all(out_of_range(self, smoothing=POSITIVE, steps=COUNT))

    def fault(self, devices: int) -> str:
        """Between two every point is a median."""
        if devices >= 3:
            return ""
        return f"mean = geometric: {devices} devices, between which every point is a median; ask at least 3"

    def decide(self, votes: Votes) -> Decided:
        """Means weighted by one over the distance to the mean before."""
        point, shares = Median().decide(votes).change, [1 / len(votes)] * len(votes)
        for _ in range(self.steps):
            distances = votes.squares([point])[:, 0].sqrt().clamp(min=self.smoothing)
            parts = 1 / distances
            shares = (parts / parts.sum()).tolist()
            before, point = point, votes.mean(shares)
            moved = tree.norm(tree.subtract(point, before))
            if moved <= STILL * math.hypot(tree.norm(point), self.smoothing):
                break
        return Decided(point, shares)
