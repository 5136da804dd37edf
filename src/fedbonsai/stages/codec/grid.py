"""Values as whole multiples of one step that never changes, so that sums of what was sent are such multiples too.

Every other quantizer takes its levels from the values at hand, and two of its messages can only be added as floats.
Messages of a grid are integers, and what a device missed in many rounds is one such message (`stages.catch_up`).
"""

from __future__ import annotations

import math

import numpy as np

from fedbonsai.errors import BadMessage
from fedbonsai.settings import raise_all, when
from fedbonsai.stages.codec import integers, positions
from fedbonsai.stages.codec.bits import Octets, Parts, length, pack, packed_size, unpack
from fedbonsai.stages.codec.context import Context
from fedbonsai.stages.codec.cursor import Cursor, varint
from fedbonsai.stages.codec.quantize import Single, signed_table
from fedbonsai.stages.codec.registry import shipped
from fedbonsai.stages.codec.select import Floats
from fedbonsai.stages.codec.stages import EntropyCoder, Symbols, Values

GRID = 8  # as it stands in a record
MOST = 127  # steps of one value
_NONE_ZERO = 4  # flag in the options byte: how (2 bits), this, bits - 1 (3 bits), layers; magnitudes are counted from 1
_LAYERS = 64  # flag: signs, and then layer by layer which values go on
_LEAST, _LARGEST = -100, 100  # exponents of a step


@shipped("grid", GRID)
class Grid(Values):
    """The nearest of 127 multiples of ``step`` to either side, halves to the even; what is further away is the last of them.

    Attributes:
        step: a power of two, such as 0.03125, in the unit of the values.
    """

    primary = "step"
    step: float

    def __post_init__(self) -> None:
        power = 0 < self.step < math.inf and math.frexp(self.step)[0] == 0.5
        wrong = not power or not _LEAST <= self.exponent <= _LARGEST
        raise_all(when((wrong, f"step = {self.step}: expected a power of two, such as 0.03125 or 0.0078125")))

    @property
    def exponent(self) -> int:
        """Of two."""
        return math.frexp(self.step)[1] - 1

    @property
    def symbols(self) -> Symbols:
        """Magnitudes below their signs."""
        return "integers"

    def multiples(self, values: Floats) -> np.ndarray:
        """How many steps each value is, as whole numbers in float64."""
        return np.clip(np.rint(values.astype(np.float64) / self.step), -MOST, MOST) + 0.0  # no zero has a sign

    def encode(self, values: Floats, context: Context, entropy: EntropyCoder | None) -> Parts:
        """The exponent, and magnitudes with signs in as few bits as the largest needs."""
        steps = self.multiples(values)
        codes = np.abs(steps).astype(np.uint8)
        least = int(codes.min() > 0)
        codes -= least
        width = int(codes.max()).bit_length() + 1
        codes |= np.signbit(steps).view(np.uint8) << (width - 1)
        how, parts = integers.encode(codes, width, entropy, signed=True)
        options, layers = how | (width - 1) << 3, _layers(codes, width)
        if length(layers) < length(parts):
            options, parts = _LAYERS, layers
        return [bytes([options | least * _NONE_ZERO]) + self.exponent.to_bytes(1, signed=True), *parts]

    @classmethod
    def decode(cls, cursor: Cursor, count: int, context: Context) -> Single:
        """Multiples looked up in a table."""
        options, raw = cursor.byte(), cursor.byte()
        exponent = raw - 256 if raw > MOST else raw
        if options >> 7 or not _LEAST <= exponent <= _LARGEST:
            raise BadMessage(f"options {options:#x} and exponent {exponent} of a grid")
        least = (options & _NONE_ZERO) // _NONE_ZERO
        if options & ~_NONE_ZERO == _LAYERS:
            codes, width = _peeled(cursor, count), 8
        elif options & _LAYERS:
            raise BadMessage(f"options {options:#x} of a grid in layers")
        else:
            width = (options >> 3) + 1
            codes = integers.decode(options & 3, cursor, count, width, signed=True)
        if int((codes & ((1 << (width - 1)) - 1)).max()) + least > MOST:
            raise BadMessage(f"a value of more than {MOST} steps")
        return signed_table((np.arange(1 << (width - 1)) + least) * 2.0**exponent)[codes]


def _layers(codes: Octets, width: int) -> Parts:
    """Signs; then, of those left, how many go on and which: short where few values are much larger than the rest."""
    rest = codes & ((1 << (width - 1)) - 1)
    parts: Parts = [pack(codes >> (width - 1), 1)]
    while len(rest):
        further = np.flatnonzero(rest)
        parts.append(varint(len(further)))
        if 0 < len(further) < len(rest):
            code, places = positions.encode(further, len(rest))
            parts += [bytes([code]), *places]
        rest = rest[further] - 1
    return parts


def _peeled(cursor: Cursor, count: int) -> Octets:
    """Codes of 8 bits from signs and layers."""
    signs = unpack(cursor.take(packed_size(count, 1)), count, 1).astype(np.uint8)
    magnitudes, left = np.zeros(count, np.uint8), np.arange(count)
    for _ in range(MOST + 1):
        further = cursor.varint(len(left), "values that go on")
        if not further:
            magnitudes |= signs << 7
            return magnitudes
        if further < len(left):
            left = left[positions.decode(cursor.byte(), cursor, len(left), further)]
        magnitudes[left] += 1
    raise BadMessage(f"more than {MOST} layers")
