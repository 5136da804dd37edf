"""Fields of a few bits in a row, lowest bit first."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from fedbonsai.errors import BadMessage

Octets = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Parts = list[bytes | Octets]  # of a payload

_FEW = 1 << 12  # bytes that are looked into at once
_MOST = 0.62  # of random bytes have a one where a ninth of the bits are; from there on NumPy finds them faster


def length(parts: Parts) -> int:
    """Bytes."""
    return sum(len(part) for part in parts)


def packed_size(count: int, width: int) -> int:
    """Bytes that ``count`` fields of ``width`` bits take."""
    return (count * width + 7) // 8


def pack(fields: npt.NDArray[np.integer], width: int) -> Octets:
    """Pack the low ``width`` bits (0 to 32) of each field; the last byte is filled with zeros."""
    if width == 0 or not len(fields):
        return np.empty(0, np.uint8)
    if width == 8:
        return fields.astype(np.uint8, copy=False)
    if width == 1:
        return np.packbits(fields.astype(np.uint8, copy=False), bitorder="little")
    if width == 4:
        nibbles = fields.astype(np.uint8, copy=False)
        out = nibbles[::2].copy()
        out[: len(nibbles) // 2] |= nibbles[1::2] << 4
        return out
    if width < 8:
        return _closed(fields, width)
    raw = fields.astype("<u4").view(np.uint8).reshape(len(fields), -1)
    return np.packbits(np.unpackbits(raw, axis=1, count=width, bitorder="little"), bitorder="little")


def unpack(data: memoryview, count: int, width: int) -> npt.NDArray[np.unsignedinteger]:
    """Inverse of `pack`: uint8 for widths up to 8, else uint32.

    Args:
        data: exactly `packed_size` bytes.
        count: fields.
        width: bits of one field.

    Raises:
        BadMessage: bits after the last field are not zero.
    """
    raw = np.frombuffer(data, np.uint8)
    if width == 0 or not count:
        return np.zeros(count, np.uint8)
    if (spare := len(raw) * 8 - count * width) and raw[-1] >> (8 - spare):
        raise BadMessage("bits after the last field are not zero")
    if width == 8:
        return raw
    if width == 1:
        return np.unpackbits(raw, count=count, bitorder="little")
    if width == 4:
        out = np.empty(2 * len(raw), np.uint8)
        out[::2], out[1::2] = raw & 15, raw >> 4
        return out[:count]
    if width < 8:
        return _opened(raw, count, width)
    rows = np.unpackbits(raw, count=count * width, bitorder="little").reshape(count, width)
    octets = np.packbits(rows, axis=1, bitorder="little")
    wide = np.zeros((count, 4), np.uint8)
    wide[:, : octets.shape[1]] = octets
    return wide.view("<u4").reshape(-1)


def _closed(fields: npt.NDArray[np.integer], width: int) -> Octets:
    """`pack` for less than 8 bits: eight fields, a byte each, are one integer, whose halves are pushed together."""
    lanes = np.zeros((len(fields) + 7) // 8 * 8, np.uint8)
    lanes[: len(fields)] = fields
    lanes &= (1 << width) - 1
    words = lanes.view("<u8")
    for half in (8, 16, 32):
        low = _low(half, half)
        words = (words & low) | ((words >> np.uint64(half)) & low) << np.uint64(width * half // 8)
    filled = words.view(np.uint8).reshape(-1, 8)[:, :width]
    return filled.reshape(-1)[: packed_size(len(fields), width)]


def _opened(raw: Octets, count: int, width: int) -> Octets:
    """Inverse of `_closed`."""
    lanes = np.zeros(((count + 7) // 8, 8), np.uint8)
    whole = len(raw) // width
    lanes[:whole, :width] = raw[: whole * width].reshape(-1, width)
    lanes[whole:, : len(raw) % width] = raw[whole * width :]
    words = lanes.view("<u8").reshape(-1)
    for half in (32, 16, 8):
        used = width * half // 8
        low = _low(used, half)
        words = (words & low) | ((words >> np.uint64(used)) & low) << np.uint64(half)
    return words.view(np.uint8)[:count]


@cache
def _low(used: int, half: int) -> np.uint64:
    """The ``used`` low bits of the lower one of each two neighbours of ``half`` bits, in 64."""
    return np.uint64(sum(((1 << used) - 1) << at for at in range(0, 64, 2 * half)))


def ones(raw: Octets, count: int) -> Ints:
    """Places of the ones among ``count`` bits, ascending; where few bytes have any, those alone are looked into.

    Args:
        raw: bits, zeros after the last of ``count``.
        count: bits.
    """
    if len(raw) < _FEW or np.count_nonzero(raw) > _MOST * len(raw):
        return np.flatnonzero(np.unpackbits(raw, count=count, bitorder="little").view(np.bool_))
    held = ones(np.packbits(raw, bitorder="little"), len(raw))
    inside = np.flatnonzero(np.unpackbits(raw.take(held), bitorder="little").view(np.bool_))
    places = held.take(inside >> 3)
    places <<= 3
    inside &= 7
    places += inside
    return places
