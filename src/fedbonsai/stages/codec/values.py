"""How kept values are written: as floats, or quantized to a few bits.

Decoding needs the record alone, not the chain: the code and the parameters of a stage stand in the record.
"""

from __future__ import annotations

import math
import struct
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedbonsai.errors import BadMessage, NotFinite
from fedbonsai.settings import raise_all, when
from fedbonsai.stages.codec import integers, quantize
from fedbonsai.stages.codec.bits import Parts, pack, packed_size, unpack
from fedbonsai.stages.codec.context import Context
from fedbonsai.stages.codec.cursor import Cursor
from fedbonsai.stages.codec.draws import ROUNDING, SIGNS
from fedbonsai.stages.codec.hadamard import rotate, unrotate
from fedbonsai.stages.codec.quantize import Single, single
from fedbonsai.stages.codec.registry import shipped
from fedbonsai.stages.codec.select import Floats
from fedbonsai.stages.codec.stages import EntropyCoder, Members, Symbols, Values
from fedbonsai.stages.codec.tensors import rows_of

RAW, FP32, FP16, BF16, AFFINE, SIGNMAG, DRIVE, QSGD = range(8)  # as they stand in a record; RAW: the tensor's own type
Rounding = Literal["nearest", "stochastic"]

_CHANNEL = 4  # flag in the options byte: how (2 bits), channel, bits - 1 (3 bits)


@shipped("fp32", FP32)
class Fp32(Values):
    """Four bytes a value; narrower tensors keep their own type."""

    width, lossless = 4, True

    def encode(self, values: Floats, context: Context, entropy: EntropyCoder | None) -> Parts:
        """Rounded to fp32."""
        with np.errstate(over="ignore"):
            narrow = values.astype("<f4")
        if not np.isfinite(narrow).all():
            raise NotFinite("a value is beyond the range of fp32; leave the values in their own type")
        return [narrow.view(np.uint8)]

    @classmethod
    def decode(cls, cursor: Cursor, count: int, context: Context) -> Single:
        """As they stand there."""
        return cursor.floats32(count, "values")


@shipped("fp16", FP16)
class Fp16(Values):
    """Two bytes a value, about 3 digits; magnitudes above 65504 become 65504."""

    width = 2

    def encode(self, values: Floats, context: Context, entropy: EntropyCoder | None) -> Parts:
        """Rounded to fp16."""
        most = float(np.finfo(np.float16).max)
        # torch converts at memory speed, NumPy does not
        half = torch.from_numpy(values).clamp(-most, most).half()
        return [half.view(torch.uint8).numpy()]

    @classmethod
    def decode(cls, cursor: Cursor, count: int, context: Context) -> Single:
        """As they stand there."""
        return _finite(np.frombuffer(cursor.take(2 * count), "<f2").astype(np.float32))


@shipped("bf16", BF16)
class Bf16(Values):
    """Two bytes a value, about 2 digits, the range of fp32."""

    width = 2

    def encode(self, values: Floats, context: Context, entropy: EntropyCoder | None) -> Parts:
        """Nearest, halves to even; what would round to infinity stays the largest finite value."""
        with np.errstate(over="ignore"):
            bits = values.astype(np.float32).view(np.uint32)
        magnitude = bits & 0x7FFFFFFF
        rounded = np.minimum((magnitude + 0x7FFF + (magnitude >> 16 & 1)) >> 16, 0x7F7F)
        return [(rounded | bits >> 16 & 0x8000).astype("<u2").view(np.uint8)]

    @classmethod
    def decode(cls, cursor: Cursor, count: int, context: Context) -> Single:
        """As they stand there."""
        bits = np.frombuffer(cursor.take(2 * count), "<u2").astype(np.uint32)
        return _finite((bits << 16).view(np.float32))


def _finite(values: Single) -> Single:
    if not np.isfinite(values).all():
        raise BadMessage("values: not finite")
    return values


# --- quantizers ----------------------------------------------------------------------------------------------------


