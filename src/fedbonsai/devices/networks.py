"""Multiply-accumulates of a network by weight, counted once for each architecture and input shape.

Products count, with weights and between samples (attention); normalisation, activations, look-ups and losses do not. The
network is built without its values (torch's meta device), so that counting costs no arithmetic and no memory.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn

from fedbonsai.cached_module import CachedModule
from fedbonsai.devices.products import Kind, Product, Products
from fedbonsai.errors import ConfigError
from fedbonsai.model import blank, parameter_specs
from fedbonsai.tree import Weights
from fedbonsai.work import Episode


@dataclass(frozen=True)
class Layer:
    """What is multiplied with one weight, or by one module with no weight alone: one sample's forward pass."""

    name: str
    """Of its weight; path of the module where there is none, as between the samples of attention."""
    kind: Kind
    macs: int
    first: bool
    """Whether no gradient by its input is needed, as in the first layer of a network."""
    frozen: bool = False
    """Whether no gradient by its weight is needed."""
    once: int = 0
    """Multiply-accumulates of a pass however many samples it has, as those that make a weight of others."""


@dataclass(frozen=True)
class Network:
    """What a network costs, by its parts."""

    layers: tuple[Layer, ...]
    """In the order in which samples pass them."""
    values: int
    """Values that all of its modules give for one sample: what normalisations, activations and pooling go through."""
    modules: int
    """How many of them there are."""
    unknown: tuple[str, ...] = ()
    """Matrices of weights whose operations cannot be counted."""


KEEP = 256  # networks
_held: OrderedDict[object, Network] = OrderedDict()


def key(episode: Episode) -> tuple[object, ...]:
    """What tells the network of an episode from others: architecture, shapes, input."""
    return *episode.arch.key, tuple(sorted(episode.shapes.items())), episode.sample, episode.part


def layers(episode: Episode) -> tuple[Layer, ...]:
    """Convolutions and linear layers of the network of an episode as it is now."""
    return counted(episode).layers


def all_known(episode: Episode, wanted: str) -> None:
    """Refuse a network of which not everything can be counted.

    Args:
        episode: of the network.
        wanted: what its costs are needed for.

    Raises:
        ConfigError: by the names of the weights.
    """
    if names := counted(episode).unknown:
        raise ConfigError(
            f"network {episode.arch.name!r}: the operations of {', '.join(names)} cannot be counted, and {wanted} needs "
            "them; multiply with matmul, einsum, linear or convolutions of torch, or leave that setting out"
        )


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
        name: torch.empty(value.shape, dtype=value.dtype, device="meta")
        for name, value in parameter_specs(episode.arch).items()
    }
    for name, shape in episode.shapes.items():
        dtype = weights[name].dtype if name in weights else torch.float32
        weights[name] = torch.empty(shape, dtype=dtype, device="meta")
    return weights


def network(episode: Episode, device: str = "meta") -> nn.Module:
    """The network of an episode, or the part of it that was used; on the device ``meta`` it has no values."""
    return CachedModule(episode.arch, like(episode), device).module.get_submodule(episode.part)


def _count(episode: Episode) -> Network:
    with torch.inference_mode(False), torch.enable_grad():  # whoever reads answers may have gradients off
        try:
            return _passed(episode, "meta")
        except Exception:  # a network of one's own may look at values, and say so in its own way
            return _passed(episode, "cpu")


def _passed(episode: Episode, device: str) -> Network:
    net = network(episode, device).eval()
    count = 1
    try:
        small = _forward(net, episode, device, count)
    except Exception:  # one that normalises by its batch takes no sample alone
        count = 2
        small = _forward(net, episode, device, count)
    try:
        large = _forward(net, episode, device, 2 * count).found
    except RuntimeError:  # a network of one's own may take one sample only
        large = {name: Product(row.kind, 2 * row.macs) for name, row in small.found.items()}
    rows: list[Layer] = []
    for name, row in small.found.items():
        once = max(0, 2 * row.macs - large[name].macs) if name in large else 0
        rows.append(Layer(name, row.kind, (row.macs - once) // count, row.first, row.frozen, once))
    return Network(tuple(rows), sum(small.sizes) // count, len(small.sizes), small.unknown)


def _forward(net: nn.Module, episode: Episode, device: str, batch: int) -> Products:
    seen = Products(net, f"{episode.part}." if episode.part else "")
    x = blank(episode.arch, episode.sample, batch, device, episode.part)
    with seen.watching():
        net(x)
    return seen
