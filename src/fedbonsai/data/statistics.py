"""Mean and deviation of features as a federation finds them: each client's moments, merged in the order of the clients.

Moments are a count, a mean and a sum of squared deviations from that mean, in float64, merged by the pairwise rule of Chan,
Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979. No squares of the values
themselves are added, so that what is far from zero keeps its digits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.mapped import release
from fedbonsai.errors import ConfigError

Float = NDArray[np.float64]

ROUNDING = 1e-12  # of the squared mean: a variance below it is that of a constant
BLOCK = 1 << 20  # values that are widened to float64 at a time


@dataclass(frozen=True, eq=False)
class Moments:
    """How many values there are of each feature, their mean, and the sum of their squared deviations from it."""

    count: int
    mean: Float
    squares: Float

    def __add__(self, other: Moments) -> Moments:
        """Of the values of both."""
        if not self.count or not other.count:
            return self if self.count else other
        count, way = self.count + other.count, other.mean - self.mean
        mean = self.mean + way * (other.count / count)
        return Moments(count, mean, self.squares + other.squares + np.square(way) * (self.count * other.count / count))


def moments(x: NDArray[Any], axis: int = -1, rows: Sequence[int] | None = None) -> Moments:
    """Moments of one client's samples, for each place along an axis of ``x`` [samples, ...].

    Args:
        x: samples, which need not be in memory.
        axis: along which features lie.
        rows: numbers of the samples; all where not given.
    """
    found = Moments(0, np.zeros(x.shape[axis]), np.zeros(x.shape[axis]))
    step = max(1, BLOCK // max(1, x[:1].size))
    for begin in range(0, len(x) if rows is None else len(rows), step):
        part = slice(begin, begin + step)
        block = x[part] if rows is None else x[list(rows[part])]
        flat = np.moveaxis(block, axis, -1).reshape(-1, x.shape[axis]).astype(np.float64)
        release(x)
        mean = flat.mean(0)
        flat -= mean
        found += Moments(len(flat), mean, np.square(flat, out=flat).sum(0))
    return found


def mean_and_deviation(parts: Iterable[Moments]) -> tuple[Float, Float]:
    """Mean and standard deviation of each feature over all clients; the deviation of a constant is 1.

    Raises:
        ConfigError: no client has a sample.
    """
    found = Moments(0, np.zeros(0), np.zeros(0))
    for part in parts:
        found += part
    if not found.count:
        raise ConfigError("standardise: nobody has a sample of which mean and deviation could be taken; add samples")
    variance = found.squares / found.count
    constant = variance <= ROUNDING * np.maximum(1e-30, np.square(found.mean))
    return found.mean, np.sqrt(np.where(constant, 1.0, variance))
