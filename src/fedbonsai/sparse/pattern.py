"""A mask as lists of its kept places: by rows for the product with W and the weights' gradient, by columns for W^T.

A weight [outputs, inputs, height, width] is a matrix of ``outputs`` rows; a linear layer's kernel is 1 x 1. The columns'
lists are cut by the remainders of a kernel place by the stride, since only taps of one remainder reach the same pixels
of an input: the gradient by the input of a strided convolution then multiplies nothing by zero. Everything here takes
time and memory proportional to the kept places and the rows and columns, but for reading a dense mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbonsai.errors import ConfigError
from fedbonsai.sparse import kernels

Longs = NDArray[np.int64]
Ints = NDArray[np.int32]

MOST = 2**31 - 1


@dataclass(frozen=True)
class Rows:
    """Lists of places, one after the other.

    Attributes:
        starts: int64 [rows + 1], where each list begins.
        columns: int32 [places], what each place multiplies.
    """

    starts: Longs
    columns: Ints


@dataclass(frozen=True)
class Pattern:
    """Kept places of one weight.

    Attributes:
        shape: of the weight, [outputs, inputs] or [outputs, inputs, height, width].
        stride: of the convolution, vertical and horizontal.
        rows: a list for each output; columns are places within [inputs, height, width].
        back: a list for each remainder by the stride and input; columns are places within [outputs, height, width].
        order: int32 [places], which of the values each place of ``back`` takes.
    """

    shape: tuple[int, ...]
    stride: tuple[int, int]
    rows: Rows
    back: Rows
    order: Ints

    @staticmethod
    def of(mask: Tensor, stride: tuple[int, int] = (1, 1)) -> Pattern:
        """The pattern of a dense mask, true where a weight is kept.

        Raises:
            ConfigError: a weight of 2^31 entries.
        """
        shape, flat = tuple(mask.shape), _bytes(mask)
        row = _row(shape)
        starts, columns = np.empty(shape[0] + 1, np.int64), np.empty(kept(mask) + 1, np.int32)
        kernels.listed(flat, row, starts, columns)
        return Pattern._of(Rows(starts, columns[:-1]), shape, stride)

    @staticmethod
    def at(places: Longs, shape: tuple[int, ...], stride: tuple[int, int] = (1, 1)) -> Pattern:
        """The pattern of a list of places.

        Args:
            places: in ascending order, within the flattened weight.
            shape: of the weight.
            stride: of the convolution.

        Raises:
            ConfigError: places that are not ascending or not within the weight, or a weight of 2^31 entries.
        """
        row = _row(shape)
        inside = not len(places) or (places[0] >= 0 and places[-1] < shape[0] * row)
        if not inside or bool((np.diff(places) <= 0).any()):
            raise ConfigError(f"places of a weight {list(shape)}: expected ascending numbers below {shape[0] * row}")
        output, column = np.divmod(places.astype(np.int32), np.int32(row or 1))
        starts = np.zeros(shape[0] + 1, np.int64)
        np.cumsum(np.bincount(output, minlength=shape[0]), out=starts[1:])
        return Pattern._of(Rows(starts, column), shape, stride)

    @staticmethod
    def _of(rows: Rows, shape: tuple[int, ...], stride: tuple[int, int]) -> Pattern:
        """The pattern whose lists by outputs are known."""
        outputs, inputs, (height, width) = shape[0], shape[1], shape[2:] or (1, 1)
        output = np.repeat(np.arange(outputs, dtype=np.int32), np.diff(rows.starts))
        keys, places, classes = rows.columns, output, stride[0] * stride[1]
        if height * width > 1:
            keys, tap = np.divmod(rows.columns, np.int32(height * width))
            places = output * np.int32(height * width) + tap
            if classes > 1:
                keys = keys + ((tap // width % stride[0]) * stride[1] + tap % width % stride[1]) * np.int32(inputs)
        begins, order = np.zeros(classes * inputs + 1, np.int64), np.empty(len(keys), np.int32)
        kernels.transposed(keys, begins, order)
        return Pattern(shape, stride, rows, Rows(begins, places[order]), order)

    def __len__(self) -> int:
        return len(self.order)

    @property
    def density(self) -> float:
        """Share of the weight's entries that is kept."""
        return len(self) / max(1, int(np.prod(self.shape)))

    @property
    def bytes(self) -> int:
        """Memory of the lists."""
        return sum(part.nbytes for lists in (self.rows, self.back) for part in (lists.starts, lists.columns)) + (
            self.order.nbytes
        )

    def places(self) -> Longs:
        """Kept places within the flattened weight, ascending."""
        row = int(np.prod(self.shape[1:]))
        begins = np.arange(self.shape[0], dtype=np.int64) * row
        return np.repeat(begins, np.diff(self.rows.starts)) + self.rows.columns

    def gathered(self, weight: Tensor) -> Tensor:
        """The values of a dense weight at the kept places.

        Raises:
            ConfigError: other values than float32 on the CPU.
        """
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            raise ConfigError(f"weights {weight.dtype} on {weight.device}: sparse layers compute float32 on the CPU")
        out = torch.empty(len(self))
        kernels.gathered(*self._lists, weight.detach().reshape(-1).numpy(), out.numpy())
        return out

    def dense(self, values: Tensor) -> Tensor:
        """The dense weight, exactly zero where nothing is kept."""
        whole = torch.zeros(self.shape)
        kernels.scattered(*self._lists, values.detach().numpy(), whole.view(-1).numpy())
        return whole

    def same(self, mask: Tensor) -> bool:
        """Whether a dense mask keeps exactly these places."""
        flat = _bytes(mask)
        return kept(mask) == len(self) and bool(kernels.within(*self._lists, flat))

    @property
    def _lists(self) -> tuple[Longs, Ints, int]:
        return self.rows.starts, self.rows.columns, _row(self.shape)


def kept(mask: Tensor) -> int:
    """How many places a mask keeps: numpy counts bytes several times as fast as torch."""
    return int(np.count_nonzero(_bytes(mask)))


def _bytes(mask: Tensor) -> NDArray[np.uint8]:
    return mask.bool().reshape(-1).view(torch.uint8).numpy()


def _row(shape: tuple[int, ...]) -> int:
    """Entries of a row of a weight."""
    row = int(np.prod(shape[1:]))
    if shape[0] * row > MOST:
        raise ConfigError(f"a weight of {shape[0] * row} entries: sparse layers count them in 31 bits")
    return row
