"""Columns of a data set: which hold the images, the labels and the owners, and their decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.extras import extra
from fedbonsai.data.images import Bytes, Labels
from fedbonsai.data.shards import Shard
from fedbonsai.errors import ConfigError
from fedbonsai.telling import At

LABELS = ("label", "labels", "fine_label")  # the first of these wins where several columns hold classes
GREY = ("1", "L", "LA")
DEEP = ("I", "I;16", "I;16B", "I;16L", "F")  # more than 8 bits a value
ORIENTATION = 0x0112  # EXIF: how the camera was held
UPRIGHT = {  # names of Pillow's transpositions
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def image_column(shard: Shard) -> str:
    """Name of the only column of images.

    Raises:
        ConfigError: none, or several.
    """
    image = extra("datasets").Image
    found = [name for name, kind in shard.features.items() if isinstance(kind, image) or _is_encoded(kind)]
    if len(found) != 1:
        raise ConfigError(
            f"{shard.what}: {len(found)} columns of images, expected one of encoded ones (PNG, JPEG; datasets.Image); "
            f"{shard.columns}"
        )
    return found[0]


def label_column(shard: Shard) -> str:
    """Name of the column of classes: the only ClassLabel, or a whole number under a usual name.

    Raises:
        ConfigError: none, or several of which none has a usual name.
    """
    datasets, features = extra("datasets"), shard.features
    found = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    numbers = [n for n in LABELS if isinstance(features.get(n), datasets.Value) and "int" in features[n].dtype]
    usual = [name for name in LABELS if name in found or name in numbers]
    if len(found) != 1 and not usual:
        raise ConfigError(
            f"{shard.what}: {len(found)} columns of classes, expected one ClassLabel (datasets: class_encode_column makes "
            f"one of text) or whole numbers named {', '.join(LABELS)}; {shard.columns}"
        )
    return usual[0] if usual else found[0]


def required(shard: Shard, names: Sequence[str], setting: str = "") -> None:
    """Refuse a file that lacks columns which the first training file has.

    Raises:
        ConfigError: names them.
    """
    if missing := [name for name in names if name and name not in shard.features]:
        near = get_close_matches(missing[0], list(shard.features), 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(
            f"{setting}{', '.join(map(repr, missing))}: no such column in {shard.what}{hint}; {shard.columns}; "
            "all files need the same columns"
        )


def declared(shard: Shard, label: str) -> tuple[str, ...]:
    """Names of the classes that a file declares; none where its labels are bare numbers."""
    return tuple(getattr(shard.features[label], "names", None) or ())


def upright(image: Any) -> Any:
    """A picture, loaded and turned as it is to be seen."""
    image.load()  # first: TIFF is turned by that and loses its mark
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    return image.transpose(getattr(extra("PIL.Image").Transpose, turn)) if turn else image


def decode(column: Sequence[Any], what: str, told: At = lambda done, what="": None) -> Bytes:
    """Decode encoded images straight into one upright array [samples, height, width, channels].

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
        raw, name = _source(column[at], f"{what} image {at}")
        try:
            with pillow.open(raw) as opened:
                if grey and opened.mode not in GREY and opened.mode not in DEEP:
                    grey, at = False, 0  # one image in colour makes all of them so: begin again
                    out = np.empty((0, 0, 0, 3), np.uint8)
                    continue
                image = upright(opened)
                mode, size = image.mode, image.size
                wanted = "L" if grey else "RGB"
                pixels = np.asarray(image if mode == wanted else image.convert(wanted))
        except Exception as error:  # Pillow has a dozen kinds of errors for damaged files
            raise ConfigError(
                f"{name} cannot be read: {error}; expected PNG, JPEG or the like: mend the picture or take it away"
            ) from error
        if mode in DEEP:
            raise ConfigError(f"{name} has more than 8 bits a value (mode {mode}); convert the images first")
        if not out.size:
            if size[0] != size[1]:
                raise ConfigError(f"{name} is {size[0]}x{size[1]} pixels; only square ones are supported")
            out = np.empty((len(column), size[1], size[0], out.shape[3]), np.uint8)
        if size != (out.shape[2], out.shape[1]):
            raise ConfigError(
                f"{name} is {size[0]}x{size[1]} pixels, those before {out.shape[2]}x{out.shape[1]}; "
                "resize all images to one size first"
            )
        out[at] = pixels if not grey else pixels[:, :, None]
        at += 1
    return out


def labels(values: Sequence[Any], classes: int, what: str) -> Labels:
    """Class numbers as int64.

    Args:
        values: one per sample.
        classes: number of classes that the file declares; 0 where it declares none.
        what: which file, for error texts.

    Raises:
        ConfigError: missing ones, no whole numbers, negative ones, or ones beyond the declared classes.
    """
    for row, value in enumerate(values):
        if type(value) is not int:
            given = "missing" if value is None else f"{value!r}"
            raise ConfigError(f"{what}: the label of row {row} is {given}; expected a whole number for every row")
    least, most = min(values, default=0), max(values, default=0)
    if least < 0 or most >= (classes or 1 << 63):
        raise ConfigError(
            f"{what}: labels run from {least} to {most}, expected 0 to "
            f"{classes or 'the number of classes'} - 1; use a labelled split"
        )
    return np.asarray(values, np.int64)


def owners(values: Sequence[Any], by: str, what: str) -> NDArray[np.str_]:
    """Whose each sample is, as text.

    Raises:
        ConfigError: of some it is not said.
    """
    if any(value is None for value in values):
        count, row = sum(value is None for value in values), values.index(None)
        raise ConfigError(
            f"{what}: {by!r} is missing in {count} rows, first in {row}; say whose they are, or drop them"
        )
    return np.asarray([str(value) for value in values], np.str_)


def _source(item: object, name: str) -> tuple[BytesIO | Path, str]:
    """Where an encoded image is, and what it is called."""
    held: Mapping[str, Any] = (
        cast("Mapping[str, Any]", item)
        if isinstance(item, Mapping)
        else {"bytes": item if isinstance(item, bytes) else None, "path": item if isinstance(item, str) else None}
    )
    raw, path = held.get("bytes"), held.get("path")
    if raw is None and not path:
        raise ConfigError(f"{name} is missing; fill the row in or drop it")
    return (Path(str(path)) if raw is None else BytesIO(raw)), f"{name} ({path})" if path else name


def _is_encoded(kind: Any) -> bool:
    return isinstance(kind, Mapping) and "bytes" in kind
