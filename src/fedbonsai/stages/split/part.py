"""One part of a network with its optimiser's memory, as it lies in a client's memory between two batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedbonsai.core import Client, Samples
from fedbonsai.local import SGD, descend, epochs
from fedbonsai.model import Arch, Model, Skeleton, skeleton
from fedbonsai.stages.codec import Chain, Packed
from fedbonsai.tree import Tree, Weights, generator
from fedbonsai.wire import message


@message("split/part@1")
class Part:
    """Weights and momentum (empty before the first step) of one part."""

    arch: Arch
    weights: Mapping[str, Tensor]
    momentum: Mapping[str, Tensor]

    @staticmethod
    def fresh(arch: Arch, weights: Tree) -> Part:
        """A part at the beginning of a round."""
        return Part(arch, weights, {})

    def net(self, device: str) -> Skeleton:
        """The network with these weights, in training mode; the next part of the same form takes its place."""
        net = skeleton(Model(self.arch, self.weights), device)
        net.module.train()
        return net

    def output(self, x: Tensor, device: str) -> Tensor:
        """Forward without gradients [samples, ...]; running statistics stay as they were, since only weights are kept."""
        with torch.no_grad():
            return self.net(device).module(x)

    def stepped(self, net: Skeleton, grads: list[Tensor], sgd: SGD) -> Part:
        """The part after one step on gradients of the network's parameters."""
        names, params = list(net.parameters), list(net.parameters.values())
        momentum: list[Tensor] = []
        if sgd.momentum:
            held = self.momentum
            momentum = [
                held[n].to(p.device, copy=True) if held else torch.zeros_like(p)
                for n, p in zip(names, params, strict=True)
            ]
        with torch.no_grad():
            descend(params, grads, sgd, momentum)
        kept = {name: value.cpu() for name, value in zip(names, momentum, strict=False)}
        return Part(self.arch, net.snapshot(), kept)

    def pulled(self, x: Tensor, gradient: Tensor, sgd: SGD, device: str) -> Part:
        """The part after one step on the gradient of its output; the forward pass is computed again."""
        net = self.net(device)
        params = list(net.parameters.values())
        grads = torch.autograd.grad(net.module(x), params, gradient.to(device))
        return self.stepped(net, list(grads), sgd)


def batch(me: Client, seed: int, sgd: SGD, number: int) -> Samples | None:
    """The round's batch of that number, as `local.batches` would give it (without augmentation); None behind the last.

    Args:
        me: whose samples.
        seed: of the round's first message to this client.
        sgd: size of batches and number of epochs.
        number: from 0.
    """
    for order, cuts in epochs(len(me.train), sgd, generator(seed)):
        if number < len(cuts):
            begin, end = cuts[number]
            return me.train[order[begin:end]].to(me.device)
        number -= len(cuts)
    return None


def coded(chain: Chain, value: Tensor, seed: int) -> Packed:
    """Activations or gradients [samples, ...], packed."""
    return chain.pack({"": value.detach().cpu()}, seed)


def decoded(packed: Packed, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Inverse of `coded`; the receiver knows the shape from its own part.

    Raises:
        BadMessage: something else was packed.
    """
    return packed.dense({"": torch.zeros(shape, dtype=dtype)})[""]


def renamed(weights: Tree, old: str, new: str) -> Weights:
    """Weights whose names begin with ``old`` (and a dot, unless empty), under names that begin with ``new``."""
    old, new = old and old + ".", new and new + "."
    return {new + name.removeprefix(old): value for name, value in weights.items() if name.startswith(old)}


def sub(arch: Arch, kind: str) -> Arch:
    """Architecture of a part (``front``, ``back``, ``auxiliary``) of a network."""
    options: dict[str, Any] = {"of": arch.name, "options": dict(arch.options)}
    return Arch(kind, options)
