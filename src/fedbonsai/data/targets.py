"""Targets as the columns hold them, without what is missing, as class numbers or as quantities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.classes import few, numbers, plain
from fedbonsai.data.columns import labels
from fedbonsai.data.kinds import Kind
from fedbonsai.data.tables import Table, missing
from fedbonsai.errors import ConfigError

Targets = NDArray[Any]  # [rows], or [rows, columns] of several columns


def stored(table: Table, names: Sequence[str]) -> Targets:
    """Values of the columns of targets; zeros where there are none.

    Raises:
        ConfigError: text among several columns.
    """
    found = [table.columns[name] for name in names]
    if words := [
        name for name, values in zip(names, found, strict=True) if isinstance(values, list) and len(found) > 1
    ]:
        raise ConfigError(
            f"{table.what}: {', '.join(words)}: text among several targets; expected numbers in all of data.y"
        )
    arrays = [values if isinstance(values, np.ndarray) else np.array(values, object) for values in found]
    return np.stack(arrays, 1) if len(arrays) > 1 else arrays[0] if arrays else np.zeros(len(table), np.int64)


def present(y: Targets, names: Sequence[str], drop: bool, what: str) -> NDArray[np.int64]:
    """Rows whose target is there.

    Raises:
        ConfigError: some are missing, and shall not be left out.
    """
    absent = missing(y if y.dtype.kind != "O" else y.tolist())
    if absent.any() and not drop:
        raise ConfigError(
            f"{what}: {int(absent.sum()):,} of {len(y):,} targets ({', '.join(names)}) are missing, first in row "
            f"{int(absent.argmax())}; drop these rows, or set data.drop_missing_targets = true"
        )
    return np.flatnonzero(~absent)


def whole(y: Targets, kinds: Sequence[Kind]) -> Targets:
    """Whole numbers as such: where one was missing, Arrow gave floats."""
    return y.astype(np.int64) if y.dtype.kind == "f" and kinds and all("int" in kind.words for kind in kinds) else y


def classes(y: Targets) -> tuple[str, ...]:
    """Names of classes of targets that are text, sorted."""
    return tuple(sorted({plain(str(value)) for value in y.tolist()}))


def numbered(y: Targets, meant: str, names: Sequence[str], what: str) -> Targets:
    """Class numbers and other whole numbers as int64, quantities as float32.

    Args:
        y: as they are stored.
        meant: `classes` or `numbers`; empty where that is not known yet.
        names: of the classes.
        what: samples they are of, for errors.

    Raises:
        ConfigError: no classes of those, or no finite numbers.
    """
    if y.dtype.kind in "OU":
        known = numbers(names)
        words = [plain(str(value)) for value in y.tolist()]
        if strange := sorted({word for word in words if word not in known}):
            raise ConfigError(
                f"{what} holds classes that the training files do not name: {few(strange)}; theirs are {few(names)}"
            )
        return np.asarray([known[word] for word in words], np.int64)
    if meant == "classes" and y.ndim == 1:
        return labels(y, len(names), what)
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise ConfigError(f"{what}: {int((~np.isfinite(y)).sum())} targets are infinite; drop these rows")
    return y.astype(np.int64 if y.dtype.kind in "iub" and meant != "numbers" else np.float32)
