"""Rows of several files together, the columns that are wanted of them, in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.classes import joined, translated
from fedbonsai.data.columns import labels, required
from fedbonsai.data.kinds import Kind, Values
from fedbonsai.data.mapped import blocks, gathered
from fedbonsai.data.mapped import joined as joined_arrays
from fedbonsai.data.shards import Shard
from fedbonsai.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Table:
    """Some rows.

    Attributes:
        what: they are, for errors.
        kinds: of the columns.
        columns: their values, all of one length.
    """

    what: str
    kinds: Mapping[str, Kind]
    columns: Mapping[str, Values]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def take(self, rows: NDArray[np.int64]) -> Table:
        """Some rows, in this order."""
        return replace(self, columns={name: taken(values, rows) for name, values in self.columns.items()})

    def text(self, name: str, setting: str) -> NDArray[np.str_]:
        """A column as text, such as whose each row is.

        Raises:
            ConfigError: a value is missing.
        """
        values = self.columns[name]
        absent = missing(values)
        if absent.any():
            raise ConfigError(
                f"{self.what}: {setting} {name!r} is missing in {int(absent.sum())} rows, first in {int(absent.argmax())}; say "
                "whose they are, or drop them"
            )
        return np.asarray([str(value) for value in values], np.str_)


def taken(values: Values, rows: NDArray[np.int64]) -> Values:
    """Some of a column's values, in this order."""
    return gathered(values, rows) if isinstance(values, np.ndarray) else [values[row] for row in rows]


def missing(values: Values) -> NDArray[np.bool_]:
    """Which values are missing: None, or not a number."""
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "fM" or not len(values):
            return np.zeros(len(values), bool)
        absent = np.isnat if values.dtype.kind == "M" else np.isnan
        return np.concatenate([absent(block).reshape(len(block), -1).any(1) for block in blocks(values)])
    return np.asarray([value is None for value in values], bool)


def together(tables: Sequence[Table]) -> Table:
    """All rows of several tables of the same columns."""
    columns = {name: _joined([table.columns[name] for table in tables]) for name in tables[0].columns}
    return replace(tables[0], columns=columns)


def table(
    shards: Sequence[Shard],
    names: Sequence[str],
    classes: Mapping[str, Sequence[str]],
    what: str,
    bare: Collection[str] = (),
) -> Table:
    """The wanted columns of all files of a split.

    Args:
        shards: files.
        names: columns.
        classes: common names of the classes, by column (`declared`).
        what: they are, for errors.
        bare: columns whose whole numbers are classes.

    Raises:
        ConfigError: a file lacks a column, or has one of another kind or shape.
    """
    parts: dict[str, list[Values]] = {name: [] for name in names}
    kinds = {name: shards[0].kinds[name] for name in names}
    for shard in shards:
        required(shard, names)
        read = shard.rows(names)
        for name in names:
            own, wanted, values = shard.kinds[name], kinds[name], read[name]
            if own.shape != wanted.shape or _broad(own) != _broad(wanted):
                raise ConfigError(
                    f"{name!r} is {own.words} of shape {own.shape} in {shard.what} and {wanted.words} of shape {wanted.shape} "
                    f"in {shards[0].what}; all files need the same columns"
                )
            if name in classes or own.names:
                numbers = labels(values, len(own.names), shard.what)
                values = translated(numbers, own.names, classes.get(name, ()), shard.what)
            elif name in bare and isinstance(values, np.ndarray):
                values = labels(values, 0, shard.what)
            parts[name].append(values)
    return Table(what, kinds, {name: _joined(values) for name, values in parts.items()})


def declared(shards: Sequence[Shard], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Names of classes that training files declare, by column."""
    found = {name: joined(shard.kinds[name].names for shard in shards) for name in names if name in shards[0].kinds}
    return {name: classes for name, classes in found.items() if classes}


def _broad(kind: Kind) -> str:
    return "number" if kind.role == "class" else kind.role


def _joined(parts: Sequence[Values]) -> Values:
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) == len(parts):
        return joined_arrays(arrays)
    mixed: list[Any] = list(chain.from_iterable(parts))
    return mixed
