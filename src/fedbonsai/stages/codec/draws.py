"""Random numbers that both ends can draw again: Philox's raw stream, which NumPy promises never to change (NEP 19).

Distributions built on top of a stream carry no such promise in NumPy or torch, so the few that are needed are here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedbonsai.stages.codec.bits import Ints

SUBSET, SIGNS, ROUNDING = range(3)  # what a stream is for: no two uses share numbers


class Draws:
    """One stream of raw 64-bit numbers for one tensor and one use of it.

    Args:
        seed: shared by both ends, 0 <= seed < 2^64.
        tensor: position of the tensor in its tree.
        use: `SUBSET`, `SIGNS` or `ROUNDING`.
    """

    def __init__(self, seed: int, tensor: int, use: int) -> None:
        self._raw = np.random.Philox(key=np.array([seed, 4 * tensor + use], np.uint64))

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Numbers in [0, 1), 32 bits each."""
        raw = self._raw.random_raw((count + 1) // 2).astype("<u8", copy=False)
        return raw.view("<u4")[:count] * 2.0**-32

    def signs(self, count: int) -> npt.NDArray[np.float32]:
        """Numbers that are -1 or 1."""
        raw = self._raw.random_raw((count + 63) // 64).astype("<u8", copy=False)
        bits = np.unpackbits(raw.view(np.uint8), count=count, bitorder="little")
        return bits * np.float32(-2) + np.float32(1)

    def subset(self, n: int, k: int) -> Ints:
        """``k`` different indices below ``n``, ascending, every set equally likely."""
        if k > n // 2:  # fewer draws when those left out are drawn
            keep = np.ones(n, np.bool_)
            keep[self.subset(n, n - k)] = False
            return np.flatnonzero(keep)
        drawn = np.empty(0, np.int64)
        while True:  # the first k different numbers of a uniform stream are a uniform subset
            raw = self._raw.random_raw(k + k // 2 + 16)
            more = ((raw >> np.uint64(11)) * 2.0**-53 * n).astype(np.int64)
            drawn = np.concatenate((drawn, more))
            different, first = np.unique(drawn, return_index=True)
            if len(different) >= k:
                return np.sort(drawn[np.sort(first)[:k]])
