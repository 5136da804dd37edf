"""The dense gradient that growth needs, of chosen layers alone and a tile of outputs at a time.

A mask grows where the gradient of a pruned weight is large (PruneFL's importances, FedTiny's top-K), which a sparse
layer does not compute. As soon as a backward pass has the gradient of a chosen layer's output, its product with the input
is taken tile by tile and shown: a whole dense gradient never exists, and nothing outlives the layer's turn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import grad as gradients

from fedbonsai.errors import ConfigError
from fedbonsai.sparse.convert import SparseNet
from fedbonsai.sparse.layers import SparseConv1d, SparseConv2d, SparseLinear, Watch

by_kernel: Any = gradients.conv2d_weight  # annotated for square strides only
TILE = 1 << 18  # entries of a tile, 1 MiB of float32


@contextmanager
def watching(
    net: SparseNet, names: Iterable[str], see: Callable[[str, int, Tensor], None], entries: int = TILE
) -> Generator[None]:
    """Show the dense gradients of chosen layers, while passes go forward and backward through the network.

    Args:
        net: in which the layers are.
        names: of the weights of sparse layers; a pass backward must take the gradients of their values.
        see: is called with the name, the first output of a tile, and the tile [some outputs, ...].
        entries: of a tile; at least one output is in it.

    Raises:
        ConfigError: a weight whose layer is not sparse: its gradient is dense anyway.
    """
    layers = {name: net.layers.get(name) for name in names}
    if dense := [name for name, layer in layers.items() if not isinstance(layer, SparseLinear | SparseConv2d)]:
        raise ConfigError(f"{dense} are not weights of sparse layers; their gradients are dense anyway")
    for name, layer in layers.items():
        if isinstance(layer, SparseLinear | SparseConv2d):
            layer.watch = _watch(name, layer, see, entries)
    try:
        yield
    finally:
        for layer in layers.values():
            if layer is not None:
                layer.watch = None


def _watch(
    name: str, layer: SparseLinear | SparseConv2d, see: Callable[[str, int, Tensor], None], entries: int
) -> Watch:
    # not a hook on the output: one that an activation overwrites in place never hears of its gradient
    def watch(x: Tensor, grad: Tensor) -> None:
        for first, tile in tiles(layer, x, grad, entries):
            see(name, first, tile)

    return watch


def tiles(
    layer: SparseLinear | SparseConv2d, x: Tensor, grad: Tensor, entries: int = TILE
) -> Iterator[tuple[int, Tensor]]:
    """A layer's gradient by its dense weight: the first output of each tile, and the tile [some outputs, ...].

    Args:
        layer: sparse.
        x: its input in a pass.
        grad: of its output.
        entries: of a tile; at least one output is in it.
    """
    outputs, *rest = layer.pattern.shape
    height = max(1, entries // max(1, torch.Size(rest).numel()))
    if isinstance(layer, SparseLinear):
        grad, x = grad.flatten(0, -2).t(), x.flatten(0, -2)
        for first in range(0, outputs, height):
            yield first, grad[first : first + height] @ x
        return
    x = x.contiguous()  # once for all tiles
    for first in range(0, outputs, height):
        part = grad[:, first : first + height]
        tile = by_kernel(x, (part.shape[1], *rest), part, layer.pattern.stride, layer.padding)
        yield first, tile.squeeze(2) if isinstance(layer, SparseConv1d) else tile
