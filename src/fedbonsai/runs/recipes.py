"""Recipes: the shipped settings files, one's own files, presets and overrides, merged into one configuration."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

from fedbonsai.arch import bring
from fedbonsai.errors import ConfigError
from fedbonsai.methods.registry import find_method, method_class
from fedbonsai.runs import former
from fedbonsai.runs.config import RunConfig, check_name
from fedbonsai.runs.structure import Table, families, names, renamed, settings, structure
from fedbonsai.text import text_of, toml

METHODS = "fedbonsai.methods"  # each has its recipes in its own folder
SHORT = {"devices": "clock.devices", "link": "clock.link", "fleet": "fleet.kind"}  # settings by a word of their own


def shipped() -> dict[str, str]:
    """Names and texts of the shipped recipes."""
    return {name: text_of(file) for name, file in _shipped().items()}


@cache
def _shipped() -> Mapping[str, Traversable]:
    """Names and files of the shipped recipes."""
    folders = [room / "recipes" for room in files(METHODS).iterdir() if room.is_dir()]
    found = [file for folder in folders if folder.is_dir() for file in folder.iterdir() if file.name.endswith(".toml")]
    return {file.name.removesuffix(".toml"): file for file in sorted(found, key=lambda file: file.name)}


def text(name: str) -> str:
    """Text of a shipped recipe, or of a TOML file.

    Raises:
        ConfigError: there is neither.
    """
    if name.lower().endswith(".toml"):
        if not Path(name).exists():
            raise ConfigError(f"file {name} does not exist")
        return text_of(Path(name))
    known = _shipped()
    if name not in known:
        raise ConfigError(f"recipe {name!r} is not known{_meant(name, known)} Known: {', '.join(known)}")
    return text_of(known[name])


def _meant(name: str, known: Collection[str]) -> str:
    """What to do about a recipe that is not known."""
    recipe, colon, preset = name.partition(":")
    if colon and recipe in known:
        return f"; a preset is chosen by --preset {preset}."
    if Path(name).is_file():
        return ", and of files only those are read that are called .toml."
    near = get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else "; give one of those, or a .toml file."


def summary(recipe: str) -> str:
    """First comment line of a recipe."""
    return recipe.splitlines()[0].lstrip("# ") if recipe.startswith("#") else ""


def table(name: str, preset: str = "", overrides: Mapping[str, object] | None = None) -> Table:
    """Merged table of a recipe, a preset of it, and overrides by dotted path (text is read as TOML where it can be).

    Raises:
        ConfigError: no such recipe or preset, or TOML that cannot be read.
    """
    merged = _laid({}, toml(text(name), name))
    presets = merged.pop("presets", {})
    if not isinstance(presets, dict) or not all(isinstance(each, dict) for each in cast(Table, presets).values()):
        raise ConfigError(f"{name}: presets: expected tables such as [presets.small], got {presets!r}")
    if preset and preset != "modern":
        if preset not in presets:
            raise ConfigError(f"preset {preset!r}: {name!r} has {['modern', *presets]}")
        merged = _laid(merged, presets[preset])
    overrides = overrides or {}
    given = overrides.get("imports")
    if given is not None:
        merged["imports"] = _read(given, "imports", merged) if isinstance(given, str) else given
    network = overrides.get("model.name")
    own_modules({**merged, "model": {"name": network}} if isinstance(network, str) else merged)
    # names first: another method or network drops the settings of the one before, not those given beside it
    for path, value in sorted(overrides.items(), key=lambda item: not item[0].endswith(".name")):
        branch: Table = {}
        leaf = branch
        *parents, last = path.split(".")
        for part in parents:
            leaf[part] = leaf = {}
        leaf[last] = value if not isinstance(value, str) else _read(value, path, merged)
        inner = [other for other in overrides if other.startswith(f"{path}.")]
        if inner and not isinstance(leaf[last], dict):
            raise ConfigError(f"{path} = {value!r} and {inner[0]} exclude each other: {path} is a table; leave one out")
        merged = _laid(merged, branch)
    if "data.path" in overrides and "data.name" not in overrides:
        merged["data"].pop("name", None)  # the recipe names its own data, these are others
    return former.configuration(merged)


def load(name: str, preset: str = "", overrides: Mapping[str, object] | None = None) -> RunConfig:
    """Configuration of a recipe.

    Raises:
        ConfigError: lists every fault.
    """
    config = structure(table(name, preset, overrides), RunConfig)
    check_name("name", config.name)
    return config


def _laid(base: Table, over: Table) -> Table:
    """`merge` for configurations, with a method's settings by today's names."""
    method = _method_name(over) or _method_name(base)
    if isinstance(over.get("method"), dict):
        try:
            over = over | {"method": renamed(over["method"], method)}
        except ValueError as error:
            raise ConfigError(f"method: {error}") from None
    chosen = {"method": families(method_class(method))} if method else {}
    return merge(base, over, {**families(RunConfig), **chosen})


def merge(base: Table, over: Table, known: Mapping[str, Any] | None = None) -> Table:
    """``over`` laid on ``base``: tables merge, other values replace; another choice, such as of a method, drops the old one's.

    Args:
        base: below.
        over: on top.
        known: families of choices by key, or such a mapping for a table; some of their settings stay with another choice.
    """
    merged, known = copy.deepcopy(base), known or {}
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            here = known.get(key, {})
            family, default = here if isinstance(here, tuple) else (None, None)
            before = merged[key].get("name", default)
            # other data keep their split; any other choice has settings of its own
            if "name" in value and before not in (None, value["name"]) and key != "data":
                stays = family.stays if family is not None else ()
                merged[key] = {name: item for name, item in merged[key].items() if name in stays} | value
            else:
                merged[key] = merge(merged[key], value, here if isinstance(here, dict) else None)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _read(value: str, path: str, merged: Table) -> Any:
    """A word of the command line as the value that its setting wants."""
    kinds = {setting.path: setting.kind for setting in settings(RunConfig, _method_name(merged), chosen=merged)}
    kind = kinds.get(path)
    if kind is str or (get_origin(kind) is Literal and all(isinstance(arg, str) for arg in get_args(kind))):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value


def own_modules(table: Table) -> None:
    """Import the modules that a configuration names, a network's too; they lie in the current folder or are installed.

    Raises:
        ConfigError: a module cannot be imported.
    """
    with suppress(ValueError):  # what are no names is told with all other faults
        for name in names(table.get("imports", ())):
            bring(name)
    model: object = table.get("model")
    name = cast(Table, model).get("name") if isinstance(model, dict) else None
    if isinstance(name, str) and ":" in name:
        bring(name)


def _method_name(merged: Table) -> str:
    method: object = merged.get("method")
    name = cast(Table, method).get("name") if isinstance(method, dict) else None
    return name if isinstance(name, str) and find_method(name) else ""


def overrides_of(words: Sequence[str]) -> dict[str, object]:
    """``--a.b value`` and ``--a.b=value`` as a mapping; a flag without a value means true, the last of one name counts.

    Raises:
        ConfigError: a word that belongs to no flag.
    """
    found: dict[str, object] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise ConfigError(f"{word!r} belongs to no setting; write --a.b value")
        name, equals, value = word[2:].partition("=")
        name = SHORT.get(name, name).replace("-", "_")
        if not equals:
            bare = not rest or (rest[0].startswith("--") and len(rest[0]) > 2)
            value = "true" if bare else rest.pop(0)
        found[name] = value
    return found
