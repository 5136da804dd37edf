"""Positions as Rice-coded gaps in two streams, so that both ends run at NumPy's speed.

A gap is split into a quotient ``gap >> b``, in unary, and a remainder of ``b`` bits. Kept apart, each stream decodes
without a loop; the size is that of the classical interleaved code. Source: R. F. Rice, JPL Publication 79-22 (1979);
parameter for random masks as used by STC (arXiv 1903.02891).
"""

from __future__ import annotations

import math

import numpy as np

from fedbonsai.errors import BadMessage
from fedbonsai.stages.codec.bits import Ints, Octets, pack, packed_size, unpack
from fedbonsai.stages.codec.cursor import Cursor, varint


def expected_parameter(n: int, k: int) -> int:
    """Best ``b`` for a random mask: ``1 + floor(log2(ln(phi - 1) / ln(1 - k/n)))``, at least 0."""
    golden = math.log((math.sqrt(5) - 1) / 2)
    return max(0, 1 + math.floor(math.log2(golden / math.log1p(-k / n)))) if k < n else 0


def best_parameter(gaps: Ints, n: int) -> tuple[int, int]:
    """The ``b`` of least true size, and that size in bits; masks of trained layers are not random.

    Args:
        gaps: zeros before each kept position.
        n: positions in all.
    """
    k = len(gaps)

    def bits(b: int) -> int:
        return k * (b + 1) + int((gaps >> b).sum())

    b = expected_parameter(n, k)
    size = bits(b)
    for step in (-1, 1):  # the size is convex in b to within a bit per gap: walk downhill
        while 0 <= b + step <= n.bit_length() and (other := bits(b + step)) < size:
            b, size = b + step, other
    return b, size


def encode(gaps: Ints, b: int) -> list[bytes | Octets]:
    """``u8 b``, varint length of the unary stream, unary stream, remainders."""
    ends = np.cumsum((gaps >> b) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1, np.uint8)
    unary[ends] = 1
    ones = pack(unary, 1)
    return [bytes([b]) + varint(len(ones)), ones, pack(gaps & ((1 << b) - 1), b)]


def decode(cursor: Cursor, n: int, k: int) -> Ints:
    """Indices, ascending.

    Raises:
        BadMessage: not ``k`` indices below ``n``.
    """
    b = cursor.byte()
    if b > n.bit_length():
        raise BadMessage(f"rice parameter {b} for {n} values")
    unary = np.frombuffer(cursor.take(cursor.varint(cursor.left, "unary stream")), np.uint8)
    ends = np.flatnonzero(np.unpackbits(unary, bitorder="little").view(np.bool_))
    if len(ends) != k or len(unary) != packed_size(int(ends[-1]) + 1, 1):
        raise BadMessage(f"unary stream of {len(unary)} bytes ends {len(ends)} gaps, expected {k}")
    order = np.arange(k)
    quotients = ends - order  # running sum of the quotients
    if int(quotients[-1]) > n >> b:
        raise BadMessage(f"position beyond the {n} values of the tensor")
    rest = unpack(cursor.take(packed_size(k, b)), k, b)
    positions = (quotients << b) + order
    if b:
        positions += np.cumsum(rest, dtype=np.int64)
    return positions
