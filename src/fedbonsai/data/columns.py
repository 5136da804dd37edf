"""Columns of a data set: which hold the inputs and the targets, labels as numbers, and pictures decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np

from fedbonsai.data.arrays import Bytes, Labels
from fedbonsai.data.extras import extra
from fedbonsai.data.kinds import Kind, Values
from fedbonsai.data.shards import Shard
from fedbonsai.errors import ConfigError
from fedbonsai.telling import At

INPUTS = ("x", "text")
LABELS = ("label", "labels", "fine_label", "y")  # the first of these wins where several columns hold classes
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


def input_columns(shard: Shard, wanted: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns of inputs: those that are wanted, in which ``*`` and ``?`` stand for several, or the usual ones.

    Args:
        shard: whose columns they are.
        wanted: names and patterns; none: the only column of images, one named ``x`` or ``text``, or the only one of sounds.
        others: columns of targets and keys, which no pattern means.

    Raises:
        ConfigError: there are none, or several of which it is not said which.
    """
    if wanted:
        return matched(shard, wanted, others, "data.x")
    pictures = [name for name, kind in shard.kinds.items() if kind.role == "picture" and name not in others]
    if len(pictures) == 1:
        return (pictures[0],)
    sounds = [name for name, kind in shard.kinds.items() if kind.role == "sound"]
    usual = [name for name in INPUTS if name in shard.kinds]
    if not pictures and (found := usual or sounds) and len(found) == 1:
        return (found[0],)
    raise ConfigError(
        f"{shard.what}: {len(pictures)} columns of images, expected one of encoded ones (PNG, JPEG; datasets.Image), or say "
        f"in data.x which columns are the inputs; {shard.columns}"
    )


def label_columns(shard: Shard) -> tuple[str, ...]:
    """Name of the column of classes: the only ClassLabel, or whole numbers or text under a usual name.

    Raises:
        ConfigError: none, or several of which none has a usual name.
    """
    found = [name for name, kind in shard.kinds.items() if kind.role == "class"]
    usual = [name for name in LABELS if name in shard.kinds and (name in found or names_classes(shard.kinds[name]))]
    if len(found) != 1 and not usual and {"x", "y"} <= set(shard.kinds):
        return ("y",)  # arrays so called are inputs and targets, whatever they hold
    if len(found) != 1 and not usual:
        raise ConfigError(
            f"{shard.what}: {len(found)} columns of classes, expected one ClassLabel, or text or whole numbers named "
            f"{', '.join(LABELS)}; or say in data.y which column is the target; {shard.columns}"
        )
    return (usual[0] if usual else found[0],)


def names_classes(kind: Kind) -> bool:
    """Whether values are text or whole numbers, one for each sample."""
    return kind.role == "text" or (kind.role == "number" and kind.shape == () and "int" in kind.words)


def matched(shard: Shard, wanted: Sequence[str], others: Sequence[str], setting: str) -> tuple[str, ...]:
    """Columns by name or pattern, each once, in the order of the patterns and then of the file.

    Raises:
        ConfigError: a name or pattern that no column has.
    """
    found: dict[str, None] = {}
    for name in wanted:
        if name in shard.kinds:
            found[name] = None
            continue
        several = [each for each in shard.kinds if fnmatchcase(each, name) and each not in others]
        if not several:
            required(shard, (name,), f"{setting} = ")
        found |= dict.fromkeys(several)
    return tuple(found)


def required(shard: Shard, names: Sequence[str], setting: str = "") -> None:
    """Refuse a file that lacks columns which the first training file has.

    Raises:
        ConfigError: names them.
    """
    if missing := [name for name in names if name and name not in shard.kinds]:
        near = get_close_matches(missing[0], list(shard.kinds), 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(
            f"{setting}{', '.join(map(repr, missing))}: no such column in {shard.what}{hint}; {shard.columns}; "
            "all files need the same columns"
        )


def upright(image: Any) -> Any:
    """A picture, loaded and turned as it is to be seen."""
    image.load()  # first: TIFF is turned by that and loses its mark
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    return image.transpose(getattr(extra("PIL.Image").Transpose, turn)) if turn else image


def decode(
    column: Sequence[Any], what: str, told: At = lambda done, what="": None, resize: tuple[int, int] | None = None
) -> Bytes:
    """Decode encoded images straight into one upright array [samples, height, width, channels].

    Args:
        column: encoded images, each with ``bytes`` or ``path``.
        what: which images, for error texts.
        told: takes how many are decoded.
        resize: height and width that all are brought to; None: as they are.

    Raises:
        ConfigError: an image that cannot be read, of another size, or of more than 8 bits.
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
                mode, wanted = image.mode, "L" if grey else "RGB"
                image = image if mode == wanted or mode in DEEP else image.convert(wanted)
                if resize is not None and mode not in DEEP:
                    image = image.resize((resize[1], resize[0]), pillow.Resampling.BILINEAR)
                size, pixels = image.size, np.asarray(image)
        except Exception as error:  # Pillow has a dozen kinds of errors for damaged files
            raise ConfigError(
                f"{name} cannot be read: {error}; expected PNG, JPEG or the like: mend the picture or take it away"
            ) from error
        if mode in DEEP:
            raise ConfigError(f"{name} has more than 8 bits a value (mode {mode}); convert the images first")
        if not out.size:
            out = np.empty((len(column), size[1], size[0], out.shape[3]), np.uint8)
        if size != (out.shape[2], out.shape[1]):
            raise ConfigError(
                f"{name} is {size[0]}x{size[1]} pixels, those before {out.shape[2]}x{out.shape[1]}; "
                "bring all to one size: data.transforms = [{resize = 32}]"
            )
        out[at] = pixels if not grey else pixels[:, :, None]
        at += 1
    return out


def labels(values: Values, classes: int, what: str) -> Labels:
    """Class numbers as int64.

    Args:
        values: one per sample.
        classes: number of classes that the file declares; 0 where it declares none.
        what: which file, for error texts.

    Raises:
        ConfigError: missing ones, no whole numbers, negative ones, or ones beyond the declared classes.
    """
    array = np.asarray(values)
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu" and array.size:
        whole = array == np.floor(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
        row = int((~whole).argmax())  # where some are missing, all are floats
        given = "missing" if array[row] is None or array[row] != array[row] else repr(array[row].item())
        raise ConfigError(f"{what}: the label of row {row} is {given}; expected a whole number for every row")
    least, most = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if least < 0 or most >= (classes or 1 << 63):
        raise ConfigError(
            f"{what}: labels run from {least} to {most}, expected 0 to "
            f"{classes or 'the number of classes'} - 1; use a labelled split"
        )
    return array.astype(np.int64)


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
