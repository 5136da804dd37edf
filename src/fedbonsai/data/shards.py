"""One file of a data set, or one split: its columns by kind, and the values of those that are wanted, as they are stored."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedbonsai.data.extras import extra
from fedbonsai.data.kinds import Kind, Values, of_array, of_schema, values_of
from fedbonsai.data.mapped import members, opened
from fedbonsai.errors import ConfigError

FILES = (".parquet", ".csv", ".npz")
ROWS = 1024  # of images, recordings and text that are read at a time
CLIENT = "client"  # name of the column that says whose samples are, where a source says it by itself
NAMES = "names"  # array of a .npz: what the numbers in y mean


# what numpy says of a file that is no .npz
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Shard:
    """A file, a split of the hub, or what was given in Python.

    ``what`` names it in errors, ``count`` is the number of its rows, ``kinds`` are those of its columns, ``rows`` reads some
    of them.
    """

    what: str
    count: int
    kinds: Mapping[str, Kind]
    rows: Callable[[Sequence[str]], Mapping[str, Values]]
    by_client: bool = False
    """Whether all of it is of one client, whom the column `CLIENT` names."""

    @property
    def columns(self) -> str:
        """All columns in words, for errors."""
        return "columns: " + ", ".join(f"{name} ({kind.words})" for name, kind in self.kinds.items())

    def of_client(self, client: str, column: str = CLIENT) -> Shard:
        """The same with a column that says whose all of it is."""

        def rows(names: Sequence[str]) -> Mapping[str, Values]:
            found = self.rows([each for each in names if each != column])
            return {**found, **({column: [client] * self.count} if column in names else {})}

        return replace(self, kinds={**self.kinds, column: Kind("text", "text")}, rows=rows, by_client=True)


def of_file(file: Path) -> Shard:
    """A Parquet, CSV or ``.npz`` file. It is opened here: given its name, the readers would take it for an address or a pattern.

    Raises:
        ConfigError: it cannot be read.
    """
    return {".csv": _csv, ".npz": _npz}.get(file.suffix.lower(), _parquet)(file)


def of_hub(dataset: Any, what: str) -> Shard:
    """A split of the datasets library; its own decoding of images is several times slower than ours."""
    kinds = of_schema(dataset.features.arrow_schema)

    def rows(names: Sequence[str]) -> Mapping[str, Values]:
        table = dataset.select_columns(list(names)).with_format("arrow")[:]
        return {name: values_of(table.column(name), kinds[name]) for name in names}

    return Shard(what, len(dataset), kinds, rows)


def of_arrays(what: str, arrays: Mapping[str, Values], names: Sequence[str] = ()) -> Shard:
    """Arrays by column; ``names`` are those of the classes that ``y`` numbers.

    Raises:
        ConfigError: they have other lengths.
    """
    counts = {name: len(values) for name, values in arrays.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise ConfigError(f"{what}: {told} samples; expected as many of each")
    kinds = {name: of_array(values, names if name == "y" else ()) for name, values in arrays.items()}
    return Shard(what, next(iter(counts.values()), 0), kinds, lambda wanted: {name: arrays[name] for name in wanted})


def first(error: Exception) -> str:
    """Kind of an error and the first line of its text."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no text'}"


def _parquet(file: Path) -> Shard:
    try:
        with file.open("rb") as raw:
            held = extra("pyarrow.parquet").ParquetFile(raw)
            count, schema = held.metadata.num_rows, held.schema_arrow
        _unique(file, schema.names)
        kinds = of_schema(schema)
    except ConfigError:
        raise
    except Exception as error:  # whatever the readers say of a damaged or odd file
        raise _unreadable(file, error) from None

    def rows(names: Sequence[str]) -> Mapping[str, Values]:
        try:
            lists = [name for name in names if kinds[name].role not in ("number", "class", "time")]
            found: dict[str, Values] = {name: [] for name in lists}
            with file.open("rb") as raw:
                # as they become lists they are read a few at a time: the column and its list would lie in memory together
                held = extra("pyarrow.parquet").ParquetFile(raw, buffer_size=1 << 20)
                for batch in held.iter_batches(ROWS, columns=lists) if lists else ():
                    for name in lists:
                        found[name] += values_of(batch.column(name), kinds[name])  # pyright: ignore[reportOperatorIssue]
                table = held.read(columns=[name for name in names if name not in lists])
                return {
                    name: found[name] if name in found else values_of(table.column(name), kinds[name]) for name in names
                }
        except Exception as error:
            raise _unreadable(file, error) from None

    return Shard(str(file), count, kinds, rows)


def _csv(file: Path) -> Shard:
    try:
        with file.open("rb") as raw:
            options = extra("pyarrow.csv").ConvertOptions(strings_can_be_null=True)
            table = extra("pyarrow.csv").read_csv(raw, convert_options=options)
        _unique(file, table.schema.names)
        kinds = of_schema(table.schema)
    except ConfigError:
        raise
    except Exception as error:
        raise _unreadable(file, error) from None
    return Shard(
        str(file),
        table.num_rows,
        kinds,
        lambda names: {name: values_of(table.column(name), kinds[name]) for name in names},
    )


def _npz(file: Path) -> Shard:
    try:
        arrays = members(file)
    except DAMAGED as error:
        raise _unreadable(file, error) from None
    return _named(file, arrays)


def of_folder(folder: Path) -> Shard:
    """A folder with arrays as `x.npy` and `y.npy`, which are mapped, and others as further columns; `names.npy` as in `.npz`.

    Raises:
        ConfigError: they cannot be read.
    """
    arrays: dict[str, Values] = {}
    for file in sorted(folder.glob("*.npy")):
        try:
            arrays[file.stem] = opened(file)
        except DAMAGED as error:
            raise _unreadable(file, error) from None
    return _named(folder, arrays)


def _named(file: Path, arrays: Mapping[str, Values]) -> Shard:
    arrays = dict(arrays)
    names = [str(name) for name in arrays.pop(NAMES, ())]
    if alone := [name for name, values in arrays.items() if not np.ndim(values)]:
        raise ConfigError(f"{file}: {', '.join(alone)}: one value, expected arrays [samples, ...]")
    return of_arrays(str(file), arrays, names)


def _unique(file: Path, names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{file} has several columns of one name: {', '.join(twice)}; rename or drop all but one")


def _unreadable(file: Path, error: Exception) -> ConfigError:
    size = file.stat().st_size if file.is_file() else -1
    why = "it is empty" if size == 0 else "it is a folder" if size < 0 and file.is_dir() else first(error)
    kind = {".csv": "a CSV file with a line of names", ".npz": "a .npz file with arrays x and y", ".npy": "an array"}
    return ConfigError(
        f"data.path: {file} cannot be read: {why}; expected {kind.get(file.suffix.lower(), 'a Parquet file')}, copy or write "
        "it anew"
    )
