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
from fedbonsai.stages.codec.bits import Ints, ones, packed_size

Floats = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]

_BLOCK = 1 << 17  # values worked on at a time, a multiple of 8: what is computed of them stays in cache
_SPAN = 8 * _BLOCK  # values whose few places are found at once: in memory that is small enough to be there already
_SAMPLE = 1 << 15  # values at most
_SAMPLED = 64  # one of so many, at least; fewer of large tensors
_SMALL = 1 << 12  # values that are sorted out at once


def count_of(fraction: float, n: int) -> int:
    """``min(n, max(1, ceil(fraction * n)))``; a fraction such as 0.07 of 100 is 7, not 8 by rounding error."""
    return min(n, max(1, math.ceil(round(fraction * n, 6))))


def _reaching(values: Floats, bound: float, inside: tuple[np.ufunc, np.ufunc]) -> tuple[Ints, Floats]:
    """Indices, ascending, and magnitudes of the values that are not inside of a bound; checks that all are finite.

    Args:
        values: flat.
        bound: magnitude; with NaN nothing is inside.
        inside: comparisons with ``bound`` and ``-bound`` that hold inside.

    Raises:
        NotFinite: a value is NaN or infinite.
    """
    found: list[Ints] = []
    kept: list[Floats] = []
    buffers = np.empty((2, min(_BLOCK, len(values))), np.bool_)
    with np.errstate(invalid="ignore", over="ignore"):
        limit = np.minimum(values.dtype.type(bound), np.finfo(values.dtype).max)  # infinity is outside of every bound
        for start in range(0, len(values), _SPAN):
            span = values[start : start + _SPAN]
            places = _outside(span, limit, inside, buffers)
            kept.append(span.take(places))
            places += start
            found.append(places)
    magnitudes = np.abs(np.concatenate(kept))
    _refuse(magnitudes)
    return np.concatenate(found), magnitudes


def _outside(values: Floats, limit: np.floating, inside: tuple[np.ufunc, np.ufunc], buffers: Flags) -> Ints:
    """Indices of the values that are not inside of a limit, NaN among them; buffers are written."""
    bits = np.empty(packed_size(len(values), 1), np.uint8)
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        below, over = buffers[:, : len(block)]
        inside[0](block, limit, out=below)
        inside[1](block, -limit, out=over)
        below &= over
        bits[start // 8 : (start + len(block) + 7) // 8] = np.packbits(below, bitorder="little")
    np.invert(bits, out=bits)
    bits[-1] &= 0xFF >> -len(values) % 8
    return ones(bits, len(values))


def _refuse(magnitudes: Floats) -> None:
    """Nothing but finite values.

    Raises:
        NotFinite: a value is NaN or infinite.
    """
    with np.errstate(invalid="ignore"):
        if not magnitudes.max(initial=0) < np.inf:  # NaN fails this too
            raise NotFinite("not finite: a value is NaN or infinite; lower the learning rate or skip this round")


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
    return _reaching(values, tau, (np.less_equal, np.greater_equal))[0]


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
    if guess := _guess(values, k):
        found, magnitudes = _reaching(values, guess, (np.less, np.greater))
        if len(found) >= k:
            return found.take(_keep(magnitudes, k))
    magnitudes = np.abs(values)  # no guess, or the sample missed: everything is a candidate
    _refuse(magnitudes)
    return _keep(magnitudes, k)


def _guess(values: Floats, k: int) -> float:
    """A magnitude that a little more than ``k`` values reach, most likely; 0 admits all."""
    n = len(values)
    if n < _SMALL:
        return 0.0
    # an odd stride does not fall in step with rows of even length
    sample = np.abs(values[:: max(_SAMPLED, n // _SAMPLE) | 1])
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
