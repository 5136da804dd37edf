"""A last pass over quantized integers: zstandard, or a range coder."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedbonsai.errors import BadMessage
from fedbonsai.settings import raise_all, when
from fedbonsai.stages.codec import ranges
from fedbonsai.stages.codec.bits import Octets, pack, packed_size, unpack
from fedbonsai.stages.codec.cursor import Cursor
from fedbonsai.stages.codec.registry import shipped
from fedbonsai.stages.codec.squeeze import squeeze, unsqueeze
from fedbonsai.stages.codec.stages import EntropyCoder

ZSTD, RANGE = 1, 2


@shipped("entropy", ZSTD, RANGE)
class Entropy(EntropyCoder):
    """A last pass over quantized integers; left out for a tensor where it gains nothing."""

    primary = "codec"
    codec: Literal["zstd", "range"] = "zstd"

    def __post_init__(self) -> None:
        raise_all(when((self.codec not in ("zstd", "range"), f"codec = {self.codec!r}: expected 'zstd' or 'range'")))

    @property
    def ranged(self) -> bool:
        """Where it is the range coder."""
        return self.codec == "range"

    def encode(self, codes: Octets, width: int, signed: bool) -> tuple[int, bytes]:
        """By the coder that was named."""
        if self.codec == "range":
            return RANGE, ranges.encode_symbols(codes, width, signed)
        return ZSTD, squeeze(pack(codes, width) if _in_fields(width) else codes)

    @classmethod
    def decode(cls, code: int, cursor: Cursor, count: int, width: int, signed: bool) -> Octets:
        """By the coder that the record names."""
        if code == RANGE:
            return ranges.decode_symbols(cursor, count, width, signed)
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


def _in_fields(width: int) -> bool:
    """Whether zstandard sees packed fields: where they would straddle bytes, whole bytes squeeze better."""
    return width in (1, 2, 4, 8)
