"""Several inputs of the same rows, each read for itself; a sample is one row of float32 in which they stand side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.config import SeriesConfig
from fedbonsai.data.reading import Reading
from fedbonsai.data.tables import Table
from fedbonsai.data.transforms import Part
from fedbonsai.errors import ConfigError
from fedbonsai.inputs import Input


@dataclass(frozen=True)
class Place:
    """One input as it stands in a row.

    Attributes:
        shape: of one, channels first.
        kind: pictures, numbers or tokens.
        units: what values are multiplied with, one for each of the last axis; empty: nothing.
        vocabulary: number of tokens; 0 where it holds none.
    """

    shape: tuple[int, ...]
    kind: str
    units: tuple[float, ...] = ()
    vocabulary: int = 0


@dataclass(frozen=True)
class Several:
    """How the columns of each input are read, by its name, and what they are: a `Reading` of rows of several inputs."""

    readings: Mapping[str, Reading]
    places: Mapping[str, Place]

    @property
    def first(self) -> Reading:
        """Targets, owners and series are read by each alike."""
        return next(iter(self.readings.values()))

    @property
    def x(self) -> tuple[str, ...]:
        """Columns of all inputs."""
        return tuple(dict.fromkeys(name for each in self.readings.values() for name in each.x))

    @property
    def dtype(self) -> str:
        """Of stored rows."""
        return "float32"

    @property
    def y(self) -> tuple[str, ...]:
        """Columns of the targets."""
        return self.first.y

    @property
    def client(self) -> str:
        """Column that says whose samples are."""
        return self.first.client

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return self.first.names

    @property
    def series(self) -> SeriesConfig:
        """Windows of rows."""
        return self.first.series

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of all columns that it needs."""
        return tuple(dict.fromkeys(name for each in self.readings.values() for name in each.wanted))

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What the network is told of them."""
        return tuple(Input(name, place.shape, place.kind == "tokens") for name, place in self.places.items())

    def again(self, **changes: Any) -> Several:
        """The same with other settings of all readings."""
        return replace(self, readings={name: each.again(**changes) for name, each in self.readings.items()})

    def text(self) -> str:
        """It as JSON, for devices."""
        readings = {name: each.text() for name, each in self.readings.items()}
        return json.dumps({"inputs": readings, "places": {name: asdict(each) for name, each in self.places.items()}})

    def learned(self, table: Table) -> tuple[Several, Part]:
        """The same with what it must know of the training set, and its samples."""
        found = {name: each.learned(table) for name, each in self.readings.items()}
        parts = {name: part for name, (_, part) in found.items()}
        readings = {name: reading for name, (reading, _) in found.items()}
        rows, places = _beside({name: (readings[name], part) for name, part in parts.items()})
        return Several(readings, places), rows

    def __call__(self, table: Table, training: bool = False, scored: NDArray[np.bool_] | None = None) -> Part:
        """Samples of other rows: a test set, or a device's own.

        Raises:
            ConfigError: they do not fit.
        """
        rows, places = _beside({name: (each, each(table, training, scored)) for name, each in self.readings.items()})
        for name, place in self.places.items():
            if places[name].shape != place.shape:
                raise ConfigError(
                    f"{table.what}: data.inputs.{name} has samples of {list(places[name].shape)}, the training samples are "
                    f"{list(place.shape)}; bring both to one shape by its transforms"
                )
        return rows


def _beside(found: Mapping[str, tuple[Reading, Part]]) -> tuple[Part, dict[str, Place]]:
    first = next(iter(found.values()))[1]
    rows: list[NDArray[np.float32]] = []
    places: dict[str, Place] = {}
    for name, (reading, part) in found.items():
        if not np.array_equal(part.y, first.y):
            raise ConfigError(
                f"{part.what}: the transforms of data.inputs.{name} change the targets, or how many samples there are "
                f"({len(part.y)}, of others {len(first.y)}); give each only what changes its own values"
            )
        x = np.asarray(part.x)
        pictures = reading.role == "picture" and x.dtype == np.uint8 and x.ndim == 4
        x = np.moveaxis(x, 3, 1) if pictures else x
        kind = "pictures" if pictures else "tokens" if part.vocabulary else "numbers"
        places[name] = Place(tuple(x.shape[1:]), kind, tuple(part.units), part.vocabulary)
        rows.append(x.reshape(len(x), -1).astype(np.float32))
    return replace(first, x=np.concatenate(rows, 1), units=(), vocabulary=0), places


def understood(text: str) -> Reading | Several:
    """What the `text` of a reading of one or of several inputs says.

    Raises:
        ConfigError: it is none, or names a transform that is not known here.
    """
    try:
        body: object = json.loads(text)
        table = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
        if "inputs" not in table:
            return Reading.of(text)
        readings = {str(name): Reading.of(each) for name, each in table["inputs"].items()}
        places: dict[str, Any] = table["places"]
        return Several(readings, {name: _place(**places[name]) for name in readings})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"how the task's data are read cannot be understood here: {error}") from None


def _place(shape: list[int], kind: str, units: list[float], vocabulary: int) -> Place:
    return Place(tuple(shape), kind, tuple(units), vocabulary)
