"""A model is an architecture and its weights; any process that knows the builder's name can rebuild it.

The architecture on the wire is the builder's name, its keyword arguments and the shapes of the weights themselves:
where layers were pruned away the builder's network is resized to fit, so no pruning library is needed on a device.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from fedbonsai import bases
from fedbonsai.errors import BadMessage, ConfigError
from fedbonsai.objectives import Classification, Objective
from fedbonsai.tree import Tree, Weights, seeded
from fedbonsai.wire import OPTIONAL, message

Builder = Callable[..., nn.Module]

_builders: dict[str, Builder] = {}
_generation = 0
_keeping = ContextVar("keeping", default=False)


def network(name: str) -> Callable[[Builder], Builder]:
    """Register a builder of networks: a function of keyword arguments that returns a fresh ``nn.Module``.

    Facts of the data are filled in when the builder has such parameters: ``classes`` (outputs) and ``shape`` (of one input);
    of pictures ``channels``, and ``size`` where they are square, else ``height`` and ``width``; ``length`` and ``features``
    of series, ``features`` of tables, ``length`` and ``vocabulary`` of tokens.
    """

    def register(build: Builder) -> Builder:
        if name in _builders and _builders[name].__module__ != build.__module__:
            raise ValueError(f"network {name!r} is taken by {_builders[name].__module__}; choose another name")
        if _builders.get(name, build) is not build:
            renew()
        _builders[name] = build
        return build

    return register


def networks() -> dict[str, Builder]:
    """All registered builders by name."""
    import_module("fedbonsai.zoo")  # registers the shipped ones
    return dict(_builders)


def renew() -> None:
    """Forget all network objects that are kept: what their builders make may have changed, as in a notebook's cell."""
    global _generation
    _generation += 1


@contextmanager
def keeping() -> Generator[None]:
    """A run or a task, in which builders stay what they are and network objects serve again."""
    token = _keeping.set(True)
    try:
        yield
    finally:
        _keeping.reset(token)


def renew_by_hand() -> None:
    """`renew`, where no run goes on: whoever trains by hand may have changed a class that a builder refers to."""
    if not _keeping.get():
        renew()


