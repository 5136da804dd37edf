"""Multiply-accumulates of a network by layer, counted once for each architecture and input shape.

Convolutions and linear layers count; normalisation, activations and losses do not. The network is built without its
values (torch's meta device), so that counting costs no arithmetic and no memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedbonsai.model import Skeleton, forms
from fedbonsai.tree import Weights
from fedbonsai.work import Episode

Kind = Literal["conv", "linear"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PASSING = (nn.Flatten, nn.Identity, nn.Sequential)  # these make no values; an empty sequence has no children either


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer: multiply-accumulates of one sample's forward pass."""

    name: str
    """Of its weight."""
    kind: Kind
    macs: int
    first: bool
    """Whether no gradient by its input is needed, as in the first layer of a network."""


@dataclass(frozen=True)
class Network:
    """What a network costs, by its parts."""

    layers: tuple[Layer, ...]
    """Convolutions and linear layers, in the order in which samples pass them."""
    values: int
    """Values that all of its modules give for one sample: what normalisations, activations and pooling go through."""
    modules: int
    """How many of them there are."""


KEEP = 256  # networks
_held: OrderedDict[object, Network] = OrderedDict()


def key(episode: Episode) -> tuple[object, ...]:
    """What tells the network of an episode from others: architecture, shapes, input."""
    options = repr(sorted(episode.arch.options.items()))
    return episode.arch.name, options, tuple(sorted(episode.shapes.items())), episode.sample, episode.part


def layers(episode: Episode) -> tuple[Layer, ...]:
    """Convolutions and linear layers of the network of an episode as it is now."""
    return counted(episode).layers


def counted(episode: Episode) -> Network:
    """The network of an episode as it is now."""
    name = key(episode)
    if name not in _held:
        _held[name] = _count(episode)
        while len(_held) > KEEP:
            _held.popitem(last=False)
    _held.move_to_end(name)
    return _held[name]


def like(episode: Episode) -> Weights:
    """Tensors without values, of the shapes that the network's weights have."""
    weights = {
        name: torch.empty(value.shape, dtype=value.dtype, device="meta") for name, value in forms(episode.arch).items()
    }
    for name, shape in episode.shapes.items():
        dtype = weights[name].dtype if name in weights else torch.float32
        weights[name] = torch.empty(shape, dtype=dtype, device="meta")
    return weights


def network(episode: Episode, device: str = "meta") -> nn.Module:
    """The network of an episode, or the part of it that was used; on the device ``meta`` it has no values."""
    return Skeleton(episode.arch, like(episode), device).module.get_submodule(episode.part)


def _count(episode: Episode) -> Network:
    with torch.inference_mode(False), torch.enable_grad():  # whoever reads answers may have gradients off
        try:
            return _passed(episode, "meta")
        except (NotImplementedError, RuntimeError):  # a network of one's own may look at values
            return _passed(episode, "cpu")


def _passed(episode: Episode, device: str) -> Network:
    net = network(episode, device).eval()
    prefix = f"{episode.part}." if episode.part else ""
    names = {layer: f"{prefix}{path}." if path else prefix for path, layer in net.named_modules()}
    found: dict[str, Layer] = {}
    sizes: list[int] = []

    def see(layer: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> None:
        sizes.append(out[0].numel())
        if not isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
            return
        kind: Kind = "linear" if isinstance(layer, nn.Linear) else "conv"
        weight: Tensor = layer.get_parameter("weight")
        name = f"{names[layer]}weight"
        macs = out[0].numel() * weight[0].numel() + (found[name].macs if name in found else 0)
        found[name] = Layer(name, kind, macs, not inputs[0].requires_grad)

    hooked: Callable[..., None] = see
    parts = [m for m in net.modules() if not any(m.children()) and not isinstance(m, PASSING)]
    handles = [part.register_forward_hook(hooked) for part in parts]
    try:
        net(torch.zeros(1, *episode.sample, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return Network(tuple(found.values()), sum(sizes), len(sizes))
