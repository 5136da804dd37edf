"""A setting that is one of several tables, told apart by their ``name``: what does not belong to a choice has no field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, dataclass_transform

C = TypeVar("C", bound=type[Any])


class Choice:
    """Base of a family of choices; a direct subclass is the family, its own subclasses are the choices."""

    choice_name: ClassVar[str] = ""
    choices: ClassVar[dict[str, type[Any]]]
    stays: ClassVar[tuple[str, ...]] = ()
    """Settings that stay as they are when another choice of the family is taken."""

    def __init_subclass__(cls) -> None:
        if Choice in cls.__bases__:
            cls.choices = {}


@dataclass_transform(frozen_default=True)
def choice(name: str) -> Any:
    """Register a choice of its family, as a frozen dataclass."""

    def register(cls: C) -> C:
        made = dataclass(frozen=True)(cls)
        made.choice_name = name
        made.choices[name] = made
        return made

    return register
