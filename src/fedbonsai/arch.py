"""An architecture is a builder's name and its arguments: any process that knows the builder can build the network again.

What a network learns, and which of its parameters are trained, belong to it; so no method changes for either.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedbonsai import bases
from fedbonsai.errors import BadMessage, ConfigError
from fedbonsai.inputs import Input, called_by_name
from fedbonsai.modules import own
from fedbonsai.objectives import Classification, Objective
from fedbonsai.tree import Weights, seeded
from fedbonsai.wire import OPTIONAL, message

Builder = Callable[..., nn.Module]

GIVEN = "python/"  # how names of networks begin that were given in Python, to this process alone


_builders: dict[str, Builder] = {}


_generation = 0


_keeping = ContextVar("keeping", default=False)


def network(name: str) -> Callable[[Builder], Builder]:
    """Register a builder of networks: a function of keyword arguments that returns a fresh ``nn.Module``.

    Facts of the data are filled in when the builder has such parameters: ``classes`` (outputs) and ``shape`` (of one input);
    of pictures ``channels``, and ``size`` where they are square, else ``height`` and ``width``; ``length`` and ``features``
    of series, ``features`` of tables, ``length`` and ``vocabulary`` of tokens; of several inputs ``shapes``, by name.
    """

    def register(build: Builder) -> Builder:
        if name in _builders and _builders[name].__module__ != build.__module__:
            raise ValueError(f"network {name!r} is taken by {_builders[name].__module__}; choose another name")
        if _builders.get(name, build) is not build:
            renew()
        _builders[name] = build
        return build

    return register


def bring(name: str) -> None:
    """Import a user's module; of ``package.module:callable`` register the callable as a network of that whole name.

    A network's name that came from elsewhere is never brought: who runs it, here or on a device, says which modules to import.

    Raises:
        ConfigError: there is no such module, or no such callable in it.
    """
    place, colon, function = name.partition(":")
    module = own(place)
    if not colon:
        return
    build: Any = getattr(module, function, None)
    if not callable(build):
        near = get_close_matches(function, vars(module), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name!r}: module {place!r} has no callable {function!r}{hint}")
    network(name)(cast("Builder", build))


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
    inputs: tuple[Input, ...] = field(default=(), metadata=OPTIONAL)
    """What stands side by side in a sample, by the names of the arguments of the network's forward; empty: one input."""

    def takes(self) -> set[str]:
        """Names of the builder's keyword arguments.

        Raises:
            ConfigError: no such builder, or options that it does not take.
        """
        known = networks()
        if self.name not in known and self.name.startswith(GIVEN):
            raise ConfigError(
                f"model {self.name!r} was given in Python to another process: give it again, as fedbonsai.load(FOLDER, "
                "model=...) or fedbonsai.run(..., model=..., resume=True); a network in a module is found by all, as "
                "package.module:callable"
            )
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

    def needs(self) -> set[str]:
        """Names of the builder's keyword arguments that have no default."""
        every = inspect.signature(networks()[self.name]).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return {each.name for each in every if each.default is each.empty and each.kind in named}

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
        if self.inputs:
            called_by_name(made, self.inputs, self.name)
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
        return _generation, self.name, options, self.objective, self.trainable, self.base, self.inputs


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
