"""One network object whose weights are overwritten in place, so that a client costs a copy and no construction.

Where layers were pruned away the builder's network is resized to fit the weights: no pruning library is needed on a device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedbonsai.arch import Arch, fresh
from fedbonsai.errors import BadMessage
from fedbonsai.tree import Tree, Weights


class CachedModule:
    """One network object whose weights are overwritten in place for each client.

    Attributes:
        names: of the weights, as in `state`.
        parameters: those that are trained, by name: what needs no gradient is left alone.
        keeps: whether all that the network remembers can be set back, so that the object may serve again.
        foreign: whether it has modules that are neither torch's nor ours, which may draw from any generator.
    """

    def __init__(self, arch: Arch, like: Tree, device: str = "cpu", channels_last: bool = False) -> None:
        module = fresh(arch)
        resize(module, like)
        held = arch.weights(module)
        if held.keys() != like.keys() or any(held[name].shape != like[name].shape for name in held):
            wrong = [
                n for n in held.keys() | like.keys() if n not in held or n not in like or held[n].shape != like[n].shape
            ]
            raise BadMessage(f"weights do not fit network {arch.name!r}: {sorted(wrong)[:5]}")
        self.module = _moved(module, device, torch.channels_last if channels_last else torch.contiguous_format)
        self.names = list(held)
        self.parameters: dict[str, Tensor] = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        places = _places(self.module)
        self._places = {name: places[name] for name in self.names}
        self._kept: Tree = {}
        self._base: list[Tensor] = [p for p in self.module.parameters() if arch.base and not p.requires_grad]
        fixed = {id(value) for value in self._base}
        rest = [inside[key] for name, (inside, key) in places.items() if name not in held]
        self._rest = [value for value in rest if id(value) not in fixed]
        self._made = [value.detach().clone() for value in self._rest]
        self._bound = [(m._buffers, dict(m._buffers)) for m in self.module.modules() if m._buffers]
        self.release(())
        own = [m for m in self.module.modules() if type(m).__module__.split(".")[0] != "torch"]
        self.foreign = any(not type(m).__module__.startswith("fedbonsai.") for m in own)
        try:
            self._attributes = [(vars(m), self._copied(vars(m))) for m in own]
            self.keeps = True
        except Exception:  # whatever a class that cannot be copied raises
            self._attributes, self.keeps = [], False

    def release(self, names: Iterable[str]) -> None:
        """Let go of weights that layers of another kind, which have taken their place in the module, hold from now on."""
        for name in names:
            del self._places[name]
        self._tensors = [inside[key] for inside, key in self._places.values()]
        same = [*self.module.modules(), *self._tensors, *self._rest, *self._base]
        self._same = {id(value): value for value in same}

    def _copied(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Copies of a module's own attributes; modules and tensors of the network inside them are the same objects."""
        return {
            name: value if isinstance(value, PLAIN) else copy.deepcopy(value, dict(self._same))
            for name, value in attributes.items()
            if name not in INNER
        }

    def load(self, weights: Tree) -> CachedModule:
        """Copy weights in place; whatever else the network remembers is as its builder made it."""
        self.reset()
        if self._tensors:
            with torch.no_grad():
                torch._foreach_copy_(self._tensors, [weights[name] for name in self._places])
        self._kept = {name: value for name, value in weights.items() if not value.is_floating_point()}
        return self

    def reset(self) -> None:
        """Set what is no weight, buffers and the attributes of modules, to what the builder made it."""
        for buffers, bound in self._bound:
            buffers.update(bound)
        if self._rest:
            with torch.no_grad():
                torch._foreach_copy_(self._rest, self._made)
        for attributes, made in self._attributes:
            for name in attributes.keys() - made.keys() - INNER:
                del attributes[name]
            attributes.update(self._copied(made))

    def value(self, name: str) -> Tensor:
        """A copy of a weight as it is now, on the CPU; one that is no floating-point number as it was loaded."""
        inside, key = self._places[name]
        held = self._kept.get(name, inside[key])
        return held.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)

    def snapshot(self) -> Weights:
        """Copies of all weights as they are now."""
        return {name: self.value(name) for name in self.names}


INNER = frozenset(vars(nn.Module()))  # what every module has: parameters, buffers, hooks, the mode


PLAIN = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.Size)


def _places(module: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Where each parameter and buffer stands: in which dictionary of its module, under which key."""
    return {
        f"{path}.{key}" if path else key: (inside, key)
        for path, part in module.named_modules()
        for inside in (part._parameters, part._buffers)
        for key, value in inside.items()
        if value is not None
    }


def _moved(module: nn.Module, device: str, layout: torch.memory_format) -> nn.Module:
    """A module on a device in a memory layout; buffers that stood under several names still do."""
    owner: dict[int, tuple[nn.Module, str]] = {}
    again: list[tuple[nn.Module, str, tuple[nn.Module, str]]] = []
    for part in module.modules():
        for name, value in part.named_buffers(recurse=False):
            first = owner.setdefault(id(value), (part, name))
            if first != (part, name):
                again.append((part, name, first))
    module = module.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    for part, name, (first, its) in again:
        part._buffers[name] = first._buffers[its]
    return module


RESIZED = nn.Conv1d | nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm | nn.GRU


def resize(module: nn.Module, like: Tree) -> None:
    """Make convolution, normalisation, linear and recurrent layers as wide, and all tensors of the type, as in ``like``."""
    new: dict[int, Tensor] = {}  # tied tensors are replaced by one
    old: list[Tensor] = []  # kept, so that no identity is used again
    for path, layer in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            wanted = like.get(prefix + name)
            if id(value) not in new:
                if wanted is None or (wanted.shape == value.shape and wanted.dtype == value.dtype):
                    continue
                if wanted.shape != value.shape and not isinstance(layer, RESIZED):
                    continue
                empty = torch.empty(wanted.shape, dtype=wanted.dtype)
                learns = value.requires_grad
                new[id(value)] = nn.Parameter(empty, learns) if isinstance(value, nn.Parameter) else empty
                old.append(value)
            setattr(layer, name, new[id(value)])
        _renumber(layer)


def _renumber(layer: nn.Module) -> None:
    """Set a layer's numbers of channels or features to those of its weights."""
    if not isinstance(layer, RESIZED):
        return
    if isinstance(layer, nn.GRU):
        first: Mapping[str, Tensor] = dict(layer.named_parameters())
        layer.hidden_size, layer.input_size = first["weight_hh_l0"].shape[1], first["weight_ih_l0"].shape[1]
        return
    weight: Any = layer.weight
    if weight is None:  # of a normalisation without gains; its statistics, if it keeps any, say how wide it is
        weight = getattr(layer, "running_mean", None)
        if weight is None:
            return
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
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
