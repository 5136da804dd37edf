"""A random rotation of n values, for any n, at n log n additions: random signs and Walsh-Hadamard transforms.

Blocks of a power of two are rotated side by side; what is left over at the end is mixed by a second rotation of the
last block, which overlaps the first ones. Nothing is padded, so n values stay n values. Only additions, subtractions
and products with constants occur, so both ends compute the same bits. Source: DRIVE (Vargaftik et al., NeurIPS 2021).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedbonsai.stages.codec.draws import Draws

_LONGEST = 1 << 16  # values: two buffers of it fit the second-level cache

Single = npt.NDArray[np.float32]


def _transform(block: Single, scratch: Single) -> None:
    """Unnormalised transform in place: after log2(h) rounds of sums and differences the order is the natural one."""
    half = len(block) // 2
    source, target = block, scratch[: len(block)]
    for _ in range(len(block).bit_length() - 1):
        np.add(source[::2], source[1::2], out=target[:half])
        np.subtract(source[::2], source[1::2], out=target[half:])
        source, target = target, source
    if source is not block:
        block[:] = source


def _block(n: int) -> int:
    return min(_LONGEST, 1 << (n.bit_length() - 1))


def rotate(values: Single, draws: Draws) -> Single:
    """Rotate ``values`` (flat, not empty); lengths are kept."""
    n, h = len(values), _block(len(values))
    scale = np.float32(1 / math.sqrt(h))
    out, scratch = values * draws.signs(n), np.empty(h, np.float32)
    for start in range(0, n - h + 1, h):
        _transform(out[start : start + h], scratch)
        out[start : start + h] *= scale
    if n % h:
        last = out[n - h :]
        last *= draws.signs(h)
        _transform(last, scratch)
        last *= scale
    return out


def unrotate(values: Single, draws: Draws) -> Single:
    """Inverse of `rotate` with the same stream."""
    n, h = len(values), _block(len(values))
    scale = np.float32(1 / math.sqrt(h))
    out, scratch, first = values.copy(), np.empty(h, np.float32), draws.signs(n)
    if n % h:
        last = out[n - h :]
        _transform(last, scratch)
        last *= draws.signs(h) * scale
    for start in range(0, n - h + 1, h):
        _transform(out[start : start + h], scratch)
        out[start : start + h] *= scale
    out *= first
    return out
