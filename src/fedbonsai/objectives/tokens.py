"""The next token at every place of a sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import nan
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbonsai.objectives.base import Objective, Reduction, means, objective

PADDING = -1  # a target that does not count


@objective("tokens")
class Tokens(Objective):
    """The token at each place of a sequence, by cross-entropy of scores [samples, places, tokens]; -1 does not count."""

    metric: str = "accuracy"
    """The measure that decides: accuracy or perplexity."""

    targets: ClassVar[str] = "whole numbers of tokens, -1 for none, [samples, places]"
    measures: ClassVar[tuple[str, ...]] = ("accuracy", "perplexity")

    def loss(self, outputs: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Cross-entropy; the mean is over the places that count."""
        return F.cross_entropy(outputs.flatten(0, 1), y.flatten(), ignore_index=PADDING, reduction=reduction)

    def weight(self, y: Tensor) -> float:
        """Places that count."""
        return int((y != PADDING).sum())

    def answers(self, outputs: Tensor) -> Tensor:
        """The chosen tokens [samples, places]."""
        return outputs.argmax(2)

    def measured(self, answers: Tensor, y: Tensor) -> Mapping[str, float]:
        """Share of the places that count at which the token is right; perplexity is of the loss (`of_loss`)."""
        counts = y != PADDING
        return {"accuracy": int(((answers == y) & counts).sum()) / int(counts.sum()) if bool(counts.any()) else nan}

    def each(self, answers: Tensor, y: Tensor, lengths: Sequence[int]) -> list[float]:
        """Share of right tokens in each part; the perplexity of a part needs its loss."""
        counts = y != PADDING
        return means(((answers == y) & counts).sum(1), lengths, counts.sum(1)).tolist()

    def of_loss(self, loss: float) -> Mapping[str, float]:
        """Exp of the mean loss."""
        return {"perplexity": math.exp(min(loss, 700.0))}

    def constant(self, y: Tensor) -> Tensor:
        """The most frequent token."""
        return torch.full_like(y, int(y[y != PADDING].bincount(minlength=1).argmax()))

    def width(self, y: Tensor, classes: int) -> tuple[int, ...]:
        """A score for each token at each place."""
        return (*y.shape[1:], classes)

    def faults(self, y: Tensor, classes: int) -> list[str]:
        """Whole numbers below the number of tokens."""
        if y.ndim != 2 or y.is_floating_point():
            return [f"targets are {y.dtype} of shape {list(y.shape[1:])} a sample: expected {self.targets}"]
        if len(y) and not PADDING <= int(y.min()) <= int(y.max()) < classes:
            return [f"tokens run from {int(y.min())} to {int(y.max())}: expected {PADDING} to {classes - 1}"]
        return []
