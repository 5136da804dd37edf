"""Numbers that say where they come from, and the reading of tables of them with every fault at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar, cast, get_args

from fedbonsai.errors import ConfigError
from fedbonsai.text import text_of, toml

Mark = Literal["measured", "published", "assumed"]
Table = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """A number with its origin."""

    value: float
    mark: Mark
    """``measured`` here by this library, ``published`` by whom ``source`` names, or ``assumed``."""
    source: str


class Reader:
    """Takes a table apart and collects what is wrong with it."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._seen: set[str] = set()
        self.faults: list[str] = []

    def text(self, name: str, default: str | None = None) -> str:
        """A text."""
        value = self._take(name, default)
        if not isinstance(value, str):
            self.faults.append(f"{name} = {value!r}: expected a text")
            return ""
        return value

    def table(self, name: str) -> Table:
        """A table."""
        value = self._take(name, {})
        if not isinstance(value, dict):
            self.faults.append(f"{name} = {value!r}: expected a table")
            return {}
        return cast("dict[str, Any]", value)

    def figure(self, name: str, least: float = 0.0, above: bool = True, most: float = float("inf")) -> Figure:
        """``{ value = ..., mark = ..., source = ... }`` under a dotted name.

        Args:
            name: path.
            least: smallest value.
            above: whether the value must be larger than that.
            most: largest value.
        """
        table: object = self._take(name, None)
        wrong = Figure(0.0, "assumed", "")
        if not isinstance(table, dict):
            self.faults.append(f"{name}: expected {{ value = ..., mark = ..., source = ... }}, got {table!r}")
            return wrong
        held = cast("dict[str, object]", table)
        value, mark, source = held.get("value"), held.get("mark"), held.get("source")
        if not _finite(value):
            self.faults.append(f"{name}.value = {value!r}: expected a number")
            return wrong
        if not (value > least if above else value >= least) or not value <= most:
            bound = f"{'>' if above else '>='} {least}" + (f" and <= {most}" if most < float("inf") else "")
            self.faults.append(f"{name}.value = {value}: expected a number {bound}")
        if mark not in get_args(Mark):
            self.faults.append(f"{name}.mark = {mark!r}: expected one of {', '.join(get_args(Mark))}")
        if not isinstance(source, str) or not source:
            self.faults.append(f"{name}.source = {source!r}: expected a text that says where the number comes from")
        if extra := held.keys() - {"value", "mark", "source"}:
            self.faults.append(f"{name}: unknown {sorted(extra)}; a figure has value, mark and source")
        return Figure(float(value), cast(Mark, mark), str(source))

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers."""
        value = self._take(name, None)
        if not isinstance(value, list) or any(not _finite(item) for item in cast("list[object]", value)):
            self.faults.append(f"{name} = {value!r}: expected a list of numbers")
            return ()
        return tuple(float(item) for item in cast("list[float]", value))

    def has(self, name: str) -> bool:
        """Whether the table has such an entry."""
        return self._find(name) is not None

    def done(self) -> None:
        """Name what nobody asked for.

        Raises:
            ConfigError: lists every fault.
        """
        self.faults += [
            f"there is no {path!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            for path in leaves(self._table)
            if not any(path == seen or path.startswith(seen + ".") for seen in self._seen)
            for near in [get_close_matches(path, self._seen, 1)]
        ]
        if self.faults:
            raise ConfigError("\n".join(self.faults))

    def _take(self, name: str, default: object) -> object:
        self._seen.add(name)
        found = self._find(name)
        return default if found is None else found

    def _find(self, name: str) -> object:
        here: object = self._table
        for part in name.split("."):
            here = cast("dict[str, object]", here).get(part) if isinstance(here, dict) else None
        return here


def _finite(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def leaves(table: Table, prefix: str = "") -> list[str]:
    """Dotted names of all entries that are not tables."""
    found: list[str] = []
    for name, value in table.items():
        path = f"{prefix}{name}"
        found += leaves(cast("dict[str, Any]", value), f"{path}.") if isinstance(value, dict) and value else [path]
    return found


def shipped(folder: str) -> dict[str, str]:
    """Names and texts of the TOML files in a folder of this package."""
    return {
        file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
        for file in sorted(files("fedbonsai.devices").joinpath(folder).iterdir(), key=lambda file: file.name)
        if file.name.endswith(".toml")
    }


def load(name: str, folder: str, what: str, read: Callable[[Table], T]) -> T:
    """Read a shipped file by its name, or any file by its path.

    Args:
        name: such as ``lte``, or a path that ends in ``.toml``.
        folder: of this package.
        what: kind of thing, for errors.
        read: from a table to the thing.

    Raises:
        ConfigError: there is no such file, or it says what cannot be.
    """
    if name.endswith(".toml"):
        if not Path(name).exists():
            raise ConfigError(f"{what} file {name} does not exist")
        content = text_of(Path(name))
    else:
        known = shipped(folder)
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(f"{what} {name!r} is not known{hint} Known: {', '.join(known)}; or give a .toml file")
        content = known[name]
    try:
        return read(toml(content, name))
    except ConfigError as error:
        raise ConfigError(f"{what} {name}:\n{error}") from None
