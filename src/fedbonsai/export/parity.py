"""Whether an exported file says what the trained model says, and what it takes: agreement, size, latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedbonsai.core import Samples
from fedbonsai.objectives import Objective

Scores = Callable[[Tensor], Tensor]
REPEATS = 30
NEAR = 0.1  # of their standard deviation, by which numbers that count as the same may be apart


@dataclass(frozen=True)
class Parity:
    """An exported file beside the network that was trained.

    Attributes:
        agreement: share of the test samples for which both answer the same.
        difference: largest absolute difference of an output.
        score: of the file, on the test set, by the measure that decides.
        bytes: size of the file.
        milliseconds: median for one sample, on one thread of this machine.
    """

    name: str
    agreement: float
    difference: float
    score: float
    bytes: int
    milliseconds: float


def compare(name: str, file: Path, exported: Scores, trained: Scores, test: Samples, objective: Objective) -> Parity:
    """Run both on the whole test set.

    Args:
        name: of the row.
        file: whose size is told.
        exported: [batch, ...] inputs to [batch, ...] outputs.
        trained: the same by the network that was trained.
        test: at least one sample.
        objective: what was learned.
    """
    with torch.inference_mode():
        ours, theirs = exported(test.x), trained(test.x)
    answers = objective.answers(ours)
    measures = {**objective.measured(answers, test.y), **objective.of_loss(float(objective.loss(ours, test.y)))}
    return Parity(
        name,
        agreement=agreement(answers, objective.answers(theirs)),
        difference=float((ours - theirs).abs().max()),
        score=measures[objective.metric],
        bytes=file.stat().st_size,
        milliseconds=latency(exported, test.x[:1]),
    )


def agreement(ours: Tensor, theirs: Tensor) -> float:
    """Share of the answers that are the same: chosen classes, or numbers that are apart by little of their spread."""
    same = (ours - theirs).abs() <= NEAR * theirs.std() if theirs.is_floating_point() else ours == theirs
    return float(same.float().mean())


def latency(scores: Scores, image: Tensor) -> float:
    """Median milliseconds for one sample."""
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(REPEATS + 3):
            start = time.perf_counter()
            scores(image)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[3:])
