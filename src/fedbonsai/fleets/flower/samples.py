"""A device's own data, brought into the form that the task wants or refused with what is wrong.

Where the form says how columns become samples, they are read as the server's were (`columns`). Pictures need no such words:
values of bytes count from 0 to 255, floats and booleans from 0 to 1; all are normalised as the server's data are. Whole
numbers of other types are refused, and so are values beyond these: nobody could tell what they count from.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedbonsai import data
from fedbonsai.core import Samples
from fedbonsai.data.arrays import Bytes
from fedbonsai.data.classes import counted, few, numbers, plain
from fedbonsai.data.columns import decode
from fedbonsai.data.config import DataConfig
from fedbonsai.data.federation import Federation
from fedbonsai.data.folders import IMAGES, splits, stray
from fedbonsai.data.shards import DAMAGED
from fedbonsai.data.sources import read
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower import columns
from fedbonsai.fleets.flower.frames import Form
from fedbonsai.tree import generator, seed_of

KINDS = (
    "a folder with one folder of images or recordings for each class, a folder of train-*.parquet files (or .csv, .npz), "
    "a file .npz with arrays x and y, a file .parquet or .csv, or module:function that returns x and y"
)
NAMES = "names"  # array of a .npz: what the numbers in y mean
BLACK = 1 / 255  # up to here nothing can be seen: such values were scaled twice, or never
SPILL = 1e-3  # beyond 0 to 1, by rounding
FAINT = 0.1  # contrast, as a part of that of the server's data, below which the device says so in its log

log = logging.getLogger("fedbonsai")


@dataclass(frozen=True)
class Own:
    """Data of this very device.

    Args:
        where: see `KINDS`.
        valid: fraction that is kept apart for decisions; who is in it depends on ``device`` alone.
        device: id of the device.
    """

    where: str
    valid: float
    device: str

    def __call__(self, form: Form) -> tuple[Samples, Samples]:
        """Samples to train on and to decide on.

        Raises:
            ConfigError: there are none, or they do not fit the form.
        """
        whole = self._columns(form) if form.reading else self._pictures(form)
        count = len(whole)
        apart = min(count - 1, max(1, round(self.valid * count))) if self.valid > 0 and count > 1 else 0
        order = torch.randperm(count, generator=generator(seed_of(0, f"device/{self.device}", -1, 0)))
        return whole[order[apart:]], whole[order[:apart]]

    def _columns(self, form: Form) -> Samples:
        path = Path(self.where)
        if not os.path.exists(self.where):
            module, name = self._function()
            arrays = _called(module, name)
            return columns.of_arrays(arrays, form, self.where, self.device)
        return columns.of_path(path, form, self.device)

    def _pictures(self, form: Form) -> Samples:
        x, y = self._read(form)
        if not len(y):
            raise ConfigError(f"{self.where} holds no samples; expected {KINDS}")
        if len(x) != len(y):
            raise ConfigError(f"{self.where} holds {len(x)} samples and {len(y)} labels")
        return Samples(_shaped(x, form, self.where), _labels(y, form, self.where))

    def _function(self) -> tuple[str, str]:
        """Module and name of a function.

        Raises:
            ConfigError: it is none.
        """
        module, colon, name = self.where.partition(":")
        if colon and module.replace(".", "_").isidentifier() and name.isidentifier():
            return module, name
        state = "is none of these" if os.path.exists(self.where) else "does not exist"
        raise ConfigError(f"--data {self.where} {state}; expected {KINDS}")

    def _read(self, form: Form) -> tuple[Tensor, NDArray[Any]]:
        """Samples with values from 0 to 1, and labels."""
        path, there = Path(self.where), os.path.exists(self.where)  # False, too, for what can be no name of a file
        if there and path.is_dir():
            if any(not stray(file) for pattern in ("*.parquet", "data/*.parquet") for file in path.glob(pattern)):
                x, y = _files(path)
            else:
                x, y = _images(path, form)
            return torch.as_tensor(x).float() / 255, y
        if there and path.suffix.lower() == ".npz" and path.is_file():
            return self._given(*_arrays(path))
        return self._given(*_called(*self._function()))

    def _given(self, x: Any, y: Any) -> tuple[Tensor, NDArray[Any]]:
        return _scaled(_array(x, f"samples of {self.where}"), self.where), _array(y, f"labels of {self.where}")


@dataclass(frozen=True)
class Part:
    """For trials: one client's part of a data set that all devices can read, as in a simulation.

    Args:
        data: which data and how they are divided.
        seed: of the run whose division it is.
        part: number of the client.
    """

    data: DataConfig
    seed: int
    part: int

    def __call__(self, form: Form) -> tuple[Samples, Samples]:
        """Samples to train on and to decide on.

        Raises:
            ConfigError: there is no such part, or the data are not those of the task.
        """
        held = data.load(self.data, self.seed)
        if not 0 <= self.part < len(held.ids):
            raise ConfigError(f"--part {self.part}: the data are divided among {len(held.ids)} clients, 0 to n - 1")
        mine = form_of(held)
        if mine != form:
            raise ConfigError(
                f"--part of {self.data.name!r} gives samples {mine.shape} of {len(mine.names)} classes, normalised by "
                f"{mine.mean[:3]}; the task has {form.shape}, {len(form.names)} classes and {form.mean[:3]}: "
                "give join the same recipe and --data settings as run"
            )
        return held.train[self.part], held.valid[self.part]


def form_of(held: Federation) -> Form:
    """The form of a federation's samples."""
    return Form(held.samples.shape, held.class_names, held.mean, held.std, held.augment, held.reading)


