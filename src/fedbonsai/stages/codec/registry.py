"""Stages by name: the shipped ones, and those of a user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, dataclass_transform

from fedbonsai.stages.codec.stages import FAMILIES, Stage
from fedbonsai.wire import message

S = TypeVar("S", bound=Stage)

_stages: dict[str, type[Stage]] = {}


def by_name() -> dict[str, type[Stage]]:
    """All stages that are known here, in the order of a chain."""
    return dict(sorted(_stages.items(), key=lambda item: FAMILIES.index(item[1].family)))


@dataclass_transform(frozen_default=True)
def stage(name: str, code: int | None = None) -> Callable[[type[S]], type[S]]:
    """Make a class below one of the families a stage of chains, and the message ``codec/NAME@1``.

    Args:
        name: in recipes.
        code: that stands for it in a payload: 12 to 15 for values, for positions and for a sparsifier that writes its
            positions itself, 3 for an entropy coder. Both ends must mean the same by it.

    Raises:
        ValueError: the name or the code is taken, or is not one for stages of one's own.
    """
    return _registered(name, () if code is None else (code,), True)


@dataclass_transform(frozen_default=True)
def shipped(name: str, *codes: int) -> Callable[[type[S]], type[S]]:
    """As `stage`, with the codes that this library has."""
    return _registered(name, codes, False)


def _registered(name: str, codes: tuple[int, ...], own: bool) -> Callable[[type[S]], type[S]]:
    def register(cls: type[S]) -> type[S]:
        if not hasattr(cls, "family"):
            raise ValueError(
                f"stage {name!r}: expected a class below one of the families, such as Sparsifier or Values"
            )
        if cls.coded and not codes:
            raise ValueError(
                f"stage {name!r}: a stage of {cls.family} needs a code in the payload: @stage({name!r}, 12)"
            )
        made = message(f"codec/{name}@1")(cls)
        for code in codes:
            made.claim(code, own)
        made.short, made.codes = name, codes
        _stages[name] = made
        return made

    return register
