"""From nested tables to dataclasses, once, with every fault collected and the nearest valid name."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import cache, partial
from importlib.resources import files
from math import inf, isfinite
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from cattrs import Converter, ForbiddenExtraKeysError
from cattrs.errors import BaseValidationError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn, override

from fedbonsai.choice import Choice
from fedbonsai.errors import ConfigError
from fedbonsai.methods.registry import find_method, method_class
from fedbonsai.runs.docstrings import docstrings
from fedbonsai.stages.codec import Chain, parse

T = TypeVar("T")
Table = dict[str, Any]
_hints = cache(
    get_type_hints
)  # types stand in classes as text, and to read that takes longer than all else of a recipe


def _strict(kind: type[Any], *also: type[Any]) -> Any:
    def hook(value: object, _: object) -> object:
        if isinstance(value, bool) and kind is not bool:
            raise ValueError(f"expected {kind.__name__}, got {value!r}")
        if not isinstance(value, (kind, *also)):
            raise ValueError(f"expected {kind.__name__}, got {value!r}")
        found = kind(value)
        if why := _not_meant(found):
            raise ValueError(f"expected {why}, got {value!r}")
        return found

    return hook


def _not_meant(value: object) -> str:
    """What is expected instead of a value that no setting can take; empty where it is one."""
    if isinstance(value, float) and not isfinite(value):
        return "a finite number"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "a whole number of 64 bits"
    if isinstance(value, str) and value.encode("utf-8", "replace").decode() != value:
        return "text that can be written as UTF-8"
    return ""


def names(value: object, _: object = None) -> tuple[str, ...]:
    """A list of names; one alone is a list of one, and commas part several.

    Raises:
        ValueError: it is neither.
    """
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in cast("list[object]", given)):
        raise ValueError(f"expected a name or a list of names, got {value!r}")
    return tuple(found for name in cast("list[str]", given) if (found := name.strip() if given is not value else name))


def _table(value: object, _: object) -> object:
    if not isinstance(value, dict):
        raise ValueError(f"expected a table, such as {{width = 2}}, got {value!r}")
    return dict(cast(Table, value))


def _method(value: object, _: object) -> object:
    if not isinstance(value, dict) or not isinstance(cast(Table, value).get("name"), str):
        raise ValueError(f"expected a table with the method's name, got {value!r}")
    table = renamed(dict(cast(Table, value)), str(cast(Table, value)["name"]))
    name = str(table.pop("name"))
    if find_method(name) is None and any(
        (room / "recipes" / f"{name}.toml").is_file() for room in files("fedbonsai.methods").iterdir()
    ):
        raise ValueError(f"{name!r} is a recipe, not a method: begin with it: fedbonsai cp {name} my.toml")
    made = converter().structure(table, method_class(name))
    if isinstance(cohort := getattr(made, "cohort", 0), int) and cohort < 0:
        raise ValueError(f"cohort = {cohort}: expected a number >= 0, where 0 asks all devices")
    return made


OLD = {"sgd": "optimizer"}  # settings of methods by the names that they had before


def renamed(table: Table, method: str) -> Table:
    """A method's table with settings by today's names, wherever the method has them so.

    Raises:
        ValueError: one is given by both names.
    """
    found = find_method(method)
    known = {field.name for field in fields(found)} if found else set[str]()
    old = {was: now for was, now in OLD.items() if was in table and now in known and was not in known}
    if both := [f"{was} and {now}" for was, now in old.items() if now in table]:
        raise ValueError(f"{both[0]} are the same setting: leave {both[0].partition(' ')[0]} out, its earlier name")
    return {old.get(name, name): value for name, value in table.items()}


def _is_family(kind: Any) -> bool:
    return isinstance(kind, type) and Choice in kind.__bases__


def _choice(value: object, family: Any, default: str | None = None) -> object:
    names = list(family.choices)
    table = dict(cast(Table, value)) if isinstance(value, dict) else {"name": value}
    name = table.pop("name", default)
    if name not in family.choices:
        near = get_close_matches(str(name), names, 1)
        raise ValueError(
            f"expected a table with a name among {names}, got {value!r}{f'; near is {near[0]!r}' if near else ''}"
        )
    return converter().structure(table, family.choices[name])


@cache
def families(cls: type[Any]) -> Mapping[str, tuple[Any, str]]:
    """Fields that are one choice of a family, and the choice that is so by default."""
    hints = _hints(cls)
    return {
        field.name: (hints[field.name], _default(field).choice_name)
        for field in fields(cls)
        if _is_family(hints[field.name]) and _default(field) is not None
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    """What a field is where nothing is given; None where something must be."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def _words(kind: Any) -> tuple[str, ...]:
    """Words that may stand instead of a value, in a type such as ``float | Literal["balanced"]``."""
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else ()
    return tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part))


