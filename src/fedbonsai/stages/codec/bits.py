"""Fields of a few bits in a row, lowest bit first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedbonsai.errors import BadMessage

Octets = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Parts = list[bytes | Octets]  # of a payload


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
    raw = fields.astype("<u1" if width < 8 else "<u4").view(np.uint8).reshape(len(fields), -1)
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
    rows = np.unpackbits(raw, count=count * width, bitorder="little").reshape(count, width)
    octets = np.packbits(rows, axis=1, bitorder="little")
    if width < 8:
        return octets.reshape(-1)
    wide = np.zeros((count, 4), np.uint8)
    wide[:, : octets.shape[1]] = octets
    return wide.view("<u4").reshape(-1)
