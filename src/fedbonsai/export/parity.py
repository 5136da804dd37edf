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

Scores = Callable[[Tensor], Tensor]
REPEATS = 30


@dataclass(frozen=True)
class Parity:
    """An exported file beside the network that was trained.

    Attributes:
        agreement: share of the test images for which both choose the same class.
        difference: largest absolute difference of a score.
        accuracy: of the file, on the test set.
        bytes: size of the file.
        milliseconds: median for one image, on one thread of this machine.
    """

    name: str
    agreement: float
    difference: float
    accuracy: float
    bytes: int
    milliseconds: float


def compare(name: str, file: Path, exported: Scores, trained: Scores, test: Samples) -> Parity:
    """Run both on the whole test set.

    Args:
        name: of the row.
        file: whose size is told.
        exported: [batch, ...] images to [batch, classes] scores.
        trained: the same by the network that was trained.
        test: at least one sample.
    """
    with torch.inference_mode():
        ours, theirs = exported(test.x), trained(test.x)
    chosen = ours.argmax(1)
    return Parity(
        name,
        agreement=float((chosen == theirs.argmax(1)).float().mean()),
        difference=float((ours - theirs).abs().max()),
        accuracy=float((chosen == test.y).float().mean()),
        bytes=file.stat().st_size,
        milliseconds=latency(exported, test.x[:1]),
    )


def latency(scores: Scores, image: Tensor) -> float:
    """Median milliseconds for one image."""
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(REPEATS + 3):
            start = time.perf_counter()
            scores(image)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[3:])
