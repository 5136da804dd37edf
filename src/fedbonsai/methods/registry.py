"""Methods by name; one's own registers with `method`, or by the entry point ``fedbonsai.methods``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any, TypeVar, dataclass_transform

from fedbonsai.errors import ConfigError

C = TypeVar("C", bound=type[Any])

_methods: dict[str, type[Any]] = {}


@dataclass_transform(frozen_default=True)
def method(name: str) -> Callable[[C], C]:
    """Make a class a frozen dataclass of hyper-parameters and register it as a method."""

    def register(cls: C) -> C:
        if name in _methods and _methods[name].__module__ != cls.__module__:
            raise ValueError(f"method {name!r} is taken by {_methods[name].__module__}; choose another name")
        made = dataclass(frozen=True)(cls)
        made.method_name = name
        _methods[name] = made
        return made

    return register


def methods() -> dict[str, type[Any]]:
    """All methods that are installed here, and those that were registered since."""
    for room in _rooms():
        import_module(f"fedbonsai.methods.{room}.method")
    _import_others()
    return dict(_methods)


@cache
def _rooms() -> tuple[str, ...]:
    """Rooms of the shipped methods, in order."""
    return tuple(sorted(room.name for room in files("fedbonsai.methods").iterdir() if (room / "method.py").is_file()))


@cache
def _import_others() -> None:
    """Once in a process: to list the entry points of all packages takes longer than to read a recipe."""
    for entry in entry_points(group="fedbonsai.methods"):
        entry.load()


def find_method(name: str) -> type[Any] | None:
    """The class of a method; None where there is none of that name.

    Of the shipped ones the one alone is imported, where its room has its name: a run's start does not wait for others.
    """
    if (room := name.replace("-", "_")) in _rooms():
        import_module(f"fedbonsai.methods.{room}.method")
    _import_others()
    return _methods.get(name) or methods().get(name)


def method_class(name: str) -> type[Any]:
    """The class of a method.

    Raises:
        ConfigError: there is none of that name.
    """
    found = find_method(name)
    if found is None:
        known = methods()
        near = get_close_matches(name, known, 1)
        raise ConfigError(
            f"method {name!r} is not known{f'; did you mean {near[0]!r}?' if near else '.'} Known: {sorted(known)}"
        )
    return found
