"""A setting that is one of several tables, told apart by their ``name``: what does not belong to a choice has no field.

A choice is one class with its behaviour in it; whoever uses a family asks the choice and knows none by name. One's own
registers where its module is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, dataclass_transform


class Choice:
    """Base of a family of choices; a direct subclass is the family, its own subclasses are the choices."""

    choice_name: ClassVar[str] = ""
    choices: ClassVar[dict[str, type[Any]]]
    stays: ClassVar[tuple[str, ...]] = ()
    """Settings that stay as they are when another choice of the family is taken."""

    def __init_subclass__(cls) -> None:
        if Choice in cls.__bases__:
            cls.choices = {}


C = TypeVar("C", bound=type[Choice])


@dataclass_transform(frozen_default=True)
def choice(name: str) -> Callable[[C], C]:
    """Make a class a frozen dataclass of settings and register it as a choice of its family."""
    return lambda cls: registered(name, dataclass(frozen=True)(cls))


def registered(name: str, made: C) -> C:
    """The same class, known to its family by this name.

    Raises:
        ValueError: another module has a choice of that name.
    """
    held = made.choices.get(name)
    if held is not None and held.__module__ != made.__module__:
        raise ValueError(f"{made.__bases__[0].__name__} {name!r} is taken by {held.__module__}; choose another name")
    made.choice_name = name
    made.choices[name] = made
    return made


def homes() -> set[str]:
    """Modules of others' own that define choices: who reads a message that holds one must have imported its module."""
    found = {made.__module__ for family in Choice.__subclasses__() for made in family.choices.values()}
    return {module for module in found if not module.startswith("fedbonsai.")}