def _images(folder: Path, form: Form) -> tuple[Bytes, NDArray[Any]]:
    found: list[tuple[Path, str]] = []
    over: list[str] = []
    for place in sorted(folder.iterdir()):
        if stray(place) and plain(place.name) not in numbers(form.names):
            continue
        for file in sorted(place.iterdir()) if place.is_dir() else (place,):
            if file != place and file.suffix.lower() in IMAGES and file.is_file() and not stray(file):
                found.append((file, place.name))
            elif not stray(file):
                over.append(str(file))
    if not found:
        raise ConfigError(f"{folder} has no folders of images; expected {KINDS}")
    if over:
        log.warning("passed over, as no pictures (%s) in a folder of a class: %s", " ".join(sorted(IMAGES)), few(over))
    x = decode([{"bytes": None, "path": str(file)} for file, _ in found], str(folder))
    return x, np.asarray([name for _, name in found])


def _files(folder: Path) -> tuple[Bytes, NDArray[Any]]:
    images = read(DataConfig(path=str(folder)))
    if images.kind != "pictures":
        raise ConfigError(f"{folder} holds {images.kind}, the task wants pictures")
    x, y = images.x, images.y
    if set(splits(folder)) == {"train"}:  # what was cut off as a test set is the device's own too
        x, y = np.concatenate([x, images.test_x]), np.concatenate([y, images.test_y])
    return x, np.asarray(images.names)[y] if images.names else y


def _arrays(path: Path) -> tuple[Any, Any]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # numpy leaks a damaged file's handle
            x, y, names = file["x"], file["y"], file.get(NAMES)
    except DAMAGED as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); expected arrays x [samples, ...] and y [samples]"
        ) from None
    if names is None:
        return x, y
    if y.dtype.kind not in "iu" or names.ndim != 1 or (y.size and not 0 <= y.min() <= y.max() < len(names)):
        raise ConfigError(f"{path}: y does not number the {names.size} {NAMES}; expected 0 to {names.size - 1}")
    return x, names.astype(np.str_)[y]


def _called(module: str, name: str) -> tuple[Any, Any]:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), name)()
        x, y = found
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"--data {module}:{name}: {error}; expected a function that returns x and y") from None
    return x, y