@message("arch@1")
class Arch:
    """Builder name and its keyword arguments, and what the network learns."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    objective: Objective = field(default_factory=Classification, metadata=OPTIONAL)
    trainable: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    """Patterns of the names of parameters that are trained; empty: all that need gradients."""
    base: str = field(default="", metadata=OPTIONAL)
    """Digest of the parameters that are not trained (`bases`), which are then no part of a model's weights."""

    def takes(self) -> set[str]:
        """Names of the builder's keyword arguments.

        Raises:
            ConfigError: no such builder, or options that it does not take.
        """
        known = networks()
        if self.name not in known:
            near = get_close_matches(self.name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(f"model {self.name!r} is not known{hint} Known: {', '.join(sorted(known))}")
        every = inspect.signature(known[self.name]).parameters.values()
        takes = {each.name for each in every if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
        wrong = self.options.keys() - takes
        if wrong and not any(each.kind == each.VAR_KEYWORD for each in every):
            raise ConfigError(f"model {self.name!r} does not take {sorted(wrong)}; it takes {sorted(takes)}")
        return takes

    def build(self) -> nn.Module:
        """A fresh network, drawn from torch's global generator.

        Raises:
            ConfigError: no such builder, options that it does not take, or what it gives is no network.
        """
        self.takes()
        made: Any = _builders[self.name](**self.options)
        if not isinstance(made, nn.Module):
            given = f"the class {made.__name__}" if isinstance(made, type) else f"a {type(made).__name__}"
            raise ConfigError(f"the builder of {self.name!r} gives {given}: expected a network, an object of nn.Module")
        _own_buffers(made)
        if self.trainable:
            trained = {id(value) for name, value in named(made) if matches(name, self.trainable)}
            for value in made.parameters():
                value.requires_grad_(id(value) in trained and value.is_floating_point())
        if self.base:
            self._found(made)
        return made

    def _found(self, module: nn.Module) -> None:
        """Let the parameters that are not trained be those of the base, which all network objects share.

        Raises:
            Forgotten: the base is not held here.
            BadMessage: it is that of another network.
        """
        held = bases.of(self.base)
        fixed = {name: value for name, value in module.named_parameters() if not value.requires_grad}
        wrong = [
            name
            for name in held.keys() | fixed.keys()
            if name not in held
            or name not in fixed
            or (held[name].shape, held[name].dtype) != (fixed[name].shape, fixed[name].dtype)
        ]
        if wrong:
            raise BadMessage(f"the base {self.base} does not fit network {self.name!r}: {sorted(wrong)[:5]}")
        for name, value in fixed.items():
            if not value.is_meta:  # where only shapes are looked at
                value.data = held[name]

    def weights(self, module: nn.Module) -> Weights:
        """What of a network of this architecture a model holds: its `state`, without the parameters of the base."""
        fixed = {id(value) for value in module.parameters() if self.base and not value.requires_grad}
        return {name: value for name, value in state(module).items() if id(value) not in fixed}

    @property
    def key(self) -> tuple[object, ...]:
        """What caches of network objects go by; another one after a builder was defined anew, and after `renew`."""
        options = repr(sorted(self.options.items()))
        return _generation, self.name, options, self.objective, self.trainable, self.base


def named(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters by each of their names: those that are tied have several."""
    return list(module.named_parameters(remove_duplicate=False))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter's name has one of these patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _own_buffers(module: nn.Module) -> None:
    """Put copies in place of a network's buffers: its builder may have registered a constant that other networks share.

    What shares memory goes on to share it; buffers that are views of parameters stay as they are.
    """
    learned = {_memory(value) for value in module.parameters()}
    parts = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
    copies: dict[int, Any] = {}
    for part in parts:
        for name, value in part._buffers.items():
            if value is not None and value.is_leaf and _memory(value) not in {None, *learned}:
                part._buffers[name] = copy.deepcopy(value, copies)
    for part in parts:
        shown = vars(part)
        shown.update({name: copies[id(value)] for name, value in shown.items() if id(value) in copies})


def _memory(value: Tensor) -> int | None:
    """What tensors that share memory have in common; None for those that have no plain memory."""
    if nn.parameter.is_lazy(value) or value.layout != torch.strided:
        return None
    return value.untyped_storage()._cdata


@message("model@1")
class Model:
    """Architecture and weights: parameters and buffers by name, in the module's order (see `state`)."""

    arch: Arch
    weights: Mapping[str, Tensor]
    drawn: int = -1
    """Seed from which `init` drew these very weights, so that others can draw them too; -1 once they have moved."""

    @staticmethod
    def init(arch: Arch, seed: int) -> Model:
        """Weights drawn by the network's own rules from ``seed``.

        Raises:
            ConfigError: no such network, or it has weights that cannot travel.
        """
        module = fresh(arch, seed)
        _travels(module, arch.name)
        return Model(arch, {name: value.detach().clone() for name, value in arch.weights(module).items()}, seed)

    def replace(self, weights: Tree) -> Model:
        """The same architecture with other weights."""
        return Model(self.arch, weights)

    def based(self) -> Model:
        """The same model, whose parameters that are not trained are the base of its architecture from now on."""
        if not self.arch.trainable or self.arch.base:
            return self
        module = fresh(self.arch)
        fixed = {n: self.weights[n] for n, value in module.named_parameters() if not value.requires_grad}
        if not fixed:
            return self
        rest = {name: value for name, value in self.weights.items() if name not in fixed}
        return Model(replace(self.arch, base=bases.hold(fixed)), rest, self.drawn)

    def whole(self) -> Model:
        """The same model with all of its parameters among its weights."""
        if not self.arch.base:
            return self
        known = {**bases.of(self.arch.base), **self.weights}
        names = state(fresh(self.arch))
        return Model(replace(self.arch, base=""), {name: known[name] for name in names}, self.drawn)

    def build(self) -> nn.Module:
        """A network of one's own with these weights, resized where its layers were pruned."""
        module = CachedModule(self.arch, self.weights).load(self.weights).module
        if self.arch.base:
            for value in module.parameters():
                if not value.requires_grad:
                    value.data = value.data.clone()
        return module


def fresh(arch: Arch, seed: int = 0) -> nn.Module:
    """A fresh network; whatever its builder draws, constants too, comes from ``seed``."""
    with seeded(seed):
        return arch.build()


def state(module: nn.Module) -> Weights:
    """Parameters and buffers by name: each tensor once, under the first of its names.

    Batch normalisation's counters of batches are left out: they begin anew in each local training.
    """
    owners: dict[int, str] = {}
    found: dict[str, Any] = module.state_dict(keep_vars=True)
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, Tensor)
        and not name.endswith("num_batches_tracked")
        and owners.setdefault(id(value), name) == name
    }


def shared(module: nn.Module) -> set[str]:
    """Names of tensors that stand under more than one name (tied weights, modules registered twice): all of these names."""
    names: dict[int, list[str]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
    return {name for group in names.values() if len(group) > 1 for name in group}


def _travels(module: nn.Module, name: str) -> None:
    """Refuse tensors that no message can carry or no step can move.

    Raises:
        ConfigError: lazy or complex ones, or state that is no tensor.
    """
    faults: list[str] = []
    for key, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            faults.append(
                f"{key} is no tensor ({type(value).__name__}): keep what the network must remember in buffers"
            )
        elif nn.parameter.is_lazy(value):
            faults.append(f"{key} is lazy: give its layer the size of its input")
        elif value.is_complex():
            faults.append(f"{key} is complex: keep real and imaginary parts as two tensors")
        elif value.layout != torch.strided or value.is_quantized:
            faults.append(f"{key} is sparse or quantized: keep it as a plain tensor")
    if faults:
        raise ConfigError(f"model {name!r}: " + "; ".join(faults))


_forms: dict[object, Weights] = {}


def parameter_specs(arch: Arch) -> Weights:
    """Names, types and shapes of an architecture's weights as its builder makes them; the values mean nothing."""
    if arch.key not in _forms:
        _forms[arch.key] = {name: value.detach() for name, value in arch.weights(fresh(arch)).items()}
    return _forms[arch.key]


def blank(arch: Arch, sample: Sequence[int], count: int = 1, device: str = "cpu", part: str = "") -> Tensor:
    """Inputs of zeros, for a look at what a network does with them.

    They are whole numbers where it refuses others and takes these, as a network of tokens does.

    Args:
        arch: network.
        sample: shape of one input.
        count: of inputs.
        device: torch device.
        part: submodule that takes them; empty is the whole network.
    """
    key = arch.key, tuple(sample), part
    if key not in _whole:
        _whole[key] = not _takes(arch, sample, part, torch.float32) and _takes(arch, sample, part, torch.int64)
    return torch.zeros(count, *sample, dtype=torch.int64 if _whole[key] else torch.float32, device=device)


def tokens(module: nn.Module) -> int:
    """How many tokens a network knows: rows of its first embedding; 1 where it has none."""
    return next((layer.num_embeddings for layer in module.modules() if isinstance(layer, nn.Embedding)), 1)


_whole: dict[object, bool] = {}


def _takes(arch: Arch, sample: Sequence[int], part: str, kind: torch.dtype) -> bool:
    try:
        with torch.device("meta"), torch.no_grad():
            fresh(arch).eval().get_submodule(part)(torch.zeros(2, *sample, dtype=kind))
    except Exception:  # whatever a network says of inputs that it does not take
        return False
    return True


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


_skeletons: OrderedDict[object, CachedModule] = OrderedDict()


def cached_module(model: Model, device: str = "cpu", channels_last: bool = False, keep: int = 8) -> CachedModule:
    """This process's network object for an architecture and its shapes, with the model's weights loaded.

    The last few are kept, so that a client costs a copy of its weights and no construction.
    """
    shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in model.weights.items())
    key = (model.arch.key, shapes, device, channels_last)
    if key not in _skeletons:
        made = CachedModule(model.arch, model.weights, device, channels_last)
        if not made.keeps:
            return made.load(model.weights)
        _skeletons[key] = made
        while len(_skeletons) > keep:
            _skeletons.popitem(last=False)
    _skeletons.move_to_end(key)
    return _skeletons[key].load(model.weights)


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
