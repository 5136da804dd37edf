"""Reading a payload with every length checked against what is really there (layout: ``docs/codecs.md``)."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from fedbonsai.errors import BadMessage

LARGEST = (1 << 31) - 1  # values in one tensor: keeps every index sum far inside 64 bits


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; the high bit says that more follow."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Cursor:
    """A position in a buffer; each read moves it or raises `BadMessage`."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self.data) - self.at

    def take(self, size: int) -> memoryview:
        """The next ``size`` bytes, not copied."""
        if size > self.left:
            raise BadMessage(f"payload ends too early: {size} bytes expected at {self.at}, {self.left} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def byte(self) -> int:
        """One byte."""
        return self.take(1)[0]

    def varint(self, most: int, what: str) -> int:
        """One variable-length integer of at most ``most``, in its shortest form."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if value > most or shift > 35:
                raise BadMessage(f"{what}: more than {most}")
            if byte < 0x80:
                if not byte and shift:
                    raise BadMessage(f"{what}: an integer longer than it needs to be")
                return value
            shift += 7

    def float32(self, what: str, least: float = float("-inf")) -> float:
        """One finite fp32 of at least ``least``."""
        value = float(struct.unpack("<f", self.take(4))[0])
        if not (np.isfinite(value) and value >= least):
            raise BadMessage(f"{what} = {value}: expected a finite number >= {least}")
        return value

    def floats32(self, count: int, what: str) -> npt.NDArray[np.float32]:
        """``count`` finite fp32 values, not copied."""
        values = np.frombuffer(self.take(4 * count), "<f4")
        if not np.isfinite(values).all():
            raise BadMessage(f"{what}: not finite")
        return values
