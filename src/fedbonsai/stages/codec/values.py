"""Kept values as bytes: from a stage of the values family to a part of a record, and back.

Decoding needs the record alone, not the chain: the number of the codec and its parameters stand in the record.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import torch

from fedbonsai.errors import BadMessage, NotFinite
from fedbonsai.stages.codec import integers, quantize
from fedbonsai.stages.codec.bits import Octets, pack, packed_size, unpack
from fedbonsai.stages.codec.cursor import Cursor
from fedbonsai.stages.codec.draws import ROUNDING, SIGNS, Draws
from fedbonsai.stages.codec.hadamard import rotate, unrotate
from fedbonsai.stages.codec.positions import Parts
from fedbonsai.stages.codec.quantize import Single, single
from fedbonsai.stages.codec.select import Floats
from fedbonsai.stages.codec.stages import Affine, Bf16, Drive, Entropy, Fp16, Fp32, Qsgd, SignMag, Stage

RAW, FP32, FP16, BF16, AFFINE, SIGNMAG, DRIVE, QSGD = range(8)  # as they stand in a record; RAW: the tensor's own type

_CHANNEL = 4  # flag in the options byte: how (2 bits), channel, bits - 1 (3 bits)


class Context:
    """What an encoder or decoder knows beside the values: the seed, the tensor's place, its rows."""

    def __init__(self, seed: int, tensor: int, rows: int = 1) -> None:
        self.seed, self.tensor, self.rows = seed, tensor, rows

    def draws(self, use: int) -> Draws:
        """A stream of this tensor."""
        return Draws(self.seed, self.tensor, use)


def encode(stage: Stage, entropy: Entropy | None, values: Floats, context: Context) -> tuple[int, Parts]:
    """Encode values.

    Args:
        stage: of the values family.
        entropy: stage after it, if any.
        values: flat, finite, at least one, fp32 or fp64.
        context: ``rows`` is dimension 0 where ranges per channel are meant, else 1.

    Returns:
        Number of the codec, and the bytes.

    Raises:
        NotFinite: a value is beyond what the codec can hold.
    """
    coder = entropy.codec if entropy else None
    match stage:
        case Fp32():
            with np.errstate(over="ignore"):
                narrow = values.astype("<f4")
            if not np.isfinite(narrow).all():
                raise NotFinite("a value is beyond the range of fp32; leave the values in their own type")
            return FP32, [narrow.view(np.uint8)]
        case Fp16():
            most = float(np.finfo(np.float16).max)
            # torch converts at memory speed, NumPy does not
            half = torch.from_numpy(values).clamp(-most, most).half()
            return FP16, [half.view(torch.uint8).numpy()]
        case Bf16():
            return BF16, [_to_bf16(values)]
        case Affine():
            return AFFINE, _affine(stage, coder, values, context)
        case SignMag():
            return SIGNMAG, _signmag(stage, coder, values, context)
        case Drive():
            return DRIVE, _drive(stage, values, context)
        case Qsgd():
            return QSGD, _qsgd(stage, coder, values, context)
        case _:
            raise TypeError(f"{stage!r} is not a stage of values")


def decode(code: int, cursor: Cursor, count: int, context: Context) -> Single:
    """Inverse of `encode`, for every number but `RAW`: fp32 values.

    Args:
        code: number of the codec.
        cursor: at the values.
        count: values, at least one.
        context: ``rows`` is dimension 0 of the tensor if it has two or more dimensions and is sent whole, else 1.

    Raises:
        BadMessage: not ``count`` finite values.
    """
    if code == FP32:
        return cursor.floats32(count, "values")
    if code == FP16:
        values = np.frombuffer(cursor.take(2 * count), "<f2").astype(np.float32)
    elif code == BF16:
        values = (np.frombuffer(cursor.take(2 * count), "<u2").astype(np.uint32) << 16).view(np.float32)
    elif code == AFFINE:
        return _from_affine(cursor, count, context)
    elif code == SIGNMAG:
        return _from_signmag(cursor, count)
    elif code == DRIVE:
        scale = cursor.float32("scale of signs", 0)
        signs = unpack(cursor.take(packed_size(count, 1)), count, 1) * np.float32(-2) + np.float32(1)
        with np.errstate(over="ignore", invalid="ignore"):
            values = unrotate(signs.astype(np.float32, copy=False), context.draws(SIGNS)) * np.float32(scale)
    elif code == QSGD:
        return _from_qsgd(cursor, count)
    else:
        raise BadMessage(f"unknown codec {code} of values; the sender may have a newer version")
    if not np.isfinite(values).all():
        raise BadMessage("values: not finite")
    return values


def _to_bf16(values: Floats) -> Octets:
    """Nearest, halves to even; what would round to infinity stays the largest finite value."""
    with np.errstate(over="ignore"):
        bits = values.astype(np.float32).view(np.uint32)
    magnitude = bits & 0x7FFFFFFF
    rounded = np.minimum((magnitude + 0x7FFF + (magnitude >> 16 & 1)) >> 16, 0x7F7F)
    return (rounded | bits >> 16 & 0x8000).astype("<u2").view(np.uint8)


