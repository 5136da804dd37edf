"""Between tensors and flat NumPy arrays, tensors as their own bytes, and what was sent of them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedbonsai.errors import BadMessage, NotFinite
from fedbonsai.stages.codec.bits import Ints, Octets, pack, packed_size, unpack
from fedbonsai.stages.codec.cursor import Cursor
from fedbonsai.stages.codec.select import Floats

_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextmanager
def named(name: str) -> Generator[None]:
    """Where values are not finite, say of which tensor."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(f"tensor {name!r}: {error}") from None


@dataclass(frozen=True)
class Sparse:
    """What was sent of one tensor.

    Attributes:
        indices: [k] int64, ascending, into the flat tensor; None where all values were sent.
        values: [k], in the type of the tensor it belongs to.
    """

    indices: Tensor | None
    values: Tensor

    def dense(self, like: Tensor) -> Tensor:
        """A dense tensor of the type, shape and device of ``like``."""
        if self.indices is None or not like.numel():
            return self.values.reshape(like.shape).to(like.device)
        # NumPy asks the system for zero pages, large ones where it can: several times faster than clearing new memory
        out = torch.from_numpy(np.zeros(like.numel() * like.element_size(), np.uint8)).view(like.dtype)
        out.scatter_(0, self.indices, self.values)
        return out.reshape(like.shape).to(like.device)

    def added(self, base: Tensor, sign: int) -> Tensor:
        """``base + sign * sent``, in new memory."""
        if self.indices is None:
            return torch.add(base, self.values.reshape(base.shape).to(base.device), alpha=sign)
        out = base.detach().clone().contiguous()
        flat = out.view(-1)
        places = self.indices.to(base.device)
        flat.scatter_(0, places, flat.index_select(0, places) + sign * self.values.to(base.device))
        return out


def rows_of(value: Tensor) -> int:
    """Channels: dimension 0 of tensors of two and more dimensions, else 1."""
    return max(1, value.shape[0]) if value.ndim > 1 else 1


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


def taken(value: Tensor, indices: Ints) -> Tensor:
    """Elements of a flat floating tensor; NumPy gathers several times faster than torch, but knows fewer types."""
    return torch.from_numpy(value.view(_SAME_SIZE[value.element_size()]).numpy().take(indices)).view(value.dtype)


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
