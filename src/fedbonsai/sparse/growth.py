"""The dense gradient that growth needs, of chosen layers alone and a tile of outputs at a time.

A mask grows where the gradient of a pruned weight is large (PruneFL's importances, FedTiny's top-K), which a sparse
layer does not compute. During one backward pass the inputs and the gradients of the outputs of the chosen layers are
kept, and their product is taken tile by tile afterwards: a whole dense gradient never exists.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import grad as gradients

from fedbonsai.errors import ConfigError
from fedbonsai.sparse.convert import SparseNet
from fedbonsai.sparse.layers import SparseConv2d, SparseLinear

by_kernel: Any = gradients.conv2d_weight  # annotated for square strides only
TILE = 1 << 18  # entries of a tile, 1 MiB of float32


@dataclass(frozen=True)
class Kept:
    """What a layer's gradient is made of.

    Attributes:
        layer: sparse.
        inputs: of each pass.
        grads: of the outputs of each pass, in the order in which they came.
    """

    layer: SparseLinear | SparseConv2d
    inputs: list[Tensor]
    grads: list[Tensor]

    def tiles(self, entries: int = TILE) -> Iterator[tuple[int, Tensor]]:
        """The gradient by the dense weight: first output of each tile, and the tile [some outputs, ...].

        Args:
            entries: of a tile; at least one output is in it.

        Raises:
            ConfigError: the layer was not reached by exactly one forward and backward pass.
        """
        if len(self.inputs) != 1 or len(self.grads) != 1:
            raise ConfigError(
                f"{self.layer}: {len(self.inputs)} forward and {len(self.grads)} backward passes were kept; expected "
                "one of each, around torch.autograd.grad"
            )
        x, grad, shape = self.inputs[0], self.grads[0], self.layer.pattern.shape
        height = max(1, entries // max(1, torch.Size(shape[1:]).numel()))
        for first in range(0, shape[0], height):
            part = grad[:, first : first + height] if x.dim() == 4 else grad[..., first : first + height]
            if isinstance(self.layer, SparseLinear):
                yield first, part.flatten(0, -2).t() @ x.flatten(0, -2)
            else:
                size = (part.shape[1], *shape[1:])
                yield first, by_kernel(x, size, part, self.layer.pattern.stride, self.layer.padding)


@contextmanager
def keeping(net: SparseNet, names: Iterable[str]) -> Generator[Mapping[str, Kept]]:
    """Keep what the dense gradients of chosen layers are made of, while one pass goes through the network.

    Args:
        net: in which the layers are.
        names: of the weights of sparse layers.

    Raises:
        ConfigError: a weight whose layer is not sparse: its gradient is dense anyway.
    """
    kept: dict[str, Kept] = {}
    for name in names:
        layer = net.layers.get(name)
        if not isinstance(layer, SparseLinear | SparseConv2d):
            raise ConfigError(f"{name} is not the weight of a sparse layer; its gradient is dense anyway")
        kept[name] = Kept(layer, [], [])
    hooks = [each.layer.register_forward_hook(_hook(each)) for each in kept.values()]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _hook(to: Kept) -> Any:
    def watch(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        to.inputs.append(given[0].detach())
        output.register_hook(to.grads.append)

    return watch
