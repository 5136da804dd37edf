"""A device's own columns, read as the server's were: the same columns, shapes, windows and transforms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedbonsai.core import Samples
from fedbonsai.data.classes import few
from fedbonsai.data.columns import required
from fedbonsai.data.folders import local
from fedbonsai.data.given import columns_of
from fedbonsai.data.kinds import Kind, Values
from fedbonsai.data.normalising import scale_of
from fedbonsai.data.reading import Reading
from fedbonsai.data.several import Several, understood
from fedbonsai.data.shards import Shard
from fedbonsai.data.shards import of_arrays as shard_of
from fedbonsai.data.sources import filled
from fedbonsai.data.tables import table
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower.frames import Form

INPUTS, TARGETS = ("x", "image", "sound"), ("y", "label")  # names in arrays, and in folders for each class


def of_path(path: Path, form: Form, device: str) -> Samples:
    """Samples of files; of those with a name, the training files.

    Raises:
        ConfigError: they do not fit the form.
    """
    reading = understood(form.reading)
    shards = [_renamed(shard, reading) for shard in filled(local(path)["train"])]
    return _samples(shards, reading, form, str(path), device)


def of_arrays(arrays: tuple[Any, Any], form: Form, what: str, device: str) -> Samples:
    """Samples of inputs and targets that a function returned.

    Raises:
        ConfigError: they do not fit the form.
    """
    reading = understood(form.reading)
    held = columns_of(*arrays, what)
    return _samples([_renamed(shard_of(what, held), reading)], reading, form, what, device)


def _renamed(shard: Shard, reading: Reading | Several) -> Shard:
    """Arrays and folders, whose columns have names of their own, under those of the task; a matrix as the columns that it has."""
    made: dict[str, Values] = {}
    kinds: dict[str, Kind] = {}
    inputs = [] if isinstance(reading, Several) else [(INPUTS, reading.x)]  # several have the names of their columns
    for usual, names in (*inputs, (TARGETS, reading.y)):
        mine = next((name for name in usual if name in shard.kinds), "")
        if not mine or set(names) <= set(shard.kinds):
            continue
        values, kind = shard.rows([mine])[mine], shard.kinds[mine]
        if len(names) == 1 and (isinstance(reading, Several) or reading.shape is not None or np.ndim(values) < 2):
            found: Mapping[str, Values] = {names[0]: values}
        elif isinstance(values, np.ndarray) and values.shape[1:] == (len(names),):
            found, kind = {name: values[:, place] for place, name in enumerate(names)}, replace(kind, shape=())
        else:
            raise ConfigError(
                f"{shard.what}: {mine} has the shape {np.shape(values)[1:]}; the task wants {len(names)} columns, "
                f"{few(names)}"
            )
        made |= found
        kinds |= dict.fromkeys(found, kind)

    def rows(wanted: Sequence[str]) -> Mapping[str, Values]:
        return {
            **shard.rows([name for name in wanted if name not in made]),
            **{name: made[name] for name in wanted if name in made},
        }

    return replace(shard, kinds={**shard.kinds, **kinds}, rows=rows) if made else shard


def _samples(shards: list[Shard], reading: Reading | Several, form: Form, what: str, device: str) -> Samples:
    for key in {reading.client, reading.series.by} - {""}:  # all of it is this device's, whoever says so
        shards = [shard if key in shard.kinds else shard.of_client(device, key) for shard in shards]
    required(shards[0], reading.wanted)
    if any(shards[0].kinds[name].role == "text" for name in reading.y):
        reading = reading.again(names=form.names)  # also where the task's own files call its classes by numbers
    classes = {name: form.names for name in reading.y if shards[0].kinds[name].names}
    part = reading(table(shards, reading.wanted, classes, what), training=True)
    x = _fitting(np.asarray(part.x), reading.dtype, what)
    pictures = isinstance(reading, Reading) and reading.role == "picture" and reading.dtype == "uint8"
    if pictures and x.ndim == 4:
        x = np.moveaxis(x, 3, 1)
    if x.shape[1:] != form.shape:
        raise ConfigError(f"{what} holds samples of shape {x.shape[1:]}, the task wants {form.shape}")
    if form.names and part.y.size and int(part.y.max()) >= len(form.names):
        raise ConfigError(
            f"labels of {what} run from {part.y.min()} to {part.y.max()}, the task has {len(form.names)} classes, 0 to n - 1"
        )
    return Samples(
        torch.as_tensor(np.require(x, requirements=["C", "W"])),
        torch.as_tensor(np.require(part.y, requirements=["C", "W"])),
        scale_of(form.mean, form.std, form.shape, 255 if pictures else 1),
    )


def _fitting(x: NDArray[Any], dtype: str, what: str) -> NDArray[Any]:
    """Inputs in the type that the task's are stored in, if nothing is lost by it.

    Raises:
        ConfigError: something is.
    """
    found = x.astype(dtype)
    if not np.array_equal(found, x):
        raise ConfigError(
            f"{what} holds {x.dtype} values from {x.min():g} to {x.max():g}, the task stores {dtype}: give them in the same unit "
            "and type as the task's data"
        )
    return found
