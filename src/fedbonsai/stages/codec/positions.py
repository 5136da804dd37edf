"""How positions are written: the codecs, and the choice of the smallest or fastest of them.

A uniformly random k-subset of n costs at least ``log2 C(n, k)``, about ``n H(k/n)`` bits.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from fedbonsai.errors import BadMessage
from fedbonsai.settings import raise_all, when
from fedbonsai.stages.codec import gaps, ranges, rice
from fedbonsai.stages.codec.bits import Ints, Parts, length, pack, packed_size, unpack
from fedbonsai.stages.codec.context import Context
from fedbonsai.stages.codec.cursor import Cursor
from fedbonsai.stages.codec.registry import shipped
from fedbonsai.stages.codec.stages import PositionCodec

# as they stand in a record; the last two cost no bits: the seed, or both ends' memory, says which
EMPTY, ALL, BITMAP, RICE, GAPS, RANGE, SHARED, KNOWN = range(8)

Codec = Literal["auto", "best", "bitmap", "rice", "gaps", "range"]
Prefer = Literal["smallest", "fastest"]
_CODES = {"bitmap": BITMAP, "rice": RICE, "gaps": GAPS, "range": RANGE}


@shipped("positions", BITMAP, RICE, GAPS, RANGE)
class Positions(PositionCodec):
    """How positions are written; without this stage, ``auto``.

    Attributes:
        codec: one codec for all, ``auto`` for the best of bitmap, gaps and rice for each tensor, ``best`` with range.
        prefer: ``smallest``, or ``fastest`` within ``slack`` of it.
        slack: fraction of the smallest size.
    """

    primary = "codec"
    codec: Codec = "auto"
    prefer: Prefer = "smallest"
    slack: float = 0.02

    def __post_init__(self) -> None:
        codecs, ways = ("auto", "best", "bitmap", "rice", "gaps", "range"), ("smallest", "fastest")
        raise_all(
            when(
                (self.codec not in codecs, f"codec = {self.codec!r}: expected one of {', '.join(codecs)}"),
                (self.prefer not in ways, f"prefer = {self.prefer!r}: expected {' or '.join(map(repr, ways))}"),
                (not 0 <= self.slack < float("inf"), f"slack = {self.slack}: expected a fraction >= 0"),
            )
        )

    @property
    def ranged(self) -> bool:
        """Where the range coder may be chosen."""
        return self.codec in ("best", "range")

    def write(self, indices: Ints, n: int) -> tuple[int, Parts]:
        """By the codec that was named, or the best one."""
        return encode(indices, n, self.codec, self.prefer, self.slack)

    @classmethod
    def read(cls, code: int, cursor: Cursor, n: int, k: int, context: Context) -> Ints:
        """By the codec that the record names."""
        check_count(n, k)
        return decode(code, cursor, n, k)


def entropy_bound(n: int, k: int) -> float:
    """``n H(k/n)`` in bits."""
    p = k / n
    return 0.0 if k in (0, n) else -n * (p * math.log2(p) + (1 - p) * math.log1p(-p) / math.log(2))


def check_count(n: int, k: int) -> None:
    """Refuse a number of kept values with which a tensor is not sparse.

    Raises:
        BadMessage: it is such a number.
    """
    if not 0 < k < n:
        raise BadMessage(f"{k} of {n} values kept: not a sparse tensor")


def encode(
    indices: Ints, n: int, codec: Codec = "auto", prefer: Prefer = "smallest", slack: float = 0.02
) -> tuple[int, Parts]:
    """Encode ``0 < k < n`` ascending indices.

    Args:
        indices: positions in C order.
        n: values in the tensor.
        codec: one codec; ``auto`` for the best of those that every installation has, ``best`` for the range coder too.
        prefer: ``smallest``, or ``fastest`` for the fastest whose size is within ``slack`` of the smallest.
        slack: fraction of the smallest size.

    Returns:
        The codec's number, and the bytes.
    """
    if codec in _CODES:
        return _CODES[codec], _encode(_CODES[codec], indices, n)
    steps = np.diff(indices, prepend=-1) - 1
    b, bits = rice.best_parameter(steps, n)
    # gaps are tried for their true size, since patterned masks may squeeze to nothing
    encoded: dict[int, Parts] = {GAPS: [gaps.encode(steps)]}
    sizes = {BITMAP: packed_size(n, 1), GAPS: length(encoded[GAPS]), RICE: (bits + 7) // 8 + 4}  # by falling speed
    if codec == "best":
        encoded[RANGE] = [ranges.encode_positions(indices, n)]
        sizes[RANGE] = length(encoded[RANGE])
    allowed = min(sizes.values()) * (1 + slack if prefer == "fastest" else 1)
    code = next(code for code, size in sizes.items() if size <= allowed)
    return code, encoded[code] if code in encoded else rice.encode(steps, b) if code == RICE else _bitmap(indices, n)


def _bitmap(indices: Ints, n: int) -> Parts:
    mask = np.zeros(n, np.uint8)
    mask[indices] = 1
    return [pack(mask, 1)]


def _encode(code: int, indices: Ints, n: int) -> Parts:
    if code == BITMAP:
        return _bitmap(indices, n)
    if code == RANGE:
        return [ranges.encode_positions(indices, n)]
    steps = np.diff(indices, prepend=-1) - 1
    return [gaps.encode(steps)] if code == GAPS else rice.encode(steps, rice.best_parameter(steps, n)[0])


def decode(code: int, cursor: Cursor, n: int, k: int) -> Ints:
    """``k`` ascending indices below ``n``, for ``0 < k < n``.

    Raises:
        BadMessage: anything else.
    """
    if code == BITMAP:
        indices = np.flatnonzero(unpack(cursor.take(packed_size(n, 1)), n, 1).view(np.bool_))
    elif code == RICE:
        indices = rice.decode(cursor, n, k)
    elif code == GAPS:
        indices = gaps.decode(cursor, n, k)
    elif code == RANGE:
        indices = ranges.decode_positions(cursor, n, k)
    else:
        raise BadMessage(f"unknown codec {code} of positions; the sender may have a newer version")
    if len(indices) != k or int(indices[-1]) >= n:  # every codec yields ascending indices by construction
        raise BadMessage(
            f"{len(indices)} positions up to {int(indices[-1]) if len(indices) else None}, expected {k} below {n}"
        )
    return indices
