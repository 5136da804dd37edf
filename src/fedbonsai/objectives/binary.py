"""Yes or no, once or for several labels: logistic loss, areas under curves."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbonsai.objectives.base import Objective, Reduction, finite, objective
from fedbonsai.objectives.classification import confusion, of_confusion


class _Logistic(Objective):
    """What binary and multilabel share: the logistic loss of logits."""

    positive: float

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        super().__post_init__()
        if self.positive <= 0:
            raise ValueError(f"positive = {self.positive}: expected a weight > 0")

    def loss(self, outputs: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Logistic loss of logits; the mean is over samples and labels."""
        weight = torch.tensor(self.positive, dtype=outputs.dtype, device=outputs.device) if self.positive != 1 else None
        y = y.to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs.view_as(y), y, reduction=reduction, pos_weight=weight)

    def weight(self, y: Tensor) -> float:
        """Samples times labels."""
        return y.numel()

    def answers(self, outputs: Tensor) -> Tensor:
        """Probabilities."""
        return outputs.sigmoid()

    def constant(self, y: Tensor) -> Tensor:
        """The share of ones, of each label."""
        return y.double().mean(0).expand(y.shape)


def _faults(y: Tensor) -> list[str]:
    values = y.unique()
    if not bool(((values == 0) | (values == 1)).all()):
        shown = ", ".join(f"{value:g}" for value in values[:5].tolist())
        return [*finite(y), f"targets have {len(values)} values ({shown}): expected 0 and 1"]
    return []


@objective("binary")
class Binary(_Logistic):
    """Yes or no, by the logistic loss of one logit a sample."""

    metric: str = "auroc"
    """The measure that decides: auroc, average_precision, accuracy, balanced_accuracy or macro_f1."""
    positive: float = 1.0
    """Weight of the samples that are 1 in the loss."""

    targets: ClassVar[str] = "0 or 1, [samples]"
    measures: ClassVar[tuple[str, ...]] = ("auroc", "average_precision", "accuracy", "balanced_accuracy", "macro_f1")

    def measured(self, answers: Tensor, y: Tensor) -> Mapping[str, float]:
        """Areas under both curves, and the measures of the answers above one half."""
        from torchmetrics.functional.classification import binary_auroc, binary_average_precision  # takes a second

        y, answers = y.long().view(-1), answers.view(-1)
        both = len(y.unique()) == 2
        return {
            "auroc": float(binary_auroc(answers, y)) if both else nan,
            "average_precision": float(binary_average_precision(answers, y)) if both else nan,
            **of_confusion(confusion((answers >= 0.5).long(), y)),
        }

    def width(self, y: Tensor, classes: int) -> tuple[int, ...]:
        """One logit."""
        return (1,)

    def faults(self, y: Tensor, classes: int) -> list[str]:
        """Zeros and ones."""
        return (
            _faults(y) if y.ndim == 1 else [f"targets have shape {list(y.shape[1:])} a sample: expected {self.targets}"]
        )


@objective("multilabel")
class Multilabel(_Logistic):
    """Any of several labels at once, by the logistic loss of a logit for each."""

    metric: str = "average_precision"
    """The measure that decides: average_precision or auroc, as means over the labels, or accuracy, of single labels."""
    positive: float = 1.0
    """Weight of the labels that are 1 in the loss."""

    targets: ClassVar[str] = "0 or 1, [samples, labels]"
    measures: ClassVar[tuple[str, ...]] = ("average_precision", "auroc", "accuracy")

    def measured(self, answers: Tensor, y: Tensor) -> Mapping[str, float]:
        """Means over the labels that have both kinds of samples."""
        from torchmetrics.functional.classification import binary_auroc, binary_average_precision

        y = y.long()
        both = [label for label in range(y.shape[1]) if len(y[:, label].unique()) == 2]
        areas = [
            (float(binary_auroc(answers[:, i], y[:, i])), float(binary_average_precision(answers[:, i], y[:, i])))
            for i in both
        ]
        return {
            "average_precision": sum(area for _, area in areas) / len(areas) if areas else nan,
            "auroc": sum(area for area, _ in areas) / len(areas) if areas else nan,
            "accuracy": float(((answers >= 0.5) == (y == 1)).double().mean()) if len(y) else nan,
        }

    def width(self, y: Tensor, classes: int) -> tuple[int, ...]:
        """A logit for each label."""
        return tuple(y.shape[1:])

    def faults(self, y: Tensor, classes: int) -> list[str]:
        """Zeros and ones for each label."""
        return (
            _faults(y) if y.ndim == 2 else [f"targets have shape {list(y.shape[1:])} a sample: expected {self.targets}"]
        )
