"""A device's own data, brought into the form that the task wants or refused with what is wrong.

Values of bytes count from 0 to 255, all others from 0 to 1; both are normalised as the server's data are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedbonsai import data
from fedbonsai.core import Samples
from fedbonsai.data.columns import decode
from fedbonsai.data.config import DataConfig
from fedbonsai.data.sources import parquet, read
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower.frames import Form
from fedbonsai.tree import generator, seed_of

KINDS = (
    "a folder with one folder of images for each class, a folder of train-*.parquet files, "
    "a file .npz with arrays x and y, or module:function that returns x and y"
)
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


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
        x, y = self._read(form)
        if not len(y):
            raise ConfigError(f"{self.where} holds no samples; expected {KINDS}")
        if len(x) != len(y):
            raise ConfigError(f"{self.where} holds {len(x)} samples and {len(y)} labels")
        whole = Samples(_shaped(x, form, self.where), _labels(y, form, self.where))
        count = len(whole)
        apart = min(count - 1, max(1, round(self.valid * count))) if self.valid > 0 and count > 1 else 0
        order = torch.randperm(count, generator=generator(seed_of(0, f"device/{self.device}", -1, 0)))
        return whole[order[apart:]], whole[order[:apart]]

    def _read(self, form: Form) -> tuple[Any, Any]:
        path = Path(self.where)
        if path.is_dir():
            if any(path.glob("*.parquet")) or any(path.glob("data/*.parquet")):
                return _parquet(path, form)
            return _images(path, form)
        if path.suffix == ".npz" and path.is_file():
            return _arrays(path)
        module, colon, name = self.where.partition(":")
        if colon and module.replace(".", "_").isidentifier() and name.isidentifier():
            return _called(module, name)
        state = "is none of these" if path.exists() else "does not exist"
        raise ConfigError(f"--data {self.where} {state}; expected {KINDS}")


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
        mine = Form(tuple(held.x.shape[1:]), held.class_names, held.mean, held.std, held.augment)
        if mine != form:
            raise ConfigError(
                f"--part of {self.data.name!r} gives samples {mine.shape} of {len(mine.names)} classes, normalised by "
                f"{mine.mean}; the task has {form.shape}, {len(form.names)} classes and {form.mean}: "
                "give join the same recipe and --data settings as run"
            )
        return held.train[self.part], held.valid[self.part]


def _images(folder: Path, form: Form) -> tuple[Any, Any]:
    classes = sorted(place for place in folder.iterdir() if place.is_dir())
    files = [
        (file, place.name) for place in classes for file in sorted(place.iterdir()) if file.suffix.lower() in IMAGES
    ]
    if not files:
        raise ConfigError(f"{folder} has no folders of images; expected {KINDS}")
    y = _numbers([name for _, name in files], form, f"the folders in {folder}")
    return decode([{"bytes": None, "path": str(file)} for file, _ in files], str(folder)), y


def _parquet(folder: Path, form: Form) -> tuple[Any, Any]:
    images = read(DataConfig(name="own/data", path=str(folder)))
    x, y = images.x, images.y
    if set(parquet(folder)) == {"train"}:  # what was cut off as a test set is the device's own too
        x, y = np.concatenate([x, images.test_x]), np.concatenate([y, images.test_y])
    return x, np.asarray(_numbers(images.names, form, f"the labels in {folder}"))[y]


def _arrays(path: Path) -> tuple[Any, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["x"], file["y"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); expected arrays x [samples, ...] and y [samples]"
        ) from None


def _called(module: str, name: str) -> tuple[Any, Any]:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), name)()
        x, y = found
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"--data {module}:{name}: {error}; expected a function that returns x and y") from None
    return x, y


def _numbers(names: Sequence[str], form: Form, what: str) -> list[int]:
    """Class numbers for class names."""
    known = {name: number for number, name in enumerate(form.names)}
    strange = sorted(set(names) - set(known))
    if strange and all(name.isdigit() and int(name) < len(form.names) for name in names):
        return [int(name) for name in names]
    if strange:
        raise ConfigError(
            f"{what} are no classes of the task: {', '.join(strange[:5])}; its classes: {', '.join(form.names[:20])}"
        )
    return [known[name] for name in names]


def _shaped(x: Any, form: Form, where: str) -> Tensor:
    """Samples [samples, *shape] float32, normalised."""
    values = torch.as_tensor(np.asarray(x))
    channels, shape = form.shape[0], tuple(values.shape[1:])
    if shape == (*form.shape[1:], channels) and shape != form.shape:
        values = values.movedim(-1, 1)
    elif channels == 1 and shape == form.shape[1:]:
        values = values.unsqueeze(1)
    elif shape != form.shape:
        raise ConfigError(
            f"{where} holds samples of shape {shape}, the task wants {form.shape} (channels first or last); "
            "resize or convert them"
        )
    whole = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    if not bool(torch.isfinite(whole).all()):
        raise ConfigError(f"{where} holds values that are not finite; clean the data first")
    across = (1, -1, *[1] * (len(form.shape) - 1))
    return ((whole - torch.tensor(form.mean).view(across)) / torch.tensor(form.std).view(across)).contiguous()


def _labels(y: Any, form: Form, where: str) -> Tensor:
    values = np.asarray(y)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise ConfigError(
            f"labels of {where} are {values.dtype} of shape {values.shape}; expected whole numbers [samples]"
        )
    if values.min() < 0 or values.max() >= len(form.names):
        raise ConfigError(
            f"labels of {where} run from {values.min()} to {values.max()}, the task has {len(form.names)} classes, "
            "0 to n - 1"
        )
    return torch.as_tensor(values.astype(np.int64))
