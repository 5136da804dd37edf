"""The arithmetic of the uniform quantizers: codes for values, and the table of values that the codes stand for.

A table of at most 256 levels is computed in float64 from header floats that are fp32 on both ends, and rounded to fp32
once; looking values up in it is exact, so both ends agree to the bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedbonsai.errors import NotFinite
from fedbonsai.stages.codec.bits import Octets
from fedbonsai.stages.codec.draws import Draws
from fedbonsai.stages.codec.select import Floats

_BLOCK = 1 << 15  # float64 intermediates stay in cache
_BEYOND = 2.0**128 - 2.0**103  # the least magnitude that fp32 rounds to infinity

Single = npt.NDArray[np.float32]


def single(value: float | np.floating, what: str) -> float:
    """The value as fp32, which is what travels.

    Raises:
        NotFinite: it is beyond fp32.
    """
    if not abs(float(value)) < _BEYOND:
        raise NotFinite(
            f"{what} = {value}: beyond the range of fp32; scale the update down, or send it without quantizer"
        )
    return float(np.float32(value))


def codes(values: Floats, low: float, step: float, top: int, draws: Draws | None) -> Octets:
    """``clip(round((v - low) / step), 0, top)``; zeros where ``step`` is 0.

    Args:
        values: flat.
        low: value of code 0.
        step: between two codes.
        top: largest code.
        draws: for stochastic rounding; None rounds to the nearest, halves to the even.
    """
    out = np.zeros(len(values), np.uint8)
    if not step:
        return out
    for start in range(0, len(values), _BLOCK):
        scaled = values[start : start + _BLOCK].astype(np.float64)
        scaled -= low
        scaled /= step
        if draws is None:
            np.rint(scaled, out=scaled)
        else:
            scaled += draws.uniform(len(scaled))
            np.floor(scaled, out=scaled)
        np.clip(scaled, 0, top, out=scaled)
        out[start : start + _BLOCK] = scaled
    return out


def affine_step(low: float, high: float, bits: int) -> float:
    """``(high - low) / (2^bits - 1)``."""
    return (high - low) / ((1 << bits) - 1)


def affine_table(low: float, high: float, bits: int) -> Single:
    """Values of all codes."""
    return (low + affine_step(low, high, bits) * np.arange(1 << bits)).astype(np.float32)


def signed_table(magnitudes: Floats) -> Single:
    """Values of codes whose highest bit is the sign: ``magnitudes``, then the same negated."""
    return np.concatenate((magnitudes, -magnitudes)).astype(np.float32)


def signmag_table(low: float, high: float, bits: int) -> Single:
    """Values of all codes, 2 to 8 bits."""
    top = (1 << (bits - 1)) - 1
    return signed_table(low + (high - low) / top * np.arange(top + 1))


def qsgd_table(norm: float, levels: int) -> Single:
    """Values of all codes; magnitudes above ``levels`` do not occur."""
    return signed_table(norm / levels * np.arange(1 << levels.bit_length()))
