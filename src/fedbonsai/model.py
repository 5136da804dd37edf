"""A model is an architecture and its weights; any process that knows the builder's name can rebuild it.

The architecture on the wire is the builder's name, its keyword arguments and the shapes of the weights themselves:
where layers were pruned away the builder's network is resized to fit, so no pruning library is needed on a device.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import field
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from fedbonsai.errors import BadMessage, ConfigError
from fedbonsai.tree import Tree, Weights
from fedbonsai.wire import message

Builder = Callable[..., nn.Module]

_builders: dict[str, Builder] = {}


def network(name: str) -> Callable[[Builder], Builder]:
    """Register a builder of networks: a function of keyword arguments that returns a fresh ``nn.Module``.

    ``channels``, ``size`` (pixels) and ``classes`` are filled in from the data when the builder has such parameters.
    """

    def register(build: Builder) -> Builder:
        if name in _builders and _builders[name].__module__ != build.__module__:
            raise ValueError(f"network {name!r} is taken by {_builders[name].__module__}; choose another name")
        _builders[name] = build
        return build

    return register


def networks() -> dict[str, Builder]:
    """All registered builders by name."""
    import_module("fedbonsai.zoo")  # registers the shipped ones
    return dict(_builders)


@message("arch@1")
class Arch:
    """Builder name and its keyword arguments."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def takes(self) -> set[str]:
        """Names of the builder's keyword arguments.

        Raises:
            ConfigError: no such builder, or options that it does not take.
        """
        known = networks()
        if self.name not in known:
            near = get_close_matches(self.name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"model {self.name!r} is not known{hint} Known: {', '.join(sorted(known))}")
        takes = set(inspect.signature(known[self.name]).parameters)
        if wrong := self.options.keys() - takes:
            raise ConfigError(f"model {self.name!r} does not take {sorted(wrong)}; it takes {sorted(takes)}")
        return takes

    def build(self) -> nn.Module:
        """A fresh network.

        Raises:
            ConfigError: no such builder, or options that it does not take.
        """
        self.takes()
        return _builders[self.name](**self.options)


@message("model@1")
class Model:
    """Architecture and weights: parameters and buffers by name, in the module's order (batch counters left out)."""

    arch: Arch
    weights: Mapping[str, Tensor]
    drawn: int = -1
    """Seed from which `init` drew these very weights, so that others can draw them too; -1 once they have moved."""

    @staticmethod
    def init(arch: Arch, seed: int) -> Model:
        """Weights drawn by the network's own rules from ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Model(arch, {name: value.clone() for name, value in state(arch.build()).items()}, seed)

    def replace(self, weights: Tree) -> Model:
        """The same architecture with other weights."""
        return Model(self.arch, weights)

    def build(self) -> nn.Module:
        """A network of one's own with these weights, resized where its layers were pruned."""
        return Skeleton(self.arch, self.weights).load(self.weights).module


def state(module: nn.Module) -> Weights:
    """Parameters and buffers by name; BatchNorm's batch counters, which nothing here uses, are left out."""
    return {name: value for name, value in module.state_dict().items() if not name.endswith("num_batches_tracked")}


DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)


_forms: dict[str, Weights] = {}


def forms(arch: Arch) -> Weights:
    """Names, types and shapes of an architecture's weights as its builder makes them; the values mean nothing."""
    key = repr((arch.name, sorted(arch.options.items())))
    if key not in _forms:
        with torch.random.fork_rng(devices=[]):
            _forms[key] = state(arch.build())
    return _forms[key]


class Skeleton:
    """One network object whose weights are overwritten in place for each client."""

    def __init__(self, arch: Arch, like: Tree, device: str = "cpu", channels_last: bool = False) -> None:
        with torch.random.fork_rng(devices=[]):
            module = arch.build()
        resize(module, like)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.module = module.to(device).to(memory_format=layout)  # type: ignore[call-overload]
        held = state(self.module)
        if held.keys() != like.keys() or any(held[name].shape != like[name].shape for name in held):
            wrong = [
                n for n in held.keys() | like.keys() if n not in held or n not in like or held[n].shape != like[n].shape
            ]
            raise BadMessage(f"weights do not fit network {arch.name!r}: {sorted(wrong)[:5]}")
        self.names = list(held)
        self.parameters: dict[str, Tensor] = dict(self.module.named_parameters())
        live = self.parameters | dict(self.module.named_buffers())
        self._tensors = [live[name] for name in self.names]
        self.random = any(isinstance(layer, DROPOUT) for layer in self.module.modules())

    def load(self, weights: Tree) -> Skeleton:
        """Copy weights in place."""
        with torch.no_grad():
            torch._foreach_copy_(self._tensors, [weights[name] for name in self.names])
        return self

    def snapshot(self) -> Weights:
        """Copies of the weights as they are now, on the CPU."""
        return {
            name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, value in zip(self.names, self._tensors, strict=True)
        }


_skeletons: OrderedDict[object, Skeleton] = OrderedDict()


def skeleton(model: Model, device: str = "cpu", channels_last: bool = False, keep: int = 8) -> Skeleton:
    """This process's network object for an architecture and its shapes, with the model's weights loaded.

    The last few are kept, so that a client costs a copy of its weights and no construction.
    """
    shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in model.weights.items())
    key = (model.arch.name, repr(sorted(model.arch.options.items())), shapes, device, channels_last)
    if key not in _skeletons:
        _skeletons[key] = Skeleton(model.arch, model.weights, device, channels_last)
        while len(_skeletons) > keep:
            _skeletons.popitem(last=False)
    _skeletons.move_to_end(key)
    return _skeletons[key].load(model.weights)


def resize(module: nn.Module, like: Tree) -> None:
    """Make convolution, normalisation and linear layers as wide as their weights in ``like``."""
    for path, layer in module.named_modules():
        prefix = f"{path}." if path else ""
        if not isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm):
            continue
        for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            new = like.get(prefix + name)
            if new is None or (new.shape == value.shape and new.dtype == value.dtype):
                continue
            fresh = torch.empty(new.shape, dtype=new.dtype)
            if isinstance(value, nn.Parameter):
                setattr(layer, name, nn.Parameter(fresh, requires_grad=value.requires_grad))
            else:
                layer.register_buffer(name, fresh)
        weight: Any = layer.weight
        if weight is None:  # of a normalisation without gains; its statistics, if it keeps any, say how wide it is
            weight = getattr(layer, "running_mean", None)
            if weight is None:
                continue
        if isinstance(layer, nn.Conv2d):
            depthwise = layer.groups == layer.in_channels
            layer.out_channels = weight.shape[0]
            layer.groups = weight.shape[0] if depthwise and layer.groups > 1 else layer.groups
            layer.in_channels = weight.shape[1] * layer.groups
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = weight.shape
        elif isinstance(layer, nn.GroupNorm):
            layer.num_channels = weight.shape[0]
        else:
            layer.num_features = weight.shape[0]
