"""One of several classes: cross-entropy, accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbonsai.objectives.base import Balanced, Objective, Reduction, means, objective

ROW = 16  # scores; of fewer torch's softmax takes one value at a time, unless samples stand side by side


@objective("classification")
class Classification(Objective):
    """One of several classes, by cross-entropy of scores [samples, classes]."""

    metric: str = "accuracy"
    """The measure that decides: accuracy, balanced_accuracy or macro_f1."""
    weights: tuple[float, ...] | Balanced = ()
    """Weight of each class in the loss; `balanced`: the rarer among the clients' samples the more; empty: all alike."""
    smoothing: float = 0.0
    """Share of the target that is spread over all classes."""

    targets: ClassVar[str] = "whole numbers of classes, [samples]"
    measures: ClassVar[tuple[str, ...]] = ("accuracy", "balanced_accuracy", "macro_f1")

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        super().__post_init__()
        if not 0 <= self.smoothing < 1 or (not self.balances and any(float(weight) < 0 for weight in self.weights)):
            raise ValueError(
                f"smoothing = {self.smoothing}, weights = {self.weights}: expected a share in [0, 1) and weights >= 0"
            )

    @property
    def balances(self) -> bool:
        """Whether the weights are still to be counted."""
        return self.weights == "balanced"

    def counts(self, y: Tensor, classes: int) -> Tensor:
        """Samples of each class [classes]."""
        return y.long().bincount(minlength=classes)

    def balanced(self, counts: Tensor) -> Classification:
        """With the weight of each class that makes all classes count alike, and a sample 1 in the mean: N / (K n).

        Of N samples n are of the class, and K classes occur; one that does not has the weight 1.
        """
        there = counts[counts > 0]
        even = int(there.sum()) / max(1, len(there))
        return replace(self, weights=tuple(even / count if count else 1.0 for count in counts.tolist()))

    def loss(self, outputs: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Cross-entropy; with class weights the weighted mean."""
        return F.cross_entropy(outputs, y, self._weights(outputs), reduction=reduction, label_smoothing=self.smoothing)

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean loss of each batch [batches], of all samples at once."""
        if type(self).loss is not Classification.loss:  # of a loss of one's own nothing is known
            return super().losses(outputs, y)
        scores, targets, weights = outputs.flatten(0, 1), y.flatten(), self._weights(outputs)
        if scores.shape[1] < ROW:
            scores, targets = scores.t().unsqueeze(0), targets.unsqueeze(0)
        each = F.cross_entropy(scores, targets, weights, reduction="none", label_smoothing=self.smoothing).view_as(y)
        return each.mean(1) if weights is None else each.sum(1) / weights[y].sum(1)

    def weight(self, y: Tensor) -> float:
        """Samples, or the sum of their classes' weights."""
        return float(torch.tensor(self.weights, device=y.device)[y].sum()) if self.weights else len(y)

    def answers(self, outputs: Tensor) -> Tensor:
        """The chosen classes [samples]."""
        return outputs.argmax(1)

    def measured(self, answers: Tensor, y: Tensor) -> Mapping[str, float]:
        """Accuracy, and the means over the classes that occur of recall and of F1."""
        return of_confusion(confusion(answers, y))

    def each(self, answers: Tensor, y: Tensor, lengths: Sequence[int]) -> list[float]:
        """The measure that decides, of each part."""
        if self.metric == "accuracy":
            return means(answers == y, lengths).tolist()
        return super().each(answers, y, lengths)

    def constant(self, y: Tensor) -> Tensor:
        """The most frequent class."""
        return torch.full_like(y, int(y.bincount(minlength=1).argmax()))

    def width(self, y: Tensor, classes: int) -> tuple[int, ...]:
        """A score for each class."""
        return (classes,)

    def faults(self, y: Tensor, classes: int) -> list[str]:
        """Whole numbers below the number of classes, more than one of them, and as many weights."""
        if y.ndim != 1 or y.is_floating_point():
            return [
                f"targets are {y.dtype} of shape {list(y.shape[1:])} a sample, classification needs {self.targets}: set "
                "objective.name to regression, multilabel or tokens"
            ]
        found: list[str] = []
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
            found.append(f"labels run from {int(y.min())} to {int(y.max())}: expected 0 to {classes - 1}")
        if self.weights and not self.balances and len(self.weights) != classes:
            found.append(
                f"objective.weights has {len(self.weights)} entries, the data {classes} classes: give one for each"
            )
        return found

    def _weights(self, outputs: Tensor) -> Tensor | None:
        return torch.tensor(self.weights, dtype=outputs.dtype, device=outputs.device) if self.weights else None


def confusion(answers: Tensor, y: Tensor, classes: int = 1) -> Tensor:
    """How often each class [row] was taken for each [column], for so many classes at least."""
    if not len(y):
        return torch.zeros(classes, classes, dtype=torch.int64)
    count = max(classes, 1 + int(torch.maximum(answers.max(), y.max())))
    return torch.bincount(y * count + answers, minlength=count * count).view(count, count)


def of_confusion(table: Tensor) -> dict[str, float]:
    """Accuracy, balanced accuracy and macro F1 from counts; the latter over the classes that occur or are chosen.

    >>> {name: round(value, 4) for name, value in of_confusion(torch.tensor([[8, 2], [1, 9]])).items()}
    {'accuracy': 0.85, 'balanced_accuracy': 0.85, 'macro_f1': 0.8496}
    """
    hit, real, chosen = table.diagonal().double(), table.sum(1).double(), table.sum(0).double()
    total = int(table.sum())
    occurs, known = real > 0, real + chosen > 0
    return {
        "accuracy": int(table.diagonal().sum()) / total if total else nan,
        "balanced_accuracy": float((hit[occurs] / real[occurs]).mean()) if total else nan,
        "macro_f1": float((2 * hit[known] / (real + chosen)[known]).mean()) if total else nan,
    }
