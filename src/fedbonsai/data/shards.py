"""One file of a data set: its columns by kind, and the rows of those that are wanted, with images still encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbonsai.data.extras import extra
from fedbonsai.errors import ConfigError

Columns = Mapping[str, list[Any]]


@dataclass(frozen=True)
class Shard:
    """A file, or a split of the hub.

    ``what`` names it in errors, ``count`` is the number of its rows, ``features`` are the kinds of its columns, ``rows``
    reads some of them.
    """

    what: str
    count: int
    features: Mapping[str, Any]
    rows: Callable[[Sequence[str]], Columns]

    @property
    def columns(self) -> str:
        """All columns in words, for errors."""
        kinds = (f"{name} ({getattr(kind, 'dtype', type(kind).__name__)})" for name, kind in self.features.items())
        return "columns: " + ", ".join(kinds)


def of_file(file: Path) -> Shard:
    """A Parquet file. It is opened here: given its name, the readers would take it for an address or a pattern.

    Raises:
        ConfigError: it cannot be read.
    """

    def columns(names: Sequence[str]) -> Columns:
        try:
            with file.open("rb") as raw:
                return extra("pyarrow.parquet").ParquetFile(raw).read(columns=list(names)).to_pydict()
        except Exception as error:
            raise _unreadable(file, error) from None

    try:
        with file.open("rb") as raw:
            held = extra("pyarrow.parquet").ParquetFile(raw)
            count, schema = held.metadata.num_rows, held.schema_arrow
        features = extra("datasets").Features.from_arrow_schema(schema)
    except Exception as error:  # whatever the readers say of a damaged or odd file
        raise _unreadable(file, error) from None
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise ConfigError(f"{file} has several columns of one name: {', '.join(twice)}; rename or drop all but one")
    return Shard(str(file), count, features, columns)


def of_hub(dataset: Any, what: str) -> Shard:
    """A split that the datasets library fetched; its own decoding of images is several times slower than ours."""

    def columns(names: Sequence[str]) -> Columns:
        return dataset.select_columns(list(names)).with_format("arrow")[:].to_pydict()

    return Shard(what, len(dataset), dataset.features, columns)


def first(error: Exception) -> str:
    """Kind of an error and the first line of its text."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no text'}"


def _unreadable(file: Path, error: Exception) -> ConfigError:
    size = file.stat().st_size if file.is_file() else -1
    why = "it is empty" if size == 0 else "it is a folder" if size < 0 and file.is_dir() else first(error)
    return ConfigError(f"data.path: {file} cannot be read: {why}; expected a Parquet file, copy or write it anew")
