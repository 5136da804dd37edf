"""Chains as data: ``uplink = ["ef14", {topk = 0.01}, {signmag = 8}]`` and back."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar, cast

from fedbonsai.errors import ConfigError
from fedbonsai.stages.codec.registry import by_name
from fedbonsai.stages.codec.stages import Stage
from fedbonsai.stages.codec.values import SignMag
from fedbonsai.wire import _checks_of

C = TypeVar("C")

ALIASES: dict[str, Stage] = {"ternary": SignMag(bits=1)}  # the name of STC for the same thing
_EXAMPLE = "{topk = 0.01}, {topk = {fraction = 0.01, scope = 'global'}} or 'fp16'"


def checked(make: Callable[[tuple[Stage, ...]], C], spec: object) -> C:
    """Parse all elements, then make the chain.

    Raises:
        ConfigError: with every fault that was found.
    """
    if not isinstance(spec, list | tuple):
        raise ConfigError(f"chain {spec!r}: expected a list of stages such as [{_EXAMPLE}]")
    stages: list[Stage] = []
    found: list[str] = []
    for place, item in enumerate(cast("list[object]", spec)):
        try:
            stages.append(_stage(item))
        except ValueError as error:
            found.append(f"stage {place + 1}: {error}")
    if not found:
        try:
            return make(tuple(stages))
        except ValueError as error:
            found.append(str(error))
    raise ConfigError("; ".join(found))


def _stage(item: object) -> Stage:
    if isinstance(item, Stage):
        return item
    if isinstance(item, str):
        return ALIASES[item] if item in ALIASES else _make(_kind(item), {})
    if not isinstance(item, dict) or len(cast("dict[object, object]", item)) != 1:
        raise ValueError(f"{item!r}: expected one stage such as {_EXAMPLE}")
    ((name, value),) = cast("dict[str, object]", item).items()
    kind = _kind(name)
    if isinstance(value, dict):
        return _make(kind, cast("dict[str, object]", value))
    if kind.primary is None:
        raise ValueError(f"{name} takes no value, got {value!r}; write '{name}'")
    return _make(kind, {kind.primary: value})


def _kind(name: object) -> type[Stage]:
    kinds = by_name()
    if isinstance(name, str) and name in kinds:
        return kinds[name]
    if name in ALIASES:
        raise ValueError(f"{name} takes no value; write '{name}'")
    known = [*kinds, *ALIASES]
    near = difflib.get_close_matches(str(name), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    raise ValueError(f"stage {name!r} is not known; {hint}")


def _fields(kind: type[Stage]) -> tuple[Field[Any], ...]:
    return fields(cast("Any", kind))


def _make(kind: type[Stage], given: dict[str, object]) -> Stage:
    known = {field.name: field for field in _fields(kind)}
    checks = _checks_of(kind)
    found: list[str] = []
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'no fields'}"
            found.append(f"{kind.short} has no field {name!r}; {hint}")
        elif not checks[name](value):
            found.append(f"{kind.short}.{name} = {value!r}: expected {known[name].type}")
    found += [
        f"{kind.short} needs {name}" for name, field in known.items() if field.default is MISSING and name not in given
    ]
    if found:
        raise ValueError("; ".join(found))
    return cast("Any", kind)(**given)


def data_of(stage: Stage) -> str | dict[str, Any]:
    """A stage as data, without what is at its default; a number that says how much is always written."""
    given = {
        field.name: value
        for field in _fields(type(stage))
        if (value := getattr(stage, field.name)) != field.default
        or (field.name == stage.primary and stage.family != "feedback" and not isinstance(value, bool | None))
    }
    if not given:
        return stage.short
    return {stage.short: given[stage.primary] if list(given) == [stage.primary] and stage.primary else given}


def text_of(stage: Stage) -> str:
    """A stage in a few words."""
    data = data_of(stage)
    if isinstance(data, str):
        return data
    value = data[stage.short]
    if not isinstance(value, dict):
        return f"{stage.short} {value}"
    return f"{stage.short} " + " ".join(f"{name}={item}" for name, item in cast("dict[str, Any]", value).items())