@shipped("affine", AFFINE)
class Affine(Values):
    """2^bits levels at equal steps from the least to the largest value (Q-affine).

    Attributes:
        bits: 1 to 8 a value.
        scope: one range per ``tensor``, or per ``channel`` (dimension 0 of tensors of two and more dimensions).
        rounding: ``stochastic`` is unbiased and seeded.
    """

    primary = "bits"
    bits: int = 8
    scope: Literal["tensor", "channel"] = "tensor"
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        wrong = self.scope not in ("tensor", "channel")
        raise_all(
            _bits_and_rounding(self.bits, self.rounding)
            + when((wrong, f"scope = {self.scope!r}: expected 'tensor' or 'channel'"))
        )

    @property
    def symbols(self) -> Symbols:
        """Levels."""
        return "integers"

    def rows(self, value: Tensor) -> int:
        """Channels, where each has its range."""
        return rows_of(value) if self.scope == "channel" else 1

    def encode(self, values: Floats, context: Context, entropy: EntropyCoder | None) -> Parts:
        """Least and largest values, and levels."""
        rows = values.reshape(context.rows, -1)
        lows = [single(low, "least value") for low in rows.min(1)]
        highs = [single(high, "largest value") for high in rows.max(1)]
        draws = context.draws(ROUNDING) if self.rounding == "stochastic" else None
        top = (1 << self.bits) - 1
        codes = np.concatenate(
            [
                quantize.codes(row, low, quantize.affine_step(low, high, self.bits), top, draws)
                for row, low, high in zip(rows, lows, highs, strict=True)
            ]
        )
        how, parts = integers.encode(codes, self.bits, entropy)
        options = how | (_CHANNEL if self.scope == "channel" and context.rows > 1 else 0) | (self.bits - 1) << 3
        return [bytes([options]) + np.array([lows, highs], "<f4").tobytes(), *parts]

    @classmethod
    def decode(cls, cursor: Cursor, count: int, context: Context) -> Single:
        """Levels looked up in the table of each row."""
        how, channel, bits = _options(cursor)
        rows = context.rows if channel else 1
        lows, highs = cursor.floats32(2 * rows, "range of values").astype(np.float64).reshape(2, rows)
        if (lows > highs).any():
            raise BadMessage("least value above the largest")
        codes = integers.decode(how, cursor, count, bits).reshape(rows, -1)
        out = np.empty((rows, count // rows), np.float32)
        for row, (low, high) in enumerate(zip(lows.tolist(), highs.tolist(), strict=True)):
            np.take(quantize.affine_table(low, high, bits), codes[row], out=out[row])
        return out.reshape(-1)

    def growth(self) -> str:
        """Of 1 bit and nearest levels the error is half of the range: the largest magnitude, where signs differ."""
        if self.bits > 1:
            return ""
        return (
            "affine of 1 bit: its error may be as large as what it sends, so the residual grows; use signmag of 1 bit, "
            "or bits >= 2"
        )

    def faults(self, chain: Members) -> list[str]:
        """Channels are of whole tensors."""
        if self.scope == "tensor" or chain.sparsifier is None:
            return []
        short = chain.sparsifier.short
        return [f"affine per channel after {short}: what is kept has no channels; use scope = 'tensor'"]


@shipped("signmag", SIGNMAG)
class SignMag(Values):
    """A sign and bits - 1 bits of magnitude between the least and the largest; 1 bit: sign times the mean magnitude.

    2 or 3 bits can be worse than 1 on peaked data, since the largest value sets the step: take 1, or 4 to 8.

    Attributes:
        bits: 1 to 8 a value.
        rounding: ``stochastic`` is unbiased, given the positions, and seeded.
    """

    primary = "bits"
    bits: int = 8
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        idle = self.bits == 1 and self.rounding != "nearest"
        raise_all(
            _bits_and_rounding(self.bits, self.rounding)
            + when((idle, "signmag with 1 bit sends the mean: nothing is rounded"))
        )

    @property
    def symbols(self) -> Symbols:
        """Magnitudes below their signs, or signs alone."""
        return "signs" if self.bits == 1 else "integers"

    def encode(self, values: Floats, context: Context, entropy: EntropyCoder | None) -> Parts:
        """Least and largest magnitudes, or their mean, and levels with signs."""
        magnitudes, negative = np.abs(values), np.signbit(values)
        if self.bits == 1:
            header = struct.pack("<f", single(magnitudes.mean(dtype=np.float64), "mean magnitude"))
            codes = negative.view(np.uint8)
        else:
            low, high = single(magnitudes.min(), "least magnitude"), single(magnitudes.max(), "largest magnitude")
            header = struct.pack("<ff", low, high)
            top = (1 << (self.bits - 1)) - 1
            draws = context.draws(ROUNDING) if self.rounding == "stochastic" else None
            codes = quantize.codes(magnitudes, low, (high - low) / top, top, draws)
            codes |= negative.view(np.uint8) << (self.bits - 1)
        how, parts = integers.encode(codes, self.bits, entropy, signed=True)
        return [bytes([how | (self.bits - 1) << 3]) + header, *parts]

    @classmethod
    def decode(cls, cursor: Cursor, count: int, context: Context) -> Single:
        """Levels looked up in a table."""
        how, channel, bits = _options(cursor)
        if channel:
            raise BadMessage("signmag has no channels")
        low = cursor.float32("least magnitude", 0)
        if bits == 1:
            table = quantize.signed_table(np.array([low]))
        else:
            table = quantize.signmag_table(low, cursor.float32("largest magnitude", low), bits)
        return table[integers.decode(how, cursor, count, bits, signed=True)]

    def growth(self) -> str:
        """With two levels the step is the whole range, and a value rounded at random can miss by all of it."""
        if self.bits != 2 or self.rounding != "stochastic":
            return ""
        return (
            "signmag of 2 bits and stochastic rounding: its error may be as large as what it sends, so the residual "
            "grows; use rounding = 'nearest', or bits >= 3"
        )


@shipped("drive", DRIVE)
class Drive(Values):
    """One bit a value: signs after a seeded random rotation, and one scalar (Vargaftik et al., NeurIPS 2021).

    Attributes:
        unbiased: the scalar that makes the expectation the input (error .571) rather than the error least (.363).
    """

    primary, seeded = "unbiased", True
    unbiased: bool = False

    @property
    def symbols(self) -> Symbols:
        """Signs of rotated values."""
        return "signs"

    def encode(self, values: Floats, context: Context, entropy: EntropyCoder | None) -> Parts:
        """The scalar, and signs."""
        peak = float(np.abs(values).max())  # an all-zero tensor has no record of values, but kept zeros may
        unit = (values / (peak or 1.0)).astype(np.float32)  # sums of large values stay finite
        rotated = rotate(unit, context.draws(SIGNS))
        total = float(np.abs(rotated).sum(dtype=np.float64))
        scale = total / len(unit)
        if self.unbiased and total:
            scale = float(np.square(unit, dtype=np.float64).sum()) / total
        if scale * peak * math.sqrt(len(unit)) > float(np.finfo(np.float32).max):
            raise NotFinite("values too large for drive: their rotation leaves fp32; scale the update down")
        return [struct.pack("<f", scale * peak), pack(np.signbit(rotated).view(np.uint8), 1)]

    @classmethod
    def decode(cls, cursor: Cursor, count: int, context: Context) -> Single:
        """Rotated back."""
        draws = context.draws(SIGNS)
        scale = cursor.float32("scale of signs", 0)
        signs = unpack(cursor.take(packed_size(count, 1)), count, 1) * np.float32(-2) + np.float32(1)
        with np.errstate(over="ignore", invalid="ignore"):
            values = unrotate(signs.astype(np.float32, copy=False), draws) * np.float32(scale)
        return _finite(values)


@shipped("qsgd", QSGD)
class Qsgd(Values):
    """Magnitudes in units of norm / levels, rounded at random without bias (Alistarh et al., NeurIPS 2017).

    Attributes:
        levels: s, 1 to 127.
    """

    primary = "levels"
    levels: int = 127

    def __post_init__(self) -> None:
        wrong = not 1 <= self.levels <= 127
        raise_all(when((wrong, f"levels = {self.levels}: expected 1 to 127, so that a code fits a byte")))

    @property
    def symbols(self) -> Symbols:
        """Levels below their signs."""
        return "integers"

    def encode(self, values: Floats, context: Context, entropy: EntropyCoder | None) -> Parts:
        """Number of levels, norm, and levels with signs."""
        norm = single(math.sqrt(float(np.square(values, dtype=np.float64).sum())), "norm")
        codes = quantize.codes(np.abs(values), 0.0, norm / self.levels, self.levels, context.draws(ROUNDING))
        width = self.levels.bit_length() + 1
        codes |= np.signbit(values).view(np.uint8) << (width - 1)
        how, parts = integers.encode(codes, width, entropy, signed=True)
        return [struct.pack("<BBf", how, self.levels, norm), *parts]

    @classmethod
    def decode(cls, cursor: Cursor, count: int, context: Context) -> Single:
        """Levels looked up in a table."""
        how, levels = cursor.byte(), cursor.byte()
        if not 1 <= levels <= 127:
            raise BadMessage(f"{levels} levels: expected 1 to 127")
        norm = cursor.float32("norm", 0)
        width = levels.bit_length() + 1
        codes = integers.decode(how, cursor, count, width, signed=True)
        if int((codes & ((1 << (width - 1)) - 1)).max()) > levels:
            raise BadMessage(f"a level above {levels}")
        return quantize.qsgd_table(norm, levels)[codes]

    def growth(self) -> str:
        """Its levels are far apart beside most values."""
        return "qsgd: its error may exceed what it sends, so the residual can grow; use signmag"


def _bits_and_rounding(bits: int, rounding: str) -> list[str]:
    return when(
        (not 1 <= bits <= 8, f"bits = {bits}: expected 1 to 8; for more take fp16"),
        (rounding not in ("nearest", "stochastic"), f"rounding = {rounding!r}: expected 'nearest' or 'stochastic'"),
    )


def _options(cursor: Cursor) -> tuple[int, bool, int]:
    options = cursor.byte()
    if options >> 6:
        raise BadMessage(f"unknown options {options:#x} of values")
    return options & 3, bool(options & _CHANNEL), (options >> 3) + 1
