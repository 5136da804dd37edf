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
        """The pattern of a dense mask, true where a weight is kept."""
        return Pattern.at(mask.reshape(-1).nonzero().flatten().numpy(), tuple(mask.shape), stride)

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
        outputs, inputs, (height, width) = shape[0], shape[1], shape[2:] or (1, 1)
        row = inputs * height * width
        if outputs * row > MOST:
            raise ConfigError(f"a weight of {outputs * row} entries: sparse layers count them in 31 bits")
        inside = not len(places) or (places[0] >= 0 and places[-1] < outputs * row)
        if not inside or bool((np.diff(places) <= 0).any()):
            raise ConfigError(f"places of a weight {list(shape)}: expected ascending numbers below {outputs * row}")
        output, column = np.divmod(places.astype(np.int32), np.int32(row or 1))
        channel, tap = np.divmod(column, np.int32(height * width))
        keys, classes = channel, stride[0] * stride[1]
        if classes > 1:
            keys = keys + ((tap // width % stride[0]) * stride[1] + tap % width % stride[1]) * np.int32(inputs)
        begins, order = np.zeros(classes * inputs + 1, np.int64), np.empty(len(places), np.int32)
        kernels.transposed(keys, begins, order)
        starts = np.zeros(outputs + 1, np.int64)
        np.cumsum(np.bincount(output, minlength=outputs), out=starts[1:])
        return Pattern(
            shape, stride, Rows(starts, column), Rows(begins, (output * np.int32(height * width) + tap)[order]), order
        )

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
        """The values of a dense weight at the kept places."""
        return weight.reshape(-1).index_select(0, torch.from_numpy(self.places()))

    def dense(self, values: Tensor) -> Tensor:
        """The dense weight, exactly zero where nothing is kept."""
        whole = torch.zeros(int(np.prod(self.shape)), dtype=values.dtype)
        return whole.index_copy_(0, torch.from_numpy(self.places()), values).reshape(self.shape)

    def carried(self, values: Tensor, to: Pattern) -> Tensor:
        """Values for another pattern of the same weight: where both keep a place its value, elsewhere zero."""
        old, new = self.places(), to.places()
        if not len(old):
            return torch.zeros(len(new))
        at = np.searchsorted(old, new).clip(max=len(old) - 1)
        return torch.where(torch.from_numpy(old[at] == new), values[torch.from_numpy(at)], 0.0)

    def same(self, mask: Tensor) -> bool:
        """Whether a dense mask keeps exactly these places."""
        return int(mask.count_nonzero()) == len(self) and bool(self.gathered(mask).all())
