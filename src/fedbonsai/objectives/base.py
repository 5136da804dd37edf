"""What an objective is: named data with options, which travels with the architecture, so that no method changes for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, isnan, nan
from typing import ClassVar, Literal, TypeVar, dataclass_transform

import torch
from torch import Tensor

from fedbonsai.choice import Choice, registered
from fedbonsai.wire import message

C = TypeVar("C", bound="Objective")
S = TypeVar("S", bound="Objective")
Reduction = Literal["mean", "sum"]
Balanced = Literal["balanced"]  # instead of weights: they follow from how often each target occurs


@dataclass(frozen=True)
class Measure:
    """A figure by which models are judged: which way is better, between which limits it lies, and how it is written."""

    name: str
    better: Literal["higher", "lower"]
    unit: str = ""
    """`%` for shares, which are written as percentages; empty where it has the unit of the target or none."""
    least: float = -inf
    """No value is below."""
    most: float = inf
    """No value is above."""

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        return self.name.replace("_", " ")

    def headed(self, words: str) -> str:
        """Words over a column or an axis, with the unit of `cell` and `scaled`.

        >>> Measure("macro_f1", "higher", "%").headed("test macro f1")
        'test macro f1, %'
        """
        return f"{words}, {self.unit}" if self.unit else words

    def reached(self, value: float, goal: float) -> bool:
        """Whether a value is at least as good as a goal."""
        return value >= goal if self.better == "higher" else value <= goal

    def best(self, values: Iterable[float]) -> float:
        """The best of several values, of those that have a meaning; NaN where none has."""
        known = [value for value in values if not isnan(value)]
        return (max if self.better == "higher" else min)(known, default=nan)

    def worst(self, values: Iterable[float]) -> float:
        """The worst of several values, of those that have a meaning; NaN where none has."""
        known = [value for value in values if not isnan(value)]
        return (min if self.better == "higher" else max)(known, default=nan)

    def nearly(self, value: float) -> float:
        """What is as good but for one point, where 1 is best; else but for 2 % of the value.

        >>> Measure("accuracy", "higher", "%", 0, 1).nearly(0.96), Measure("rmse", "lower").nearly(15.0)
        (0.95, 15.3)
        """
        if self.most == 1:
            return value - 0.01
        return value + abs(value) / (50 if self.better == "lower" else -50)

    def scaled(self, value: float) -> float:
        """A value in its unit, as precise as it is drawn."""
        return round(100 * value, 3) if self.unit == "%" else float(f"{value:.6g}")

    def cell(self, value: float) -> str:
        """A value under its heading."""
        return f"{100 * value:.2f}" if self.unit == "%" else f"{value:.4g}"

    def plain(self, value: float) -> str:
        """A value beside its name, as in the lines of a run; shares between 0 and 1."""
        return f"{value:.4f}" if self.most == 1 else f"{value:.4g}"

    def text(self, value: float, digits: int = 2) -> str:
        """A value as people read it.

        >>> Measure("accuracy", "higher", "%").text(0.9643)
        '96.43 %'
        """
        if self.unit == "%":
            return f"{100 * value:.{digits}f} %"
        return f"{value:.{digits + 2}g} {self.unit}".rstrip()

    def refusal(self, value: float) -> str:
        """What is expected instead of a value that it cannot have; empty where it can.

        >>> Measure("accuracy", "higher", "%", 0, 1).refusal(95)
        'an accuracy between 0 and 1, such as 0.95'
        """
        if self.least <= value <= self.most and isfinite(value):
            return ""
        article = "an" if self.words[0] in "aeio" else "a"
        if (self.least, self.most) == (0, 1):
            return f"{article} {self.words} between 0 and 1, such as 0.95"
        ends = [f"{word} {end:g}" for word, end in (("at least", self.least), ("at most", self.most)) if isfinite(end)]
        return f"{article} {self.words}, which is {' and '.join(ends) or 'a finite number'}"


MEASURES = {
    each.name: each
    for each in (
        Measure("accuracy", "higher", "%", 0, 1),
        Measure("balanced_accuracy", "higher", "%", 0, 1),
        Measure("macro_f1", "higher", "%", 0, 1),
        Measure("auroc", "higher", "", 0, 1),
        Measure("average_precision", "higher", "", 0, 1),
        Measure("rmse", "lower", "", 0),
        Measure("mae", "lower", "", 0),
        Measure("r2", "higher", "", -inf, 1),
        Measure("perplexity", "lower", "", 1),
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

    @property
    def balances(self) -> bool:
        """Whether its weights come from `counts` of the targets that clients train on: see `balanced`."""
        return False

    def counts(self, y: Tensor, classes: int) -> Tensor:
        """How often each target occurs, int64; those of several clients are added."""
        raise NotImplementedError

    def balanced(self: S, counts: Tensor) -> S:
        """The same with weights that follow from counts."""
        return self

    def loss(self, outputs: Tensor, y: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Loss of a batch.

        Args:
            outputs: of the network, [samples, ...].
            y: targets, [samples, ...].
            reduction: ``mean``, or the sum of what `weight` counts.
        """
        raise NotImplementedError

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean loss of each of several batches [batches], such as those of several clients.

        Args:
            outputs: of networks, [batches, samples, ...].
            y: targets, [batches, samples, ...].
        """
        return torch.func.vmap(self.loss)(outputs, y)

    def weight(self, y: Tensor) -> float:
        """What a sum of losses is divided by: samples, or tokens that count."""
        return len(y)

    def answers(self, outputs: Tensor) -> Tensor:
        """What measures need of outputs, [samples, ...]: chosen classes, probabilities, or values."""
        raise NotImplementedError

    def measured(self, answers: Tensor, y: Tensor) -> Mapping[str, float]:
        """All measures of answers, by name; NaN where one has no meaning, as with a single class."""
        raise NotImplementedError

    def each(self, answers: Tensor, y: Tensor, lengths: Sequence[int]) -> list[float]:
        """The measure that decides, of consecutive parts of so many samples each.

        There may be tens of thousands of parts: a measure that is a mean over samples takes `means` instead of this loop.
        """
        parts = zip(answers.split(list(lengths)), y.split(list(lengths)), strict=True)
        return [self.measured(*part)[self.metric] for part in parts]

    def of_loss(self, loss: float) -> Mapping[str, float]:
        """Measures that follow from the mean loss; most objectives have none."""
        return {}

    def constant(self, y: Tensor) -> Tensor | None:
        """The best `answers` that are the same for all samples: what a model must beat; None where nobody knows them."""
        return None

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
        return measure_named(self.metric)


def measure_named(name: str) -> Measure:
    """A measure by name; one that is not known here is the better the higher it is."""
    return MEASURES.get(name, Measure(name, "higher"))


@dataclass_transform(frozen_default=True)
def objective(name: str) -> Callable[[type[C]], type[C]]:
    """Register an objective, one's own too: ``objective.name = NAME`` chooses it once its module is imported."""
    return lambda cls: registered(name, message(f"objective/{name}@1")(cls))


def means(values: Tensor, lengths: Sequence[int], weights: Tensor | None = None) -> Tensor:
    """Means over consecutive parts, float64 [parts]; NaN where there is nothing to count.

    Args:
        values: of each sample [samples].
        lengths: samples of each part.
        weights: of how many values each is the sum [samples]; of one where not given.

    >>> means(torch.tensor([1, 0, 0, 1]), [1, 3]).tolist()
    [1.0, 0.3333333333333333]
    """
    part = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    nothing = torch.zeros(len(lengths), dtype=torch.float64)
    weights = torch.ones(len(values)) if weights is None else weights
    return nothing.index_add(0, part, values.double()) / nothing.index_add(0, part, weights.double())


def finite(y: Tensor) -> list[str]:
    """A fault where targets are missing or infinite."""
    bad = int((~torch.isfinite(y)).sum()) if y.is_floating_point() else 0
    return [f"{bad} targets are NaN or infinite: drop these rows, or fill them in before"] if bad else []
