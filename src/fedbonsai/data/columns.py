"""Columns of a Hugging Face data set: which hold the images, the labels and the owners, and their decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.extras import extra
from fedbonsai.data.images import Bytes, Labels
from fedbonsai.errors import ConfigError
from fedbonsai.telling import At

LABELS = ("label", "labels", "fine_label")  # the first of these wins where several columns hold classes
GREY = ("1", "L", "LA")
DEEP = ("I", "I;16", "I;16B", "I;16L", "F")  # more than 8 bits a value


def image_column(features: Mapping[str, Any]) -> str:
    """Name of the only column of images.

    Raises:
        ConfigError: none, or several.
    """
    image = extra("datasets").Image
    found = [name for name, kind in features.items() if isinstance(kind, image) or _is_encoded(kind)]
    if len(found) != 1:
        raise ConfigError(f"{len(found)} columns of images, expected one; {_listed(features)}")
    return found[0]


def label_column(features: Mapping[str, Any]) -> str:
    """Name of the column of classes: the only ClassLabel, or a whole number under a usual name.

    Raises:
        ConfigError: none, or several of which none has a usual name.
    """
    datasets = extra("datasets")
    found = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    numbers = [n for n in LABELS if isinstance(features.get(n), datasets.Value) and "int" in features[n].dtype]
    usual = [name for name in LABELS if name in found or name in numbers]
    if len(found) != 1 and not usual:
        raise ConfigError(
            f"{len(found)} columns of classes, expected one ClassLabel or whole numbers named {', '.join(LABELS)}; "
            f"{_listed(features)}"
        )
    return usual[0] if usual else found[0]


def decode(column: Sequence[Mapping[str, Any]], what: str, told: At = lambda done, what="": None) -> Bytes:
    """Decode encoded images straight into one array [samples, height, width, channels].

    Args:
        column: encoded images, each with ``bytes`` or ``path``.
        what: which images, for error texts.
        told: takes how many are decoded.

    Raises:
        ConfigError: an image that cannot be read, of another size, not square, or of more than 8 bits.
    """
    pillow = extra("PIL.Image")
    grey = True
    out: Bytes = np.empty((0, 0, 0, 1), np.uint8)
    at = 0
    while at < len(column):
        told(at)
        item = column[at]
        try:
            with pillow.open(BytesIO(item["bytes"]) if item["bytes"] is not None else Path(item["path"])) as image:
                mode, size = image.mode, image.size
                if grey and mode not in GREY and mode not in DEEP:
                    grey, at = False, 0  # one image in colour makes all of them so: begin again
                    out = np.empty((0, 0, 0, 3), np.uint8)
                    continue
                wanted = "L" if grey else "RGB"
                pixels = np.asarray(image if mode == wanted else image.convert(wanted))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{what} image {at} cannot be read: {error}; expected PNG, JPEG or the like") from error
        if mode in DEEP:
            raise ConfigError(f"{what} image {at} has more than 8 bits a value (mode {mode}); convert the images first")
        if not out.size:
            if size[0] != size[1]:
                raise ConfigError(f"{what} images are {size[0]}x{size[1]} pixels; only square ones are supported")
            out = np.empty((len(column), size[1], size[0], out.shape[3]), np.uint8)
        if size != (out.shape[2], out.shape[1]):
            raise ConfigError(
                f"{what} image {at} is {size[0]}x{size[1]} pixels, those before {out.shape[2]}x{out.shape[1]}; "
                "resize all images to one size first"
            )
        out[at] = pixels if not grey else pixels[:, :, None]
        at += 1
    if not len(column):
        raise ConfigError(f"there are no {what} images; check the files in data.path")
    return out


def labels(values: Any, classes: int | None, what: str) -> Labels:
    """Class numbers as int64.

    Args:
        values: one per sample.
        classes: number of classes where the data set declares it.
        what: which labels, for error texts.

    Raises:
        ConfigError: missing ones, negative ones, or ones beyond the declared classes.
    """
    found = np.asarray([-1 if value is None else value for value in values], np.int64)
    if found.size and (found.min() < 0 or (classes is not None and found.max() >= classes)):
        raise ConfigError(
            f"{what} labels run from {found.min()} to {found.max()}, expected 0 to "
            f"{'the number of classes' if classes is None else classes} - 1; use a labelled split"
        )
    return found


def owners(dataset: Any, by: str) -> NDArray[np.str_]:
    """Whose each sample is, as text; empty where no column is asked for.

    Raises:
        ConfigError: there is no such column.
    """
    if not by:
        return np.empty(0, np.str_)
    if by not in dataset.features:
        raise ConfigError(f"data.by = {by!r}: no such column; {_listed(dataset.features)}")
    return np.asarray([str(value) for value in dataset[by]], np.str_)


def _is_encoded(kind: Any) -> bool:
    return isinstance(kind, Mapping) and "bytes" in kind


def _listed(features: Mapping[str, Any]) -> str:
    return "columns: " + ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
