"""What an objective is: named data with options, which travels with the architecture, so that no method changes for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar, dataclass_transform

import torch
from torch import Tensor

from fedbonsai.choice import Choice, registered
from fedbonsai.wire import message

C = TypeVar("C", bound="Objective")
Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Measure:
    """A figure by which models are judged: which way is better, and how it is written."""

    name: str
    better: Literal["higher", "lower"]
    unit: str = ""
    """`%` for shares, which are written as percentages; empty where it has the unit of the target or none."""

    def reached(self, value: float, goal: float) -> bool:
        """Whether a value is at least as good as a goal."""
        return value >= goal if self.better == "higher" else value <= goal

    def best(self, values: Sequence[float]) -> float:
        """The best of several values."""
        return max(values) if self.better == "higher" else min(values)

    def text(self, value: float, digits: int = 2) -> str:
        """A value as people read it.

        >>> Measure("accuracy", "higher", "%").text(0.9643)
        '96.43 %'
        """
        return f"{100 * value:.{digits}f} %" if self.unit == "%" else f"{value:.{digits + 2}g}"


MEASURES = {
    each.name: each
    for each in (
        Measure("accuracy", "higher", "%"),
        Measure("balanced_accuracy", "higher", "%"),
        Measure("macro_f1", "higher", "%"),
        Measure("auroc", "higher"),
        Measure("average_precision", "higher"),
        Measure("rmse", "lower"),
        Measure("mae", "lower"),
        Measure("r2", "higher"),
        Measure("perplexity", "lower"),
    )
}


class Objective(Choice):
    """What is learned: the loss that training lowers, and the measures by which a model is judged.

    A choice of the configuration that travels in an architecture as it is. Devices need its loss alone.
    """

    metric: str = ""
    """The measure that decides: targets, early stops, comparisons."""

    targets: ClassVar[str] = ""
    """What samples' targets must be, in words for errors."""
    measures: ClassVar[tuple[str, ...]] = ()
    """Names of the measures that `measured` and `of_loss` give."""

    def __post_init__(self) -> None:
        """Refuse a measure that it does not have."""
        if self.metric not in self.measures:
            raise ValueError(f"metric = {self.metric!r}: expected one of {', '.join(self.measures)}")

    def of(self, y: Tensor) -> Objective:
        """The same with what it needs to know of the training targets."""
        return self

    def loss(self, outputs: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Loss of a batch.

        Args:
            outputs: of the network, [samples, ...].
            y: targets, [samples, ...].
            reduction: ``mean``, or the sum of what `weight` counts.
        """
        raise NotImplementedError

    def weight(self, y: Tensor) -> float:
        """What a sum of losses is divided by: samples, or tokens that count."""
        return len(y)

    def answers(self, outputs: Tensor) -> Tensor:
        """What measures need of outputs, [samples, ...]: chosen classes, probabilities, or values."""
        raise NotImplementedError

    def measured(self, answers: Tensor, y: Tensor) -> Mapping[str, float]:
        """All measures of answers, by name; NaN where one has no meaning, as with a single class."""
        raise NotImplementedError

    def of_loss(self, loss: float) -> Mapping[str, float]:
        """Measures that follow from the mean loss; most objectives have none."""
        return {}

    def width(self, y: Tensor, classes: int) -> tuple[int, ...]:
        """Shape of the outputs for one sample.

        Args:
            y: targets of some samples.
            classes: names of classes that the data has; 0 where it has none.
        """
        raise NotImplementedError

    def faults(self, y: Tensor, classes: int) -> list[str]:
        """Why targets cannot be learned with this objective; empty where they can be."""
        raise NotImplementedError

    @property
    def measure(self) -> Measure:
        """The measure that decides, with its direction."""
        return MEASURES.get(self.metric, Measure(self.metric, "higher"))


@dataclass_transform(frozen_default=True)
def objective(name: str) -> Callable[[type[C]], type[C]]:
    """Register an objective, one's own too: ``objective.name = NAME`` chooses it once its module is imported."""
    return lambda cls: registered(name, message(f"objective/{name}@1")(cls))


def finite(y: Tensor) -> list[str]:
    """A fault where targets are missing or infinite."""
    bad = int((~torch.isfinite(y)).sum()) if y.is_floating_point() else 0
    return [f"{bad} targets are NaN or infinite: drop these rows, or fill them in before"] if bad else []
