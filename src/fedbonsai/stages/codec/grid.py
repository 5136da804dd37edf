"""Values as whole multiples of one step that never changes, so that sums of what was sent are such multiples too.

Every other quantizer takes its levels from the values at hand, and two of its messages can only be added as floats.
Messages of a grid are integers, and what a device missed in many rounds is one such message (`stages.catch_up`).
"""

from __future__ import annotations

import math

import numpy as np

from fedbonsai.errors import BadMessage
from fedbonsai.stages.codec import integers
from fedbonsai.stages.codec.bits import Parts
from fedbonsai.stages.codec.context import Context
from fedbonsai.stages.codec.cursor import Cursor
from fedbonsai.stages.codec.quantize import Single, signed_table
from fedbonsai.stages.codec.registry import shipped
from fedbonsai.stages.codec.select import Floats
from fedbonsai.stages.codec.stages import EntropyCoder, Symbols, Values
from fedbonsai.stages.settings import raise_all, when

GRID = 8  # as it stands in a record
MOST = 127  # steps of one value
_NONE_ZERO = 4  # flag in the options byte: how (2 bits), this, bits - 1 (3 bits); magnitudes are counted from 1
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
        return [bytes([how | least * _NONE_ZERO | (width - 1) << 3]) + self.exponent.to_bytes(1, signed=True), *parts]

    @classmethod
    def decode(cls, cursor: Cursor, count: int, context: Context) -> Single:
        """Multiples looked up in a table."""
        options, raw = cursor.byte(), cursor.byte()
        exponent = raw - 256 if raw > MOST else raw
        if options >> 6 or not _LEAST <= exponent <= _LARGEST:
            raise BadMessage(f"options {options:#x} and exponent {exponent} of a grid")
        width, least = (options >> 3) + 1, (options & _NONE_ZERO) // _NONE_ZERO
        magnitudes = (np.arange(1 << (width - 1)) + least) * 2.0**exponent
        codes = integers.decode(options & 3, cursor, count, width, signed=True)
        if int((codes & ((1 << (width - 1)) - 1)).max()) + least > MOST:
            raise BadMessage(f"a value of more than {MOST} steps")
        return signed_table(magnitudes)[codes]
