"""Networks that were given in Python: an object, or a class or function that makes one. In process only.

Each is registered as a builder, under a name made of its class and of what tells it from others. Of an object the builder
gives copies, weights included, so that the object itself is never touched.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain
from types import CodeType, FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedbonsai.arch import GIVEN, Arch, fresh, network, state
from fedbonsai.cached_module import INNER, PLAIN
from fedbonsai.errors import ConfigError, said
from fedbonsai.tree import seeded

Network = nn.Module | Callable[..., nn.Module]

METHODS = (FunctionType, staticmethod, classmethod, property)


def hold(given: object) -> str:
    """Register a network that was given in Python; the name that stands for it in this process.

    Networks that differ in nothing but weights have the same name.

    Raises:
        ConfigError: it is none, or cannot be copied.
    """
    builder, word = _builder(given), _word(given)
    marks = hashlib.blake2b(digest_size=4)
    for sign in _signs(given, {}):
        marks.update(sign.encode() + b"\0")
    name = f"{GIVEN}{word}-{marks.hexdigest()}"
    network(name)(builder)
    return name


def hold_again(given: object, name: str, noted: Mapping[str, Any], where: object) -> None:
    """Register under the name that it has in a run's configuration a network that is given again.

    Args:
        given: an object, whose weights do not matter now, or what makes one.
        name: in the configuration.
        noted: what `note` gave when the run began; empty where it never did.
        where: the run's folder, for people.

    Raises:
        ConfigError: the run's network was not given in Python, or is another one.
    """
    if not name.startswith(GIVEN):
        raise ConfigError(f"{where} trains network {name!r}, which was not given in Python: leave `model` out")
    builder = _builder(given)
    if noted:
        try:
            with seeded(0):
                found = structure(builder(**noted["options"]))
        except Exception as error:  # whatever another network says of options that are not its own
            found = said(error)
        if found != noted["structure"]:
            raise ConfigError(
                f"{where} began with another network than this {_word(given)}: layers, shapes or arguments differ; give the "
                "one that it began with"
            )
    network(name)(builder)


def note(arch: Arch) -> dict[str, Any]:
    """What a run's folder keeps of a network that was given; empty for others."""
    return {"options": dict(arch.options), "structure": structure(fresh(arch))} if arch.name.startswith(GIVEN) else {}


def structure(net: nn.Module) -> str:
    """Digest of a network's layers, their settings, and the forms of its tensors; the same for all weights."""
    layers = [f"{path} {type(part).__qualname__} {part.extra_repr()}" for path, part in net.named_modules()]
    forms = [f"{name} {_form(value)}" for name, value in state(net).items()]
    return hashlib.blake2b("\n".join([*layers, *forms]).encode(), digest_size=8).hexdigest()


def _form(value: Tensor) -> str:
    return "lazy" if nn.parameter.is_lazy(value) else f"{tuple(value.shape)} {value.dtype}"


class _Copies:
    """A copy, in each call, of a network that was given."""

    def __init__(self, net: nn.Module) -> None:
        what = f"model: the {type(net).__name__}"
        tensors = list(_tensors(net))
        if any(value.is_meta for value in tensors):
            raise ConfigError(f"{what} is on the meta device, where weights have no values; make it without")
        elsewhere = any(value.device.type != "cpu" for value in tensors)
        try:
            self._net = copy.deepcopy(net, _moved(tensors, "cpu") if elsewhere else {})
        except Exception as error:  # whatever a class that cannot be copied raises
            raise ConfigError(
                f"{what} cannot be copied ({said(error)}), and each client trains a copy: give a function or class that "
                "makes it, such as model=lambda: Net()"
            ) from None
        for value in self._net.parameters():
            value.grad = None

    def __call__(self) -> nn.Module:
        shapes_only = torch.get_default_device().type == "meta"
        return copy.deepcopy(self._net, _moved(_tensors(self._net), "meta") if shapes_only else {})


