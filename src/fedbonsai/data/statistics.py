"""Mean and deviation of features as a federation finds them: each client's sums, added in the order of the clients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Sums = tuple[int, Float, Float]  # how many values, their sum, the sum of their squares, of each feature

ROUNDING = 1e-12  # of the squared mean: a variance below it is that of a constant


def sums(x: NDArray[Any], axis: int = -1) -> Sums:
    """Sums over one client's samples, for each place along an axis of ``x`` [samples, ...]."""
    flat = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]).astype(np.float64)
    return len(flat), flat.sum(0), np.square(flat).sum(0)


def mean_and_deviation(parts: Iterable[Sums]) -> tuple[Float, Float]:
    """Mean and standard deviation of each feature over all clients; the deviation of a constant is 1."""
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for number, first, second in parts:
        count, total, squares = count + number, total + first, squares + second
    mean = total / max(1, count)
    variance = squares / max(1, count) - np.square(mean)
    return mean, np.sqrt(np.where(variance > ROUNDING * np.maximum(1e-30, np.square(mean)), variance, 1.0))
