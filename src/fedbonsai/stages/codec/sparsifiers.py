"""Which values are sent: the largest, those above a threshold, random ones, or those that a mask keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedbonsai.errors import BadMessage, NotFinite
from fedbonsai.settings import raise_all, when
from fedbonsai.stages.codec import positions, tensors
from fedbonsai.stages.codec.bits import Ints, Parts
from fedbonsai.stages.codec.context import Candidate, Context
from fedbonsai.stages.codec.cursor import Cursor
from fedbonsai.stages.codec.draws import SUBSET
from fedbonsai.stages.codec.registry import shipped
from fedbonsai.stages.codec.select import above, check_finite, count_of, largest, largest_per_row
from fedbonsai.stages.codec.stages import MIN_NUMEL, Sparsifier
from fedbonsai.tree import Tree


@shipped("topk")
class TopK(Sparsifier):
    """The k largest magnitudes; k = min(n, max(1, ceil(fraction n))), ties to the lower index.

    Attributes:
        fraction: k / n, or None where ``count`` is given.
        count: k.
        scope: what n is: each ``tensor``, each ``row`` of a tensor (dimension 0), or ``global`` for all of them.
        min_numel: values; smaller tensors are sent whole.
    """

    primary = "fraction"
    fraction: float | None = None
    count: int | None = None
    scope: Literal["tensor", "row", "global"] = "tensor"
    min_numel: int = MIN_NUMEL

    def __post_init__(self) -> None:
        scopes = ("tensor", "row", "global")
        raise_all(
            _fraction_or_count("topk", self.fraction, self.count)
            + when((self.scope not in scopes, f"scope = {self.scope!r}: expected one of {', '.join(scopes)}"))
            + _numel(self.min_numel)
        )

    def choose(self, tensor: Candidate) -> Ints:
        """The largest of the tensor, or of each of its rows."""
        n = tensor.flat.numel()
        if self.scope == "row" and len(tensor.shape) > 1:
            rows = tensor.shape[0]
            return largest_per_row(tensor.values, rows, _count(self.fraction, self.count, n // rows))
        return largest(tensor.values, _count(self.fraction, self.count, n))

    def plan(self, found: Mapping[str, Candidate]) -> dict[str, Ints]:
        """Where the scope is global, one selection over all tensors."""
        if self.scope != "global" or not found:
            return super().plan(found)
        pooled = {name: tensor.values for name, tensor in found.items()}
        joined = np.concatenate(list(pooled.values()))
        try:
            chosen = largest(joined, _count(self.fraction, self.count, len(joined)))
        except NotFinite:
            for name, numbers in pooled.items():  # again, to tell which
                with tensors.named(name):
                    check_finite(numbers)
            raise
        ends = np.cumsum([len(numbers) for numbers in pooled.values()])
        cuts = np.searchsorted(chosen, ends)
        return {
            name: chosen[before:cut] - (end - len(pooled[name]))
            for name, cut, before, end in zip(pooled, cuts, [0, *cuts[:-1]], ends, strict=True)
        }

    @property
    def share(self) -> float | None:
        """The fraction."""
        return self.fraction

    def keeping(self, share: float) -> TopK:
        """With another fraction."""
        return replace(self, fraction=share)


@shipped("threshold")
class Threshold(Sparsifier):
    """All values of magnitude above ``tau``, which has the unit of the values."""

    primary = "tau"
    tau: float
    min_numel: int = MIN_NUMEL

    def __post_init__(self) -> None:
        wrong = not 0 <= self.tau < float("inf")
        raise_all(when((wrong, f"tau = {self.tau}: expected a finite number >= 0")) + _numel(self.min_numel))

    def choose(self, tensor: Candidate) -> Ints:
        """All above."""
        return above(tensor.values, self.tau)


@shipped("randk", positions.SHARED)
class RandK(Sparsifier):
    """k random positions, which the shared seed tells: no bits for them.

    Attributes:
        fraction: k / n, or None where ``count`` is given.
        count: k.
        unbiased: multiply what is kept by n / k, so that the expectation is the input.
        min_numel: values; smaller tensors are sent whole.
    """

    primary, seeded = "fraction", True
    fraction: float | None = None
    count: int | None = None
    unbiased: bool = False
    min_numel: int = MIN_NUMEL

    def __post_init__(self) -> None:
        raise_all(_fraction_or_count("randk", self.fraction, self.count) + _numel(self.min_numel))

    def choose(self, tensor: Candidate) -> Ints:
        """As `read` draws them again."""
        check_finite(tensor.values)
        n = tensor.flat.numel()
        return tensor.context.draws(SUBSET).subset(n, _count(self.fraction, self.count, n))

    def write(self, indices: Ints, n: int) -> tuple[int, Parts]:
        """Nothing."""
        return positions.SHARED, []

    @classmethod
    def read(cls, code: int, cursor: Cursor, n: int, k: int, context: Context) -> Ints:
        """Drawn again."""
        positions.check_count(n, k)
        return context.draws(SUBSET).subset(n, k)

    def scaled(self, kept: Tensor, n: int) -> Tensor:
        """By n / k where that is wanted."""
        if not self.unbiased:
            return kept
        kept = kept * (n / kept.numel())
        check_finite(tensors.floats(kept))
        return kept

    def growth(self) -> str:
        """Scaled values go beyond what they stand for."""
        return "unbiased randk: scaled values overshoot; use unbiased = false" if self.unbiased else ""


@shipped("known", positions.KNOWN)
class Known(Sparsifier):
    """The positions of a mask that both ends hold: no bits for them. Names without a mask are sent whole."""

    masks = True
    min_numel: int = 0

    def __post_init__(self) -> None:
        raise_all(_numel(self.min_numel))

    def takes(self, name: str, value: Tensor, masks: Tree) -> bool:
        """Where there is a mask."""
        return name in masks and super().takes(name, value, masks)

    def choose(self, tensor: Candidate) -> Ints:
        """What the mask keeps."""
        check_finite(tensor.values)
        mask = tensor.context.mask
        if mask is None or mask.dtype != torch.bool or mask.shape != tensor.shape:
            raise ValueError(f"mask for a tensor of shape {list(tensor.shape)}: expected booleans of that shape")
        return np.flatnonzero(tensors.flat(mask).numpy())

    def write(self, indices: Ints, n: int) -> tuple[int, Parts]:
        """Nothing."""
        return positions.KNOWN, []

    @classmethod
    def read(cls, code: int, cursor: Cursor, n: int, k: int, context: Context) -> Ints:
        """What the receiver's mask keeps."""
        mask = context.mask
        if mask is None or mask.dtype != torch.bool or mask.numel() != n:
            raise BadMessage("record of a mask that both ends know, but none of this size was given: pass mask=")
        indices = np.flatnonzero(tensors.flat(mask).numpy())
        if len(indices) != k or not k:
            raise BadMessage(f"{k} values for a mask that keeps {len(indices)}; the ends hold different masks")
        return indices


def _count(fraction: float | None, count: int | None, n: int) -> int:
    return min(n, count) if count is not None else count_of(fraction or 1.0, n)


def _numel(count: int) -> list[str]:
    return when((count < 0, f"min_numel = {count}: expected a number of values >= 0"))


def _fraction_or_count(name: str, fraction: float | None, count: int | None) -> list[str]:
    return when(
        ((fraction is None) == (count is None), f"{name} needs either fraction or count"),
        (
            fraction is not None and not 0 < fraction <= 1,
            f"fraction = {fraction}: expected more than 0, at most 1; for k values write {{{name} = {{count = k}}}}",
        ),
        (count is not None and count < 1, f"count = {count}: expected at least 1"),
    )
