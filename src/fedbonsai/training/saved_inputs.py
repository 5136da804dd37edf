"""Layers that keep for the backward pass only the largest part of their input: what follows is exact, slopes are not.

The forward pass and the gradient of the input are untouched, since neither needs what is saved; the gradient of the weight
is taken of the input with zeros in the place of its small values. Hooks of `torch.autograd.graph` do it, for linear layers
and convolutions, by the network's own code. A convolution that pads by other than zeros, or by more on one side, saves a
larger copy, which stays whole.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.conv import _ConvNd

Saved = Tensor | tuple[Tensor, Tensor, torch.Size]  # as it is, or places, values and shape


@contextmanager
def pruned(network: nn.Module, shares: Mapping[str, float]) -> Generator[None]:
    """Let layers save only the largest values of their inputs, as long as the block lasts.

    Args:
        network: whose layers.
        shares: of the values of an input that are saved, by the name of the layer's weight; floor(share x values), at least one.
    """
    handles: list[Any] = []
    for path, layer in network.named_modules():
        share = shares.get(f"{path}.weight" if path else "weight", 1.0)
        if isinstance(layer, nn.Linear | _ConvNd) and share < 1:
            watch = _Watch(share)
            handles += [
                layer.register_forward_pre_hook(watch.begin),
                layer.register_forward_hook(watch.end, always_call=True),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Watch:
    """One layer, while it computes."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._open: list[saved_tensors_hooks] = []

    def begin(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """From here on what autograd saves of the input is cut down; a linear layer would copy what does not lie in a row."""
        x = inputs[0].contiguous() if isinstance(layer, nn.Linear) else inputs[0]
        where, size = x.data_ptr(), x.numel()

        def pack(value: Tensor) -> Saved:
            """Only the input: what lies where it lies and is as large."""
            return self.cut(value) if (value.data_ptr(), value.numel()) == (where, size) else value

        self._open.append(saved_tensors_hooks(pack, whole))
        self._open[-1].__enter__()
        return x, *inputs[1:]

    def end(self, *_: object) -> None:
        """The layer is done."""
        if self._open:
            self._open.pop().__exit__(None, None, None)

    def cut(self, value: Tensor) -> Saved:
        """The largest magnitudes."""
        flat = value.detach().reshape(-1)
        places = flat.abs().topk(max(1, int(self.share * flat.numel())), sorted=False).indices
        return places, flat[places], value.shape


def whole(saved: Saved) -> Tensor:
    """With zeros where nothing was saved."""
    if isinstance(saved, Tensor):
        return saved
    places, values, shape = saved
    found = torch.zeros(shape.numel(), dtype=values.dtype, device=values.device)
    return found.index_copy_(0, places, values).reshape(shape)
