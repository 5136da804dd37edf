"""A stream of small integers: fields of a few bits, or behind an entropy coder where that is smaller."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedbonsai.errors import BadMessage
from fedbonsai.stages.codec import ranges
from fedbonsai.stages.codec.bits import Octets, pack, packed_size, unpack
from fedbonsai.stages.codec.cursor import Cursor
from fedbonsai.stages.codec.positions import Parts
from fedbonsai.stages.codec.squeeze import squeeze, unsqueeze

PLAIN, ZSTD, RANGE = range(3)

Coder = Literal["zstd", "range"]


def _in_fields(width: int) -> bool:
    """Whether zstandard sees packed fields: where they would straddle bytes, whole bytes squeeze better."""
    return width in (1, 2, 4, 8)


def encode(codes: Octets, width: int, entropy: Coder | None, signed: bool = False) -> tuple[int, Parts]:
    """Encode codes of ``width`` bits, 1 to 8.

    Args:
        codes: what to encode.
        width: bits of a code.
        entropy: coder to try.
        signed: the highest bit is a sign, as likely as not.

    Returns:
        How it was done (`PLAIN`, `ZSTD`, `RANGE`), and the bytes.
    """
    plain = pack(codes, width)
    if entropy == "zstd":
        squeezed = squeeze(plain if _in_fields(width) else codes)
        if len(squeezed) < len(plain):
            return ZSTD, [squeezed]
    elif entropy == "range":
        ranged = ranges.encode_symbols(codes, width, signed)
        if len(ranged) < len(plain):
            return RANGE, [ranged]
    return PLAIN, [plain]


def decode(how: int, cursor: Cursor, count: int, width: int, signed: bool = False) -> Octets:
    """``count`` codes below ``2^width``.

    Raises:
        BadMessage: anything else.
    """
    if how == PLAIN:
        return unpack(cursor.take(packed_size(count, width)), count, width).astype(np.uint8, copy=False)
    if how == RANGE:
        return ranges.decode_symbols(cursor, count, width, signed)
    if how != ZSTD:
        raise BadMessage(f"unknown codec {how} of integers; the sender may have a newer version")
    size = packed_size(count, width) if _in_fields(width) else count
    data = unsqueeze(cursor, size)
    if len(data) != size:
        raise BadMessage(f"{len(data)} bytes of integers, expected {size}")
    if _in_fields(width):
        return unpack(memoryview(data), count, width).astype(np.uint8, copy=False)
    codes = np.frombuffer(data, np.uint8)
    if int(codes.max(initial=0)) >> width:
        raise BadMessage(f"an integer of more than {width} bits")
    return codes
