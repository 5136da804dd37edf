"""A share of a network's units as a smaller network of its own, and the way back into the whole.

Which units: the first of each layer (HeteroFL, FjORD), or a window that moves on and wraps around (FedRolex). Both are taken
within each group of a group normalisation, so that a unit stays in its group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedbonsai.model import Model
from fedbonsai.stages.codec.select import count_of
from fedbonsai.stages.pruning.masks import Masks
from fedbonsai.stages.pruning.units import Places, Units, places, prune
from fedbonsai.tree import Tree, Weights


def window(groups: Sequence[Units], ratio: float, shift: int = 0) -> list[Tensor]:
    """Indices, ascending, of ceil(ratio n) units of each layer's n, from the unit ``shift`` mod n on and around.

    Args:
        groups: units that go together.
        ratio: share of them, in (0, 1].
        shift: first unit; 0 takes the first ones.
    """
    return [_taken(group, count_of(ratio, group.width // group.groups), shift) for group in groups]


def first(groups: Sequence[Units], widths: Sequence[int]) -> list[Tensor]:
    """Indices of so many first units of each layer."""
    return [_taken(group, width // group.groups, 0) for group, width in zip(groups, widths, strict=True)]


def _taken(group: Units, count: int, shift: int) -> Tensor:
    """So many units of each group of a normalisation, from a unit on and around."""
    parts = torch.arange(group.width).reshape(group.groups, -1)
    units = (torch.arange(count) + shift) % parts.shape[1]
    return parts[:, units.sort().values].flatten()


@dataclass(frozen=True)
class Slice:
    """A smaller network, the share of the units that it was made with, and where its values are in the whole."""

    model: Model
    ratio: float
    places: Places

    def scattered(self, weights: Tree, like: Tree) -> tuple[Weights, Masks]:
        """Values of the smaller network in the shapes of the whole, zero elsewhere; and where they are.

        Args:
            weights: of the smaller network, or some of them.
            like: of the whole.

        Returns:
            Whole tensors, and a mask for each that is held in part.
        """
        found: Weights = {}
        masks: Masks = {}
        for name, value in weights.items():
            if name not in self.places:
                found[name] = value
                continue
            full, (rows, columns) = like[name], self.places[name]
            at: tuple[Tensor, ...] = (torch.arange(len(full)) if rows is None else rows,)
            if columns is not None:
                at = (at[0][:, None], columns)
            found[name], masks[name] = torch.zeros_like(full), torch.zeros_like(full, dtype=torch.bool)
            found[name][at], masks[name][at] = value, True
        return found, masks


def cut(model: Model, groups: Sequence[Units], kept: Sequence[Tensor], ratio: float) -> Slice:
    """The smaller network of some units.

    Args:
        model: the whole.
        groups: its units.
        kept: indices of those that stay, of each group.
        ratio: their nominal share.
    """
    return Slice(prune(model, groups, kept), ratio, places(groups, kept, model.weights))