def _word_or_value(value: object, kind: Any) -> object:
    if value in _words(kind):
        return value
    listed = isinstance(value, list | tuple)
    fit = [arg for arg in get_args(kind) if get_origin(arg) is not Literal and (get_origin(arg) is tuple) == listed]
    if not fit or isinstance(value, str):
        raise ValueError(f"expected {type_name(kind)}, got {value!r}")
    return cast(Converter, _converter).structure(value, fit[0])


def _is_table(kind: Any) -> bool:
    """Dataclasses that are written as a table; a chain is written as a list."""
    return is_dataclass(kind) and kind is not cast(Any, Chain)


def _strict_table(cls: Any) -> Any:
    lax = {field.name: override(struct_hook=_may_be_infinite) for field in fields(cls) if field.default == inf}
    for name, (_, default) in families(cls).items():  # a table without a name is of the choice that is so by default
        lax[name] = override(struct_hook=partial(_choice, default=default))
    choice_name: str = getattr(cls, "choice_name", "")
    made: Any = make_dict_structure_fn(cls, cast(Converter, _converter), _cattrs_forbid_extra_keys=True, **lax)  # type: ignore[arg-type]

    def hook(value: object, kind: Any) -> object:
        if not isinstance(value, dict):
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"expected a table of settings ({known}), got {value!r}")
        table = dict(cast(Table, value))
        if choice_name and table.get("name") == choice_name:  # it may say what it is where nothing is to be chosen, too
            del table["name"]
        return made(table, kind)

    return hook


def _number_or_auto(value: object, _: object) -> object:
    """A whole number, or the word that leaves it to a measurement."""
    if value != "auto" and not (isinstance(value, int) and not isinstance(value, bool)):
        raise ValueError(f"expected a whole number or 'auto', got {value!r}")
    return value


def _may_be_infinite(value: object, _: object) -> float:
    """A number where ``inf`` is what stands for no limit."""
    return inf if value == inf else cast(Converter, _converter).structure(value, float)


_converter: Converter | None = None


def converter() -> Converter:
    """The one converter of this process."""
    global _converter
    if _converter is None:
        _converter = Converter(forbid_extra_keys=True, detailed_validation=True)
        for kind, also in ((int, ()), (float, (int,)), (str, ()), (bool, ())):
            _converter.register_structure_hook(kind, _strict(kind, *also))
        _converter.register_structure_hook_func(lambda kind: kind == tuple[str, ...], names)
        _converter.register_structure_hook_func(lambda kind: kind == dict[str, Any], _table)
        _converter.register_structure_hook_func(lambda kind: kind == int | Literal["auto"], _number_or_auto)
        _converter.register_structure_hook_func(lambda kind: kind is object, _method)
        _converter.register_structure_hook_func(lambda kind: bool(_words(kind)), _word_or_value)
        _converter.register_structure_hook(Chain, lambda value, _: parse(value))
        _converter.register_structure_hook_func(_is_family, _choice)
        _converter.register_structure_hook_factory(_is_table, _strict_table)
    return _converter


def structure(table: Table, cls: type[T]) -> T:
    """A dataclass from a table.

    Raises:
        ConfigError: lists every fault with its path, what was given and what is near.
    """
    try:
        return converter().structure(table, cls)
    except (BaseValidationError, ConfigError, ValueError, TypeError) as error:
        faults = list(_faults(error, ""))
        raise ConfigError(
            "\n".join(f"{path.lstrip('.') or 'configuration'}: {text}" for path, text in _whole(table, cls, faults))
        ) from None


