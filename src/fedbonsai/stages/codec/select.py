"""The k largest magnitudes of a tensor, exactly, ties to the lower index, in about one pass over it.

A threshold from a strided sample leaves a few more candidates than wanted; the exact choice is made among those. Where
the sample misleads, all values are candidates, so the answer never depends on it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fedbonsai.errors import NotFinite
from fedbonsai.stages.codec.bits import Ints

Floats = npt.NDArray[np.floating[Any]]

_BLOCK = 1 << 17  # values worked on at a time: what is computed of them stays in cache
_SAMPLE = 1 << 15


def count_of(fraction: float, n: int) -> int:
    """``min(n, max(1, ceil(fraction * n)))``; a fraction such as 0.07 of 100 is 7, not 8 by rounding error."""
    return min(n, max(1, math.ceil(round(fraction * n, 6))))


def _scan(values: Floats, bound: float, compare: np.ufunc) -> tuple[Ints, Floats]:
    """Indices and magnitudes of the values that pass ``compare(magnitude, bound)``; checks that all are finite.

    Raises:
        NotFinite: a value is NaN or infinite.
    """
    found: list[Ints] = []
    kept: list[Floats] = []
    # buffers that are used again stay in cache, and cost no new pages
    buffer = np.empty(min(_BLOCK, len(values)), values.dtype)
    flags = np.empty(len(buffer), np.bool_)
    with np.errstate(invalid="ignore", over="ignore"):
        limit = values.dtype.type(bound)
        for start in range(0, len(values), _BLOCK):
            block = values[start : start + _BLOCK]
            magnitudes = np.abs(block, out=buffer[: len(block)])
            if not magnitudes.max() < np.inf:  # NaN fails this too
                raise NotFinite("not finite: a value is NaN or infinite; lower the learning rate or skip this round")
            passed = np.flatnonzero(compare(magnitudes, limit, out=flags[: len(block)]))
            kept.append(magnitudes[passed])
            passed += start
            found.append(passed)
    return np.concatenate(found), np.concatenate(kept)


def check_finite(values: Floats) -> bool:
    """Whether any value differs from zero.

    Raises:
        NotFinite: a value is NaN or infinite.
    """
    peak = 0.0
    with np.errstate(invalid="ignore"):
        for start in range(0, len(values), _BLOCK):
            block = values[start : start + _BLOCK]
            high, low = block.max(), block.min()
            if not (high < np.inf and low > -np.inf):
                raise NotFinite("not finite: a value is NaN or infinite; lower the learning rate or skip this round")
            peak = max(peak, float(high), -float(low))
    return peak > 0


def above(values: Floats, tau: float) -> Ints:
    """Indices with magnitude above ``tau``, ascending."""
    return _scan(values, tau, np.greater)[0]


def largest(values: Floats, k: int) -> Ints:
    """Indices of the ``k`` largest magnitudes, ascending; ties to the lower index.

    Args:
        values: flat, fp32 or fp64.
        k: 1 <= k <= len(values).

    Raises:
        NotFinite: a value is NaN or infinite.
    """
    n = len(values)
    if k == n:
        check_finite(values)
        return np.arange(n)
    guess = _guess(values, k)
    found, magnitudes = _scan(values, guess, np.greater_equal)
    if len(found) < k:  # the sample missed: everything is a candidate
        found, magnitudes = np.arange(n), np.abs(values)
    return found[_keep(magnitudes, k)]


def _guess(values: Floats, k: int) -> float:
    """A magnitude that a little more than ``k`` values reach, most likely; 0 admits all."""
    n = len(values)
    if n < 4 * _SAMPLE:
        return 0.0
    # an odd stride does not fall in step with rows of even length
    sample = np.abs(values[:: (n // _SAMPLE) | 1])
    expected = k * len(sample) / n
    rank = int(expected + 4 * math.sqrt(expected) + 4)  # four standard deviations: the sample rarely misses
    if rank >= len(sample):
        return 0.0
    return float(np.partition(sample, len(sample) - 1 - rank)[len(sample) - 1 - rank])


def _keep(magnitudes: Floats, k: int) -> Ints:
    """Places of the ``k`` largest, ascending; of those equal to the smallest kept, the first."""
    n = len(magnitudes)
    least = np.partition(magnitudes, n - k)[n - k]
    sure = magnitudes > least
    equal = np.flatnonzero(magnitudes == least)[: k - int(np.count_nonzero(sure))]
    sure[equal] = True
    return np.flatnonzero(sure)


def largest_per_row(values: Floats, rows: int, k: int) -> Ints:
    """Flat indices of the ``k`` largest magnitudes of each of ``rows`` equal rows, ascending; ties to the lower."""
    check_finite(values)
    magnitudes = np.abs(values).reshape(rows, -1)
    width = magnitudes.shape[1]
    least = np.partition(magnitudes, width - k, axis=1)[:, width - k, None]
    sure = magnitudes > least
    equal = magnitudes == least
    free = k - sure.sum(1, keepdims=True)
    return np.flatnonzero(sure | (equal & (np.cumsum(equal, 1) <= free)))
