"""Where a convolution finds its activations, with the batch last in memory: tables for the loops of `kernels`.

Inputs are padded once, and for a stride above 1 their columns are dealt out by remainder, so that a row of outputs
always reads a contiguous row of inputs. Shapes are [channels, height, width, batch].
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbonsai.errors import ConfigError
from fedbonsai.sparse.pattern import MOST, Ints

Pair = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """Pixels of an input whose gradient takes the same taps of the kernel.

    Attributes:
        base: the first of the pattern's lists.
        first: uppermost and leftmost pixel.
        size: how many of them, down and across.
        table: int32 [outputs * kernel], offset in the padded gradient of the output.
    """

    base: int
    first: Pair
    size: Pair
    table: Ints


@dataclass(frozen=True)
class Geometry:
    """A convolution on images of one size in batches of one size.

    Attributes:
        size: of the output, down and across.
        table: int32 [inputs * kernel], offset in the prepared input.
        step: floats from what an output row reads to what the next one does.
        padding: of the input: left, right, top, bottom; negative where pixels are not reached.
        stride: down and across.
        parts: of the input, for its gradient.
        margin: padding of the output's gradient, in the same order.
        span: floats from a row of the padded gradient to the next.
    """

    size: Pair
    table: Ints
    step: int
    padding: tuple[int, int, int, int]
    stride: Pair
    parts: tuple[Part, ...]
    margin: tuple[int, int, int, int]
    span: int

    def prepared(self, x: Tensor) -> Tensor:
        """The input as the table wants it, in memory that the next call uses again."""
        return _framed(x, self.padding, self.stride[1])

    def framed(self, grad: Tensor) -> Tensor:
        """The gradient of the output in its margin of zeros, in memory that the next call uses again."""
        return _framed(grad, self.margin, 1)


_scratch = threading.local()


def _framed(x: Tensor, padding: tuple[int, int, int, int], deal: int) -> Tensor:
    """A copy in a frame of zeros, [channels, height, deal, width / deal, batch]; ``x`` itself where nothing changes.

    Fresh memory for every layer would cost as much as the loops do at one per cent, because the system clears it.
    """
    if not any(padding) and deal == 1:
        return x
    left, right, top, bottom = padding
    channels, rows, columns, batch = x.shape
    height, width = rows + top + bottom, columns + left + right
    size = channels * height * width * batch
    if getattr(_scratch, "floats", torch.empty(0)).numel() < size:
        _scratch.floats = torch.empty(size)
    frame = _scratch.floats[:size].view(channels, height, deal, width // deal, batch)
    x = x[:, : height - top, : width - left]
    if deal > 1:
        frame.zero_()
        for remainder in range(deal):
            first = (remainder - left) % deal
            part = x[:, :, first::deal]
            begin = (left + first) // deal
            frame[:, top : top + x.shape[1], remainder, begin : begin + part.shape[2]] = part
        return frame
    whole = frame[:, :, 0]
    whole[:, :top] = 0
    whole[:, top + x.shape[1] :] = 0
    whole[:, :, :left] = 0
    whole[:, :, left + x.shape[2] :] = 0
    whole[:, top : top + x.shape[1], left : left + x.shape[2]] = x
    return frame


@lru_cache(maxsize=128)
def geometry(inputs: int, outputs: int, kernel: Pair, stride: Pair, padding: Pair, image: Pair, batch: int) -> Geometry:
    """Tables of a convolution.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: height and width.
        stride: down and across.
        padding: zeros above and below, left and right.
        image: height and width of the input.
        batch: samples.

    Raises:
        ConfigError: the image is smaller than the kernel, or a batch of it too large to be counted in 31 bits.
    """
    out = [(image[d] + 2 * padding[d] - kernel[d]) // stride[d] + 1 for d in (0, 1)]
    if min(out) < 1:
        raise ConfigError(f"images of {image} pixels with padding {padding} are smaller than the kernel {kernel}")
    height = (out[0] - 1) * stride[0] + kernel[0]
    width = (out[1] - 1) * stride[1] + kernel[1]
    width += -width % stride[1]
    channel, down, across = _grid(inputs, *kernel)
    line = width // stride[1]
    table = (((channel * height + down) * stride[1] + across % stride[1]) * line + across // stride[1]) * batch
    before = [max(0, -(-(kernel[d] - 1 - padding[d]) // stride[d])) for d in (0, 1)]
    after = [max(0, (padding[d] + image[d] - 1) // stride[d] - (out[d] - 1)) for d in (0, 1)]
    framed = [before[d] + out[d] + after[d] for d in (0, 1)]
    _counted(max(inputs * height * width, outputs * framed[0] * framed[1]), batch)
    channel, down, across = _grid(outputs, *kernel)
    parts: list[Part] = []
    for a in range(stride[0]):
        for b in range(stride[1]):
            first = ((a - padding[0]) % stride[0], (b - padding[1]) % stride[1])
            size = (len(range(first[0], image[0], stride[0])), len(range(first[1], image[1], stride[1])))
            # only taps of this part's remainders are ever looked up, and for them both divisions are exact
            row = (first[0] + padding[0] - down) // stride[0] + before[0]
            place = (channel * framed[0] + row) * framed[1]
            place = place + (first[1] + padding[1] - across) // stride[1] + before[1]
            parts.append(Part((a * stride[1] + b) * inputs, first, size, (place * batch).astype(np.int32)))
    return Geometry(
        (out[0], out[1]),
        table.astype(np.int32),
        stride[0] * width * batch,
        (padding[1], width - image[1] - padding[1], padding[0], height - image[0] - padding[0]),
        stride,
        tuple(parts),
        (before[1], after[1], before[0], after[0]),
        framed[1] * batch,
    )


@lru_cache(maxsize=128)
def evenly(count: int, batch: int) -> Ints:
    """The table of a linear layer: rows of ``batch`` floats, one after the other."""
    _counted(count, batch)
    return np.arange(count, dtype=np.int32) * np.int32(batch)


def _counted(floats: int, batch: int) -> None:
    if floats * batch > MOST:
        raise ConfigError(
            f"{floats} activations in batches of {batch}: sparse layers count them in 31 bits; take fewer"
        )


def _grid(*sizes: int) -> list[NDArray[np.int64]]:
    return [part.reshape(-1) for part in np.indices(sizes)]
