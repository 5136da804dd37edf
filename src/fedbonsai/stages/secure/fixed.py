"""Fixed-point codes of a few bits, and their sums modulo a power of two.

A value x in [-c, c] becomes the whole number x / c (2^(b-1) - 1), rounded: zero is zero. Of n devices' codes the sum lies
in b + ceil(log2 n) signed bits, modulo which everything is added, masks too; so sums are exact, whatever came in between.
Beside the codes stand a few wide fields of 64 bits: what weighs, losses and counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedbonsai.errors import BadMessage
from fedbonsai.stages.codec.bits import pack, packed_size, unpack

WIDE = 3  # wide fields: what an update weighs, its loss times that, values that were cut
FINE = 24  # bits of a running statistic's code; fewer where more than 256 devices are added up
RANGE = 64.0  # largest change of a running statistic that a code can tell
LOSS = 1 << 16  # codes of a loss of 1
HIGHEST = 1024.0  # loss that a code can tell

Codes = npt.NDArray[np.int64]
Words = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Field:
    """Equal fields in a row.

    Attributes:
        count: how many.
        bits: of one device's code.
        devices: whose codes are added up at most.
        clip: magnitude of the largest code; 1 where the codes are what is meant.
    """

    count: int
    bits: int
    devices: int
    clip: float = 1.0

    @property
    def width(self) -> int:
        """Bits on the wire."""
        return self.bits + (self.devices - 1).bit_length()

    @property
    def word(self) -> npt.DTypeLike:
        """The type in which fields are added up, modulo more than their width."""
        return "<u2" if self.width <= 16 else "<u4" if self.width <= 32 else "<u8"

    @property
    def step(self) -> float:
        """Value of one."""
        return self.clip / ((1 << (self.bits - 1)) - 1)

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return packed_size(self.count, self.width) if self.width <= 32 else 8 * self.count

    @property
    def stream(self) -> int:
        """Bytes of a mask."""
        return self.count * np.dtype(self.word).itemsize

    def codes(self, values: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64] | None) -> tuple[Codes, int]:
        """Codes of values, and how many values were cut.

        Args:
            values: [count], finite.
            uniform: numbers in [0, 1) by which is rounded up or down; None rounds to the nearest, halves to even.

        >>> Field(3, 4, 1, clip=0.7).codes(np.array([-0.7, 0.24, 9.0]), None)
        (array([-7,  2,  7]), 1)
        """
        most = (1 << (self.bits - 1)) - 1
        scaled = values / self.step
        cut = int(np.count_nonzero(np.abs(values) > self.clip))
        whole = np.rint(scaled) if uniform is None else np.floor(scaled + uniform)
        return np.clip(whole, -most, most).astype(np.int64), cut

    def words(self, codes: Codes) -> Words:
        """Codes modulo the word."""
        return codes.astype(self.word)

    def pack(self, words: Words) -> bytes:
        """Words on the wire, modulo the width."""
        if self.width > 32:
            return words.astype("<u8").tobytes()
        return pack(words & words.dtype.type((1 << self.width) - 1), self.width).tobytes()

    def unpack(self, data: memoryview) -> Words:
        """Inverse of `pack`.

        Raises:
            BadMessage: the last byte holds more than the fields.
        """
        if self.width > 32:
            return np.frombuffer(data, "<u8")
        return unpack(data, self.count, self.width).astype(self.word)

    def signed(self, words: Words) -> Codes:
        """The sum that words stand for."""
        unused = 64 - self.width
        return (words.astype(np.uint64) << np.uint64(unused)).view(np.int64) >> unused


@dataclass(frozen=True)
class Frame:
    """Rows of fields, one after another: what a device sends."""

    fields: tuple[Field, ...]

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return sum(field.size for field in self.fields)

    @property
    def stream(self) -> int:
        """Bytes of a mask."""
        return sum(field.stream for field in self.fields)

    def mask(self, stream: bytes) -> list[Words]:
        """A mask's words from random bytes."""
        found: list[Words] = []
        at = 0
        for field in self.fields:
            found.append(np.frombuffer(stream, field.word, field.count, at))
            at += field.stream
        return found

    def pack(self, words: Sequence[Words]) -> bytes:
        """All fields on the wire."""
        return b"".join(field.pack(row) for field, row in zip(self.fields, words, strict=True))

    def unpack(self, data: bytes) -> list[Words]:
        """Inverse of `pack`.

        Raises:
            BadMessage: there are more or fewer bytes than fields.
        """
        if len(data) != self.size:
            raise BadMessage(f"{len(data)} bytes of masked codes, expected {self.size}")
        view, found = memoryview(data), list[Words]()
        for field in self.fields:
            found.append(field.unpack(view[: field.size]))
            view = view[field.size :]
        return found

    def zeros(self) -> list[Words]:
        """Where a sum begins."""
        return [np.zeros(field.count, field.word) for field in self.fields]

    def signed(self, words: Sequence[Words]) -> list[Codes]:
        """The sums."""
        return [field.signed(row) for field, row in zip(self.fields, words, strict=True)]


def add(total: Sequence[Words], more: Sequence[Words]) -> None:
    """Add to the sums, in place."""
    for sums, row in zip(total, more, strict=True):
        np.add(sums, row, out=sums)


def subtract(total: Sequence[Words], less: Sequence[Words]) -> None:
    """Take from the sums, in place."""
    for sums, row in zip(total, less, strict=True):
        np.subtract(sums, row, out=sums)


def frame(
    learned: int, measured: int, bits: int, clip: float, devices: int, wanted: int = 0, finer: bool = False
) -> Frame:
    """What one device sends: wide fields, codes of what was learned, finer ones of running statistics, and what else is wanted.

    Args:
        learned: coordinates of parameters.
        measured: of running statistics.
        bits: of a code.
        clip: largest magnitude of a coordinate of parameters.
        devices: that are asked.
        wanted: values in [-1, 1] beside the update, such as gradients by the largest of them.
        finer: their codes are as fine as those of running statistics.
    """
    fine = min(FINE, 32 - (devices - 1).bit_length())
    return Frame(
        (
            Field(WIDE, 64 - (devices - 1).bit_length(), devices),
            Field(learned, bits, devices, clip),
            Field(measured, fine, devices, RANGE),
            Field(wanted, fine if finer else bits, devices),
        )
    )
