"""The mean of models that keep different weights: each coordinate over the devices that kept it.

specs/wireless §1.3 step 7 and §1.5. Dividing by the number of all devices would shrink a coordinate by the share that
kept it, every round; here uncovered coordinates keep the server's value.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fedbonsai import tree
from fedbonsai.stages.pruning.masks import Masks
from fedbonsai.stages.pruning.readjust import MaskedMean
from fedbonsai.tree import Tree, Weights


class CoverageMean:
    """Coverage-normalised weighted mean of trees, in the order they come.

    Where nobody leaves anything out it is `tree.Mean`, bit for bit. Else sums are in float64, in which the product of a
    32-bit value and a count of examples is exact: a coordinate that one device covers is that device's value.

    Args:
        whole: whether no mask leaves anything out, which decides the arithmetic before the first tree comes.
    """

    def __init__(self, whole: bool) -> None:
        self._whole = whole
        self._mean: tree.Mean | MaskedMean = tree.Mean() if whole else MaskedMean()

    @property
    def weight(self) -> float:
        """Sum of the weights so far."""
        return self._mean.weight

    def add(self, weights: Tree, masks: Tree | None, weight: float) -> None:
        """Add a tree; tensors without a mask, or all of them where there are no masks, are whole.

        Raises:
            ValueError: masks in a mean that was said to be whole.
        """
        if isinstance(self._mean, MaskedMean):
            self._mean.add(weights, masks or {}, weight)
        elif masks is not None:
            raise ValueError(
                "masks came to a mean that nobody was to leave anything out of; make it with whole = False"
            )
        else:
            self._mean.add(weights, weight)

    def result(self, otherwise: Tree) -> Weights:
        """The mean; where nobody covers a coordinate, the value of ``otherwise``."""
        return self._mean.result(otherwise) if isinstance(self._mean, MaskedMean) else self._mean.result()


def union(left: Tree | None, right: Tree | None) -> Masks | None:
    """Where either keeps anything; None stands for everywhere."""
    if left is None or right is None:
        return None
    return {name: mask | right[name] for name, mask in left.items()}


def nowhere(names: Iterable[str], like: Tree) -> Masks:
    """Masks that keep nothing, to begin `covered` with."""
    return {name: torch.zeros_like(like[name], dtype=torch.bool) for name in names}


def uncovered(masks: Tree | None) -> float:
    """Share of the weights that nobody keeps."""
    total = sum(mask.numel() for mask in (masks or {}).values())
    return sum(int((~mask).sum()) for mask in (masks or {}).values()) / total if total else 0.0