def _whole(table: Table, cls: type[Any], faults: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Faults with those that a faulty part hid: a dataclass is judged as a whole only once all of its parts can be made."""
    parts = {path.lstrip(".").partition(".")[0].partition("[")[0] for path, _ in faults} & table.keys()
    if not parts:
        return faults
    named = {
        part: {"name": table[part]["name"]} for part in parts if isinstance(table[part], dict) and "name" in table[part]
    }
    rest = {key: value for key, value in table.items() if key not in parts} | named  # faulty parts as by default
    try:
        converter().structure(rest, cls)
    except (BaseValidationError, ConfigError, ValueError, TypeError) as error:
        hidden = [(path, text) for path, text in _faults(error, "") if not path]
        return [*hidden, *faults]
    return faults


def unstructure(value: object) -> Table:
    """The table of a configuration; what is None is left out, since TOML has no word for it."""
    return cast(Table, _plain(value))


def _plain(value: object) -> object:
    if isinstance(value, Chain):
        return value.data()
    if is_dataclass(value) and not isinstance(value, type):
        name = getattr(type(value), "method_name", None) or getattr(type(value), "choice_name", None)
        named = {} if not name else {"name": name}
        return named | cast(Table, _plain({field.name: getattr(value, field.name) for field in fields(value)}))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in cast("Mapping[str, object]", value).items() if item is not None}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in cast("tuple[object, ...]", value)]
    return value


def _faults(error: BaseException, path: str) -> list[tuple[str, str]]:
    if isinstance(error, BaseExceptionGroup):
        found: list[tuple[str, str]] = []
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            here = path
            for note in getattr(inner, "__notes__", ()):
                if isinstance(note, IterableValidationNote):
                    here += f"[{note.index}]"
                elif hasattr(note, "name"):
                    here += f".{note.name}"
            found += _faults(inner, here)
        return found
    if isinstance(error, ForbiddenExtraKeysError):
        known = [field.name for field in fields(cast(Any, error.cl))]
        return [(f"{path}.{name}", _unknown(name, known, error.cl)) for name in sorted(error.extra_fields)]
    if isinstance(error, KeyError):
        return [(path, f"{error.args[0]!r} is missing")]
    if isinstance(error, TypeError) and "NoneType" not in str(error):
        return [(path, f"{error}; expected a {'list' if 'not iterable' in str(error) else 'table'}")]
    return [(path, str(error))]


def _unknown(name: str, known: list[str], cls: Any) -> str:
    if why := getattr(cls, "lacks", {}).get(name):  # a method says so of what its kin have
        return f"method {cls.method_name!r} cannot have it, since {why}"
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"there is no such setting; {hint}known here: {', '.join(known)}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting as help and overrides see it."""

    path: str
    kind: Any
    default: object
    words: str
    """Of its help, before what its class says of it."""
    of: tuple[type[Any], str] | None = None
    """The class that it is a field of, and its name there."""

    @property
    def help(self) -> str:
        """What it is for; it is read from the source, which takes as long as to read a recipe."""
        return self.words + (docstrings(self.of[0]).get(self.of[1], "") if self.of else "")


def settings(cls: type[Any], method: str = "", prefix: str = "", chosen: object = None) -> list[Setting]:
    """Every setting of a configuration class, depth first.

    Args:
        cls: the class.
        method: name of the class behind a method field.
        prefix: of the paths.
        chosen: table of a configuration, which says whose settings those of a family are; else the default's.
    """
    hints, table = _hints(cls), cast(Table, chosen) if isinstance(chosen, dict) else {}
    found: list[Setting] = []
    for field in fields(cls):
        kind, path, here = hints[field.name], f"{prefix}{field.name}", table.get(field.name)
        if kind is object:
            kind = method_class(method) if method else kind
            found.append(Setting(f"{path}.name", str, method, "Name of the method."))
        if _is_family(kind):
            family, default = cast(Any, kind), _default(field).choice_name
            name = cast(Table, here).get("name", default) if isinstance(here, dict) else here
            kind = family.choices.get(name if isinstance(name, str) else default, family.choices[default])
            text = f"One of {', '.join(family.choices)}. "
            found.append(Setting(f"{path}.name", str, default, text, (cls, field.name)))
        if _is_table(kind):
            found += settings(kind, method, f"{path}.", here)
            continue
        found.append(Setting(path, kind, _default(field), "", (cls, field.name)))
    return found


def type_name(kind: Any) -> str:
    """A type as help shows it."""
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if kind in (tuple[str, ...], tuple[float, ...]):
        return "names" if kind == tuple[str, ...] else "numbers"
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join(type_name(arg) for arg in get_args(kind))
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")
