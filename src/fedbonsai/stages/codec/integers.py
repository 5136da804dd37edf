"""A stream of small integers: fields of a few bits, or behind an entropy coder where that is smaller."""

from __future__ import annotations

import numpy as np

from fedbonsai.errors import BadMessage
from fedbonsai.stages.codec.bits import Octets, Parts, pack, packed_size, unpack
from fedbonsai.stages.codec.cursor import Cursor
from fedbonsai.stages.codec.stages import CODERS, EntropyCoder

PLAIN = 0  # other numbers are of entropy coders


def encode(codes: Octets, width: int, entropy: EntropyCoder | None, signed: bool = False) -> tuple[int, Parts]:
    """Encode codes of ``width`` bits, 1 to 8.

    Args:
        codes: what to encode.
        width: bits of a code.
        entropy: coder to try.
        signed: the highest bit is a sign, as likely as not.

    Returns:
        How it was done (`PLAIN`, or the coder's code), and the bytes.
    """
    plain = pack(codes, width)
    if entropy is not None:
        how, squeezed = entropy.encode(codes, width, signed)
        if len(squeezed) < len(plain):
            return how, [squeezed]
    return PLAIN, [plain]


def decode(how: int, cursor: Cursor, count: int, width: int, signed: bool = False) -> Octets:
    """``count`` codes below ``2^width``.

    Raises:
        BadMessage: anything else.
    """
    if how == PLAIN:
        return unpack(cursor.take(packed_size(count, width)), count, width).astype(np.uint8, copy=False)
    codes = CODERS.read(how, lambda coder: coder.decode(how, cursor, count, width, signed))
    if how in CODERS.own and (codes.dtype != np.uint8 or codes.shape != (count,) or int(codes.max()) >> width):
        raise BadMessage(f"not {count} integers of {width} bits")
    return codes
