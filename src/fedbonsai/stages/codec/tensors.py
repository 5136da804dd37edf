"""Between tensors and flat NumPy arrays, and tensors as their own bytes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedbonsai.errors import BadMessage
from fedbonsai.stages.codec.bits import Octets, pack, packed_size, unpack
from fedbonsai.stages.codec.cursor import Cursor
from fedbonsai.stages.codec.select import Floats


def flat(value: Tensor) -> Tensor:
    """One dimension, in C order, on the CPU, without a graph."""
    return value.detach().cpu().contiguous().reshape(-1)


def floats(value: Tensor) -> Floats:
    """A flat floating tensor as fp64 if it is, else as fp32; not copied where that is its type."""
    return (value if value.dtype in (torch.float32, torch.float64) else value.float()).numpy()


def raw(value: Tensor) -> Octets:
    """A flat tensor's bytes; booleans as bits."""
    if value.dtype == torch.bool:
        return pack(value.numpy().view(np.uint8), 1)
    return value.view(torch.uint8).numpy()


def from_raw(cursor: Cursor, count: int, dtype: torch.dtype) -> Tensor:
    """``count`` values of a type; the receiver's own memory.

    Raises:
        BadMessage: too few bytes, or a value that is not finite.
    """
    if dtype == torch.bool:
        bits = unpack(cursor.take(packed_size(count, 1)), count, 1)
        return torch.from_numpy(bits.astype(np.bool_))
    data = cursor.take(count * dtype.itemsize)
    value = torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)
    if dtype.is_floating_point and not torch.isfinite(value).all():
        raise BadMessage("values: not finite")
    return value


def typed(values: Floats, dtype: torch.dtype) -> Tensor:
    """Decoded values in the receiver's type.

    Raises:
        BadMessage: a value is beyond that type.
    """
    value = torch.from_numpy(values if values.flags.writeable else values.copy()).to(dtype)
    if dtype.itemsize == 2 and not torch.isfinite(value).all():
        raise BadMessage("values: beyond the range of this tensor's type")
    return value