def _affine(stage: Affine, coder: integers.Coder | None, values: Floats, context: Context) -> Parts:
    rows = values.reshape(context.rows, -1)
    lows = [single(low, "least value") for low in rows.min(1)]
    highs = [single(high, "largest value") for high in rows.max(1)]
    draws = context.draws(ROUNDING) if stage.rounding == "stochastic" else None
    top = (1 << stage.bits) - 1
    codes = np.concatenate(
        [
            quantize.codes(row, low, quantize.affine_step(low, high, stage.bits), top, draws)
            for row, low, high in zip(rows, lows, highs, strict=True)
        ]
    )
    how, parts = integers.encode(codes, stage.bits, coder)
    options = how | (_CHANNEL if stage.scope == "channel" and context.rows > 1 else 0) | (stage.bits - 1) << 3
    return [bytes([options]) + np.array([lows, highs], "<f4").tobytes(), *parts]


def _options(cursor: Cursor) -> tuple[int, bool, int]:
    options = cursor.byte()
    if options >> 6:
        raise BadMessage(f"unknown options {options:#x} of values")
    return options & 3, bool(options & _CHANNEL), (options >> 3) + 1


def _from_affine(cursor: Cursor, count: int, context: Context) -> Single:
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


def _signmag(stage: SignMag, coder: integers.Coder | None, values: Floats, context: Context) -> Parts:
    magnitudes, negative = np.abs(values), np.signbit(values)
    if stage.bits == 1:
        header = struct.pack("<f", single(magnitudes.mean(dtype=np.float64), "mean magnitude"))
        codes = negative.view(np.uint8)
    else:
        low, high = single(magnitudes.min(), "least magnitude"), single(magnitudes.max(), "largest magnitude")
        header = struct.pack("<ff", low, high)
        top = (1 << (stage.bits - 1)) - 1
        draws = context.draws(ROUNDING) if stage.rounding == "stochastic" else None
        codes = quantize.codes(magnitudes, low, (high - low) / top, top, draws)
        codes |= negative.view(np.uint8) << (stage.bits - 1)
    how, parts = integers.encode(codes, stage.bits, coder, signed=True)
    return [bytes([how | (stage.bits - 1) << 3]) + header, *parts]


def _from_signmag(cursor: Cursor, count: int) -> Single:
    how, channel, bits = _options(cursor)
    if channel:
        raise BadMessage("signmag has no channels")
    low = cursor.float32("least magnitude", 0)
    if bits == 1:
        table = quantize.signed_table(np.array([low]))
    else:
        table = quantize.signmag_table(low, cursor.float32("largest magnitude", low), bits)
    return table[integers.decode(how, cursor, count, bits, signed=True)]


def _drive(stage: Drive, values: Floats, context: Context) -> Parts:
    peak = float(np.abs(values).max())  # an all-zero tensor has no record of values, but kept zeros may
    unit = (values / (peak or 1.0)).astype(np.float32)  # sums of large values stay finite
    rotated = rotate(unit, context.draws(SIGNS))
    total = float(np.abs(rotated).sum(dtype=np.float64))
    scale = total / len(unit)
    if stage.unbiased and total:
        scale = float(np.square(unit, dtype=np.float64).sum()) / total
    if scale * peak * math.sqrt(len(unit)) > float(np.finfo(np.float32).max):
        raise NotFinite("values too large for drive: their rotation leaves fp32; scale the update down")
    return [struct.pack("<f", scale * peak), pack(np.signbit(rotated).view(np.uint8), 1)]


def _qsgd(stage: Qsgd, coder: integers.Coder | None, values: Floats, context: Context) -> Parts:
    norm = single(math.sqrt(float(np.square(values, dtype=np.float64).sum())), "norm")
    codes = quantize.codes(np.abs(values), 0.0, norm / stage.levels, stage.levels, context.draws(ROUNDING))
    width = stage.levels.bit_length() + 1
    codes |= np.signbit(values).view(np.uint8) << (width - 1)
    how, parts = integers.encode(codes, width, coder, signed=True)
    return [struct.pack("<BBf", how, stage.levels, norm), *parts]


def _from_qsgd(cursor: Cursor, count: int) -> Single:
    how, levels = cursor.byte(), cursor.byte()
    if not 1 <= levels <= 127:
        raise BadMessage(f"{levels} levels: expected 1 to 127")
    norm = cursor.float32("norm", 0)
    width = levels.bit_length() + 1
    codes = integers.decode(how, cursor, count, width, signed=True)
    if int((codes & ((1 << (width - 1)) - 1)).max()) > levels:
        raise BadMessage(f"a level above {levels}")
    return quantize.qsgd_table(norm, levels)[codes]
