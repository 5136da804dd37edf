"""The registry of transforms, their syntax in a configuration, and what passes between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar, cast, dataclass_transform

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.kinds import Values
from fedbonsai.errors import ConfigError

T = TypeVar("T", bound="Transform")
EXAMPLE = "{resize = 32}, {logmel = {bands = 40}} or 'standardise'"


@dataclass(frozen=True, eq=False)
class Part:
    """Samples on their way to how they are stored.

    Attributes:
        what: they are, for errors.
        x: inputs, an array [samples, ...], or a list where they have shapes of their own.
        y: targets [samples, ...].
        owners: whose each sample is; empty where that is not known.
        training: whether these are of the training set.
        names: of the classes of ``y``, or of tokens.
        units: what stored inputs are multiplied with, one for each of the last axis; empty: nothing.
        rate: samples a second of recordings.
        vocabulary: number of tokens, where inputs are their numbers; else 0.
    """

    what: str
    x: Values
    y: NDArray[Any]
    owners: NDArray[np.str_]
    training: bool
    names: tuple[str, ...] = ()
    units: tuple[float, ...] = ()
    rate: int = 0
    vocabulary: int = 0

    def array(self, name: str) -> NDArray[Any]:
        """Inputs as an array.

        Raises:
            ConfigError: they have shapes of their own.
        """
        if isinstance(self.x, np.ndarray):
            return self.x
        raise ConfigError(f"{name} needs {self.what} of one shape; put a window before it, such as {{window = 8000}}")


class Transform:
    """Base of all; its fields are its settings, and what it learned of the training set."""

    short: ClassVar[str] = ""
    primary: ClassVar[str] = ""
    """The field that a bare value sets."""
    makes_targets: ClassVar[bool] = False
    """Whether it makes the targets from the inputs."""

    def columns(self, columns: Mapping[str, Values], what: str) -> Mapping[str, Values]:
        """Columns of inputs, before they are put together."""
        return columns

    def learned(self: T, columns: Mapping[str, Values]) -> T:
        """The same with what it must know of the training set's columns."""
        return self

    def fitted(self: T, part: Part) -> T:
        """The same with what it must know of the training set's samples."""
        return self

    def __call__(self, part: Part) -> Part:
        """Samples as they are after it."""
        return part


_known: dict[str, type[Transform]] = {}


@dataclass_transform(frozen_default=True)
def transform(name: str, primary: str = "") -> Callable[[type[T]], type[T]]:
    """Register a class as a transform, as a frozen dataclass.

    Args:
        name: in configurations.
        primary: the field that a bare value sets: ``{name = value}``.
    """

    def register(cls: type[T]) -> type[T]:
        made = dataclass(frozen=True)(cls)
        made.short, made.primary = name, primary
        _known[name] = made
        return made

    return register


def learned(default: Any = ()) -> Any:
    """A field that is learned of the training set: no setting, but devices are told."""
    return field(default=default)


def parse(given: Sequence[object]) -> tuple[Transform, ...]:
    """Transforms from their data.

    Raises:
        ConfigError: lists every fault.
    """
    found: list[Transform] = []
    faults: list[str] = []
    for place, item in enumerate(given):
        try:
            found.append(_made(item))
        except (ValueError, TypeError) as error:
            faults.append(f"transform {place + 1}: {error}")
    if faults:
        raise ConfigError("; ".join(faults))
    return tuple(found)


def _made(item: object) -> Transform:
    if isinstance(item, Transform):
        return item
    table = {item: None} if isinstance(item, str) else item
    if not isinstance(table, dict) or len(cast("dict[object, object]", table)) != 1:
        raise ValueError(f"{item!r}: expected one transform such as {EXAMPLE}")
    ((name, value),) = cast("dict[str, object]", table).items()
    if name not in _known:
        near = get_close_matches(str(name), list(_known), 1)
        raise ValueError(
            f"{name!r} is not known; {f'did you mean {near[0]!r}?' if near else 'there are ' + ', '.join(_known)}"
        )
    kind = _known[name]
    given: dict[str, Any] = (
        cast("dict[str, Any]", value) if isinstance(value, dict) else {} if value is None else {kind.primary: value}
    )
    if "" in given:
        raise ValueError(f"{name} takes no value, got {value!r}; write '{name}'")
    known = {each.name.rstrip("_"): each for each in fields(cast("Any", kind))}  # `from` can be no name in Python
    given = {key.rstrip("_"): part for key, part in given.items()}
    if strange := [key for key in given if key not in known]:
        raise ValueError(f"{name} has no field {', '.join(strange)}; it has {', '.join(known) or 'none'}")
    if absent := [key for key, each in known.items() if each.default is MISSING and key not in given]:
        raise ValueError(f"{name} needs {', '.join(absent)}")
    return cast("Any", kind)(**{known[key].name: _frozen(part) for key, part in given.items()})


def _frozen(value: object) -> object:
    return tuple(_frozen(each) for each in cast("list[object]", value)) if isinstance(value, list | tuple) else value


def data_of(each: Transform) -> dict[str, dict[str, Any]]:
    """A transform as data, with what it learned; a setting whose name is a word of Python's only where it is given."""
    return {
        each.short: {
            name.rstrip("_"): value
            for name, value in asdict(cast("Any", each)).items()
            if value or not name.endswith("_")
        }
    }


def whole(value: object, name: str, least: int = 1) -> None:
    """Refuse a setting that is no whole number, or too small.

    Raises:
        ValueError: it is.
    """
    if type(value) is not int or value < least:
        raise ValueError(f"{name} = {value!r}: expected a whole number of at least {least}")


def with_x(part: Part, x: NDArray[Any], **more: Any) -> Part:
    """A part with other inputs, to which its units do not apply any more."""
    return replace(part, x=x, **{"units": (), **more})