def _array(value: Any, what: str) -> NDArray[Any]:
    """What was given as an array of one type, nothing dropped.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
    if np.ma.is_masked(value):
        raise ConfigError(f"{what} are masked in places; fill them or leave those samples out")
    try:
        found = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, sparse tensors
        raise ConfigError(f"{what} are no array: {error}; expected one of a single type and shape") from None
    if not found.ndim:
        raise ConfigError(f"{what} are {type(value).__name__}, no array; expected [samples, ...]")
    return found


def _numbers(names: Sequence[str], form: Form, what: str) -> list[int]:
    """Class numbers for class names; names that are but numbers are those of the task, if its own names are none."""
    known = numbers(form.names)
    strange = sorted({name for name in names if plain(name) not in known})
    own = any(name.isdecimal() for name in form.names)
    if strange and not own and all(name.isdecimal() and int(name) < len(form.names) for name in names):
        return [int(name) for name in names]
    if strange:
        raise ConfigError(
            f"{what} are no classes of the task: {', '.join(strange[:5])}; its classes: {', '.join(form.names[:20])}"
        )
    return [known[plain(name)] for name in names]


def _shaped(whole: Tensor, form: Form, where: str) -> Tensor:
    """Samples [samples, *shape] float32, normalised."""
    channels, shape = form.shape[0], tuple(whole.shape[1:])
    if shape == (*form.shape[1:], channels) and shape != form.shape:
        whole = whole.movedim(-1, 1)
    elif channels == 1 and shape == form.shape[1:]:
        whole = whole.unsqueeze(1)
    elif shape != form.shape:
        raise ConfigError(
            f"{where} holds samples of shape {shape}, the task wants {form.shape} (channels first or last); "
            "resize or convert them"
        )
    across = (1, -1, *[1] * (len(form.shape) - 1))
    found = ((whole - torch.tensor(form.mean).view(across)) / torch.tensor(form.std).view(across)).contiguous()
    contrast = float(found.std(correction=0))
    if contrast < FAINT:
        log.warning(
            "%s: the contrast is %.1g of that of the task's data; are its values scaled as 0 to 255 (bytes) or 0 to 1?",
            where,
            contrast,
        )
    return found


def _scaled(x: NDArray[Any], where: str) -> Tensor:
    """Values from 0 to 1 as float32.

    Raises:
        ConfigError: they are of a type or in a range of which it cannot be told what they count from.
    """
    kind = x.dtype
    if kind != np.uint8 and kind.kind not in "bf":
        advice = "x.astype(np.uint8) where they are bytes of 0 to 255, else floats of 0 to 1"
        between = f" from {x.min()} to {x.max()}" if kind.kind in "iu" and x.size else ""
        raise ConfigError(f"{where} holds values of type {kind}{between}; expected bytes or floats: {advice}")
    if not bool(np.isfinite(x).all()):
        raise ConfigError(f"{where} holds values that are not finite; clean the data first")
    top = 255 if kind == np.uint8 else 1
    least, most = (float(x.min()), float(x.max())) if x.size else (0.0, 1.0)
    if least < -SPILL or most > top + SPILL:
        raise ConfigError(
            f"{where} holds {kind} values from {least:g} to {most:g}; floats count from 0 to 1, before any normalisation: "
            "divide by the largest value possible (such as 255) first, the task's mean and deviation are taken here"
        )
    if 0 < most <= BLACK * top:
        raise ConfigError(
            f"{where} holds {kind} values up to {most:g}, where {top} is white: nothing can be seen; bytes count to 255 "
            "and floats to 1, so multiply first (or for 0 and 1: x.astype(bool))"
        )
    values = x.astype(np.uint8 if kind == np.uint8 else np.float32)  # in this machine's byte order
    return torch.as_tensor(values).float() / top


def _labels(y: NDArray[Any], form: Form, where: str) -> Tensor:
    if y.ndim == 1 and y.dtype.kind == "U":
        return torch.tensor(_numbers(y.tolist(), form, f"labels of {where}"))
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ConfigError(
            f"labels of {where} are {y.dtype} of shape {y.shape}; expected whole numbers or names [samples]"
        )
    if any(name.isdecimal() for name in form.names) and not counted(form.names):
        raise ConfigError(
            f"labels of {where} are bare numbers, and the task's classes are called {few(form.names)}: give the names, "
            "as text"
        )
    if y.min() < 0 or y.max() >= len(form.names):
        raise ConfigError(
            f"labels of {where} run from {y.min()} to {y.max()}, the task has {len(form.names)} classes, 0 to n - 1"
        )
    return torch.as_tensor(y.astype(np.int64))
