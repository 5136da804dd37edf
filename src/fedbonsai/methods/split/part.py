"""One part of a network with its optimiser's memory, as it lies in a client's memory between two batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedbonsai import work
from fedbonsai.arch import Arch
from fedbonsai.cached_module import CachedModule
from fedbonsai.core import Client, Samples
from fedbonsai.errors import BadMessage, ConfigError
from fedbonsai.model import Model, cached_module
from fedbonsai.stages.codec import Chain, Packed
from fedbonsai.training.batches import Views, epochs
from fedbonsai.training.gradients import gradients
from fedbonsai.training.optimizers import Moving, Optimizer
from fedbonsai.tree import Tree, Weights, generator, seed_of
from fedbonsai.wire import message

LARGEST = 1 << 26  # values of one batch behind a cut


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

    def net(self, device: str) -> CachedModule:
        """The network with these weights, in training mode; the next part of the same form takes its place."""
        net = cached_module(Model(self.arch, self.weights), device)
        net.module.train()
        return net

    def output(self, x: Tensor, device: str) -> Tensor:
        """Forward without gradients [samples, ...]; running statistics stay as they were, since only weights are kept."""
        with torch.no_grad():
            out = self.net(device).module(x)
        self.report(x, forward=len(x))
        return out

    def report(self, x: Tensor, forward: int = 0, backward: int = 0, inward: bool = False) -> None:
        """Say that a batch went through this part, and with ``backward`` that a step was made on it."""
        held, steps = work.size_of(self.momentum.values()), int(backward > 0)
        work.report(
            Model(self.arch, self.weights),
            x.shape[1:],
            forward=forward,
            backward=backward,
            steps=steps,
            held=held,
            inward=inward,
        )

    def stepped(self, net: CachedModule, grads: list[Tensor], sgd: Optimizer) -> Part:
        """The part after one step on gradients of the network's parameters."""
        names, params = list(net.parameters), list(net.parameters.values())
        moving = Moving(params, sgd.slots())
        with torch.no_grad():
            for slot in moving.slots if self.momentum else ():
                torch._foreach_copy_(slot, [self.momentum[name] for name in names])
            moving.move(sgd, grads, sgd.lr)
        kept = {name: value.cpu() for slot in moving.slots for name, value in zip(names, slot, strict=True)}
        return Part(self.arch, net.snapshot(), kept)

    def pulled(self, x: Tensor, gradient: Tensor, sgd: Optimizer, device: str) -> Part:
        """The part after one step on the gradient of its output; the forward pass is computed again."""
        net = self.net(device)
        params = list(net.parameters.values())
        grads = gradients(net.module(x), params, gradient.to(device))
        self.report(x, backward=len(x))
        return self.stepped(net, grads, sgd)


def batch(me: Client, seed: int, sgd: Optimizer, number: int, view: str = "view") -> Samples | None:
    """The round's batch of that number; None behind the last. Without augmentation it is that of `training.batches`.

    Args:
        me: whose samples.
        seed: of the round's first message to this client.
        sgd: size of batches and number of epochs.
        number: from 0.
        view: name of the augmentation's draws, which are equal whenever the batch is asked for again.

    Raises:
        ConfigError: the client has no samples.
    """
    if not len(me.train):
        raise ConfigError(f"client {me.id} has no training samples; ask for a larger minimum per client (data.minimum)")
    whole = number
    for order, cuts in epochs(len(me.train), sgd, generator(seed)):
        if number < len(cuts):
            begin, end = cuts[number]
            found = me.train[order[begin:end]]
            if me.augment:
                found = Samples(
                    Views.drawn(len(found), found.shape, generator(seed_of(seed, view, whole, 0))).of(found.x), found.y
                )
            return found.to(me.device)
        number -= len(cuts)
    return None


def coded(chain: Chain, value: Tensor, seed: int) -> Packed:
    """Activations or gradients [samples, ...], packed."""
    return chain.pack({"": value.detach().cpu()}, seed)


def decoded(packed: Packed, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Inverse of `coded`.

    Args:
        packed: what came.
        shape: as the sender says; it is bounded before memory is taken.
        dtype: of the receiver's part.

    Raises:
        BadMessage: something else was packed, or the shape cannot be that of a batch.
    """
    if len(shape) > 8 or any(size < 0 for size in shape) or math.prod(shape) > LARGEST:
        raise BadMessage(f"activations or gradients of shape {shape}: at most {LARGEST} values are taken")
    return packed.dense({"": torch.zeros(1, dtype=dtype).expand(shape)})[""]


def renamed(weights: Tree, old: str, new: str) -> Weights:
    """Weights whose names begin with ``old`` (and a dot, unless empty), under names that begin with ``new``."""
    old, new = old and old + ".", new and new + "."
    return {new + name.removeprefix(old): value for name, value in weights.items() if name.startswith(old)}


def sub(arch: Arch, kind: str) -> Arch:
    """Architecture of a part (``front``, ``back``, ``auxiliary``) of a network."""
    options: dict[str, Any] = {"of": arch.name, "options": dict(arch.options)}
    return Arch(kind, options, arch.objective)
