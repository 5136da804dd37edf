"""Dynamic sparse training: a layer trades its smallest weights for the pruned ones with the largest gradients.

RigL (Evci et al., ICML 2020) on each client, as FedDST (Bibikar et al., AAAI 2022) has it, and its server: every coordinate
is averaged over the clients that keep it, then each layer is cut back to its count. In `grow_prune` the server decides, as
FedTiny and FedMef have it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedbonsai.model import Model
from fedbonsai.stages.pruning.criteria import best
from fedbonsai.stages.pruning.criteria import kept as share_of
from fedbonsai.stages.pruning.masks import Masks, keep_each, keep_top, masked
from fedbonsai.stages.pruning.scores import magnitude
from fedbonsai.stages.pruning.under_masks import names_of
from fedbonsai.tree import Tree, Weights, size


@dataclass(frozen=True)
class Readjustment:
    """When clients readjust their masks, and by how much."""

    interval: int = 10
    """Rounds from one readjustment to the next; the first comes in round `interval`."""
    stop: int = 100
    """First round without any more, at which the share has fallen to 0; FedDST: half of the rounds."""
    share: float = 0.1
    """Share of a layer's weights that is traded at round 0 (alpha); it falls as a cosine."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.interval < 1 or self.stop < 1 or not 0 <= self.share <= 1:
            raise ValueError(
                f"interval = {self.interval}, stop = {self.stop}, share = {self.share}: expected at least 1, 1, a share"
            )

    def fraction(self, t: int) -> float:
        """The share alpha / 2 (1 + cos(pi t / stop)) in rounds that readjust, else 0.

        >>> [round(Readjustment(5, 20, 0.4).fraction(t), 4) for t in (0, 4, 5, 10, 15, 20)]
        [0.0, 0.0, 0.3414, 0.2, 0.0586, 0.0]
        """
        return 0.0 if t % self.interval or not t else self.fraction_now(t)

    def fraction_now(self, t: int) -> float:
        """As `fraction`, in rounds that do not readjust too: what would be traded."""
        return self.share / 2 * (1 + math.cos(math.pi * t / self.stop)) if t < self.stop else 0.0


def readjusted(weights: Tree, masks: Tree, gradients: Tree, fraction: float) -> tuple[Weights, Masks]:
    """Weights and masks after each layer has traded floor(fraction times what it keeps).

    The smallest go first; then the pruned places of largest |gradient| come back with the value 0, those just pruned among
    them. Ties go to the lower index, of those that stay and of those that come.

    Args:
        weights: trained under the masks.
        masks: by name.
        gradients: at these weights, at pruned places too.
        fraction: share that is traded.
    """
    kept: Masks = {}
    found: Masks = {}
    for name, traded in counts_of(masks, fraction).items():
        mask = masks[name]
        active = int(mask.sum())
        kept[name] = keep_top(torch.where(mask, weights[name].abs().double(), -torch.inf), active - traded)
        wanted = torch.where(kept[name], -torch.inf, gradients[name].abs().double())
        found[name] = kept[name] | keep_top(wanted, traded)
    return masked(weights, kept), found


def start_masks(model: Model, density: float, never: Sequence[str]) -> Masks:
    """The largest initial weights, spread over layers by Erdős-Rényi-Kernel: where dynamic sparse training begins.

    Raises:
        ConfigError: nothing may be pruned, or there are too few weights for the layers.
    """
    weights = {name: model.weights[name] for name in names_of(model, never)}
    ones = {name: torch.ones_like(value, dtype=torch.bool) for name, value in weights.items()}
    return best(magnitude(weights), ones, share_of(density, size(weights)), "erk")


def counts_of(masks: Tree, fraction: float) -> dict[str, int]:
    """How many weights each layer trades: floor(fraction times what it keeps), no more than it has pruned ones."""
    active = {name: int(mask.sum()) for name, mask in masks.items()}
    return {name: min(int(fraction * count), masks[name].numel() - count) for name, count in active.items()}


class MaskedMean:
    """Weighted mean of models whose masks differ: each coordinate over those that keep it."""

    def __init__(self) -> None:
        self.weight = 0.0
        self._sums: Weights = {}
        self._shares: Weights = {}
        self._types: dict[str, torch.dtype] = {}

    def add(self, weights: Tree, masks: Tree, weight: float) -> None:
        """Add a model; a tensor without a mask is whole, and one that is not floating stays what it was."""
        for name, value in weights.items():
            self._types[name] = value.dtype
            if not value.is_floating_point():
                continue
            share = masks[name].double() * weight if name in masks else torch.tensor(weight, dtype=torch.float64)
            part = value.double() * share
            self._sums[name] = self._sums[name] + part if name in self._sums else part
            self._shares[name] = self._shares[name] + share if name in self._shares else share
        self.weight += weight

    def result(self, otherwise: Tree) -> Weights:
        """The mean; where nobody keeps a coordinate, the value of ``otherwise``."""
        found: Weights = {}
        for name, dtype in self._types.items():
            old = otherwise[name]
            if name not in self._sums:
                found[name] = old
                continue
            mean = self._sums[name] / self._shares[name].clamp(min=1e-300)
            found[name] = torch.where(self._shares[name] > 0, mean, old.double()).to(dtype)
        return found


def cut_back(weights: Tree, masks: Tree) -> tuple[Weights, Masks]:
    """The largest weights of each layer, as many as ``masks`` keep."""
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    found = keep_each(magnitude({name: weights[name] for name in masks}), counts)
    return masked(weights, found), found


def changed(old: Tree, new: Tree) -> int:
    """Places that are kept by one of two masks and not by the other."""
    differ: list[Tensor] = [(mask ^ new[name]).sum() for name, mask in old.items()]
    return int(sum(differ)) if differ else 0