class _Calls:
    """What a class or function that was given makes, with its own keyword arguments."""

    def __init__(self, make: Callable[..., nn.Module]) -> None:
        self._make = make
        try:
            signature = inspect.signature(make)
        except (TypeError, ValueError):
            raise ConfigError(
                f"model = {make!r}: its arguments cannot be told; give a function that calls it"
            ) from None
        set_already = make.keywords if isinstance(make, partial) else {}
        free = [each for name, each in signature.parameters.items() if name not in set_already]
        self.__signature__ = signature.replace(parameters=free)

    def __call__(self, **options: Any) -> nn.Module:
        return self._make(**options)


def _builder(given: object) -> Callable[..., nn.Module]:
    if isinstance(given, nn.Module):
        return _Copies(given)
    if callable(given):
        return _Calls(cast("Callable[..., nn.Module]", given))
    raise ConfigError(
        f"model = {type(given).__name__}: expected a network (an object of nn.Module), a class or function that makes one, or "
        "the name of one, such as 'cnn-bn'"
    )


def _tensors(net: nn.Module) -> Iterator[Tensor]:
    shown = chain.from_iterable(vars(part).values() for part in net.modules())
    return chain(net.parameters(), net.buffers(), (value for value in shown if isinstance(value, Tensor)))


def _moved(tensors: Iterable[Tensor], device: str) -> dict[int, Any]:
    """What takes the place of tensors in a copy on a device; what stands twice is one there, too."""
    found: dict[int, Any] = {}
    for value in tensors:
        other = value.detach().to(device)
        found[id(value)] = nn.Parameter(other, value.requires_grad) if isinstance(value, nn.Parameter) else other
    return found


def _word(given: object) -> str:
    """A network's class, or the name of what makes it, for people."""
    while isinstance(given, partial):
        given = cast("partial[Any]", given).func
    name = getattr(type(given) if isinstance(given, nn.Module) else given, "__name__", type(given).__name__)
    return str(name).strip("<>")


def _signs(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    """What tells a network, or what makes it, from others: layers, attributes, code; no weights, no places in files."""
    if isinstance(value, PLAIN) and not isinstance(value, type):
        yield repr(value)
        return
    if not isinstance(value, tuple | CodeType):  # of which a compiler may have made one or several that are equal
        if id(value) in seen:
            return
        seen[id(value)] = value
    if isinstance(value, Tensor):
        yield _form(value)
    elif isinstance(value, nn.Module):
        yield structure(value)
        yield repr([name for name, each in value.named_parameters() if each.requires_grad])
        for part in value.modules():
            yield from _signs(type(part), seen)
            yield from _signs({key: item for key, item in vars(part).items() if key not in INNER}, seen)
    elif isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}"
        for part in value.__mro__:
            if part.__module__.split(".")[0] not in ("torch", "builtins"):
                yield from _signs(
                    {k: v for k, v in vars(part).items() if isinstance(v, METHODS) or k[:2] != "__"}, seen
                )
    elif isinstance(value, partial):
        yield from _all([value.func, value.args, value.keywords], seen)
    elif isinstance(value, FunctionType):
        yield from _all([value.__module__, value.__code__, value.__defaults__, value.__kwdefaults__], seen)
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # one that is empty
                yield from _signs(cell.cell_contents, seen)
    elif isinstance(value, CodeType):
        yield from _all([value.co_code, value.co_names, value.co_consts], seen)
    elif isinstance(value, staticmethod | classmethod):
        yield from _signs(value.__func__, seen)
    elif isinstance(value, property):
        yield from _signs(value.fget, seen)
    elif isinstance(value, Mapping):
        yield from _all(sorted(value.items(), key=lambda item: repr(item[0])), seen)
    elif isinstance(value, set | frozenset):
        yield from sorted(map(repr, value))
    elif isinstance(value, list | tuple):
        yield from _all(value, seen)
    else:
        yield type(value).__qualname__


def _all(values: Iterable[Any], seen: dict[int, Any]) -> Iterator[str]:
    for value in values:
        yield from _signs(value, seen)
