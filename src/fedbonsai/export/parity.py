"""Whether an exported file says what the trained model says, and what it takes: agreement, size, latency."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedbonsai.core import Samples
from fedbonsai.objectives import Binary, Multilabel, Objective

Scores = Callable[[Tensor], Tensor]
REPEATS = 30
LEAST = 0.01  # what may differ, of choices or of the largest output


@dataclass(frozen=True)
class Parity:
    """An exported file beside the network that was trained.

    Attributes:
        agreement: share of the test samples (places of tokens, labels of many) for which both choose the same; NaN where
            answers are numbers.
        difference: largest absolute difference of an output.
        relative: that by the largest output of the trained network.
        value: of the file, by the measure of the objective that decides, on the test set.
        bytes: size of the file.
        milliseconds: median for one input, on one thread of this machine.
    """

    name: str
    agreement: float
    difference: float
    relative: float
    value: float
    bytes: int
    milliseconds: float

    @property
    def good(self) -> bool:
        """Whether the file may stand for the network: equal choices but for one in a hundred, or numbers as close."""
        return self.relative <= LEAST if math.isnan(self.agreement) else self.agreement >= 1 - LEAST


def compare(name: str, file: Path, exported: Scores, trained: Scores, test: Samples, objective: Objective) -> Parity:
    """Run both on the whole test set.

    Args:
        name: of the row.
        file: whose size is told.
        exported: [batch, ...] inputs to [batch, ...] outputs.
        trained: the same by the network that was trained.
        test: at least one sample.
        objective: by which outputs are answers.
    """
    with torch.inference_mode():
        ours, theirs = exported(test.x), trained(test.x)
    chosen, right = objective.answers(ours), objective.answers(theirs)
    loss = float(objective.loss(ours, test.y, "sum")) / (objective.weight(test.y) or 1.0)
    difference = float((ours - theirs).abs().max())
    return Parity(
        name,
        agreement=_agreement(chosen, right, objective),
        difference=difference,
        relative=difference / (float(theirs.abs().max()) or 1.0),
        value={**objective.measured(chosen, test.y), **objective.of_loss(loss)}[objective.metric],
        bytes=file.stat().st_size,
        milliseconds=latency(exported, test.x[:1]),
    )


def _agreement(ours: Tensor, theirs: Tensor, objective: Objective) -> float:
    if isinstance(objective, Binary | Multilabel):  # answers are probabilities
        ours, theirs = ours >= 0.5, theirs >= 0.5
    return math.nan if ours.is_floating_point() else float((ours == theirs).float().mean())


def latency(scores: Scores, one: Tensor) -> float:
    """Median milliseconds for one input."""
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(REPEATS + 3):
            start = time.perf_counter()
            scores(one)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[3:])
