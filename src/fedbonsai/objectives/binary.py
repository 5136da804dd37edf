"""Yes or no, once or for several labels: logistic loss, areas under curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from math import nan
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbonsai.errors import Missing
from fedbonsai.objectives.base import Balanced, Objective, Reduction, finite, means, objective
from fedbonsai.objectives.classification import confusion, of_confusion

L = TypeVar("L", bound="_Logistic")


def areas(answers: Tensor, y: Tensor) -> tuple[float, float]:
    """Areas under the ROC curve and under precision over recall (average precision), of probabilities of two classes.

    Raises:
        Missing: torchmetrics is not installed.
    """
    try:
        curves: Any = import_module("torchmetrics.functional.classification")  # takes a second
    except ImportError as error:
        raise Missing("areas under curves need torchmetrics; install it with: pip install 'fedbonsai[sim]'") from error
    return float(curves.binary_auroc(answers, y)), float(curves.binary_average_precision(answers, y))


class _Logistic(Objective):
    """What binary and multilabel share: the logistic loss of logits."""

    positive: Any

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        super().__post_init__()
        if not self.balances and any(weight <= 0 for weight in self._weights()):
            raise ValueError(f"positive = {self.positive}: expected a weight > 0")

    def _weights(self) -> list[float]:
        return [float(each) for each in (self.positive if isinstance(self.positive, tuple) else (self.positive,))]

    @property
    def balances(self) -> bool:
        """Whether the weight is still to be counted."""
        return self.positive == "balanced"

    def counts(self, y: Tensor, classes: int) -> Tensor:
        """How often each label is 0 and is 1 [2, labels]."""
        ones = y.long().view(len(y), *(y.shape[1:] or (1,)))
        return torch.stack([(ones == value).sum(0) for value in (0, 1)])

    def balanced(self: L, counts: Tensor) -> L:
        """With the weight of each label that makes its ones count as much as its zeros; 1 where it has only one of both."""
        zeros, ones = counts.tolist()
        found = tuple(zero / one if zero and one else 1.0 for zero, one in zip(zeros, ones, strict=True))
        return replace(self, positive=found[0] if len(found) == 1 else found)  # pyright: ignore[reportArgumentType]

    def loss(self, outputs: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Logistic loss of logits; the mean is over samples and labels."""
        known = self.positive if isinstance(self.positive, tuple) else float(self.positive)
        weight = torch.tensor(known, dtype=outputs.dtype, device=outputs.device) if known != 1 else None
        y = y.to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs.view_as(y), y, reduction=reduction, pos_weight=weight)

    def weight(self, y: Tensor) -> float:
        """Samples times labels."""
        return y.numel()

    def answers(self, outputs: Tensor) -> Tensor:
        """Probabilities."""
        return outputs.sigmoid()

    def each(self, answers: Tensor, y: Tensor, lengths: Sequence[int]) -> list[float]:
        """The measure that decides, of each part."""
        if self.metric == "accuracy":
            right = (answers.view_as(y) >= 0.5) == (y == 1)
            return means(right.double().reshape(len(y), -1).mean(1), lengths).tolist()
        return super().each(answers, y, lengths)

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
    positive: float | Balanced = 1.0
    """Weight of the samples that are 1 in the loss; `balanced`: zeros by ones among the clients' samples."""

    targets: ClassVar[str] = "0 or 1, [samples]"
    measures: ClassVar[tuple[str, ...]] = ("auroc", "average_precision", "accuracy", "balanced_accuracy", "macro_f1")

    def measured(self, answers: Tensor, y: Tensor) -> Mapping[str, float]:
        """Areas under both curves, and the measures of the answers above one half."""
        y, answers = y.long().view(-1), answers.view(-1)
        both = len(y.unique()) == 2
        return {
            **dict(zip(("auroc", "average_precision"), areas(answers, y) if both else (nan, nan), strict=True)),
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
    positive: float | tuple[float, ...] | Balanced = 1.0
    """Weight of the labels that are 1 in the loss, or of each; `balanced`: zeros by ones of each among the clients' samples."""

    targets: ClassVar[str] = "0 or 1, [samples, labels]"
    measures: ClassVar[tuple[str, ...]] = ("average_precision", "auroc", "accuracy")

    def measured(self, answers: Tensor, y: Tensor) -> Mapping[str, float]:
        """Means over the labels that have both kinds of samples."""
        y = y.long()
        both = [label for label in range(y.shape[1]) if len(y[:, label].unique()) == 2]
        found = [areas(answers[:, label], y[:, label]) for label in both]
        return {
            "average_precision": sum(area for _, area in found) / len(found) if found else nan,
            "auroc": sum(area for area, _ in found) / len(found) if found else nan,
            "accuracy": float(((answers >= 0.5) == (y == 1)).double().mean()) if len(y) else nan,
        }

    def width(self, y: Tensor, classes: int) -> tuple[int, ...]:
        """A logit for each label."""
        return tuple(y.shape[1:])

    def faults(self, y: Tensor, classes: int) -> list[str]:
        """Zeros and ones for each label."""
        if y.ndim != 2:
            return [f"targets have shape {list(y.shape[1:])} a sample: expected {self.targets}"]
        if isinstance(self.positive, tuple) and len(self.positive) != y.shape[1]:
            return [
                f"objective.positive has {len(self.positive)} entries, the data {y.shape[1]} labels: give one for each"
            ]
        return _faults(y)
