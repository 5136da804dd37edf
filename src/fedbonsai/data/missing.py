"""Values that are missing: refused, or filled in by name with what the training set says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.classes import few
from fedbonsai.data.kinds import Values
from fedbonsai.data.tables import missing
from fedbonsai.errors import ConfigError

IMPUTED = ("mean", "median", "zero", "last")


def refuse(columns: Mapping[str, Values], what: str) -> None:
    """Refuse missing values.

    Raises:
        ConfigError: says how many are missing in which columns.
    """
    counts = {name: int(missing(values).sum()) for name, values in columns.items()}
    if found := {name: count for name, count in counts.items() if count}:
        told = few([f"{count:,} in {name!r}" for name, count in found.items()])
        raise ConfigError(
            f"{what}: values are missing (null or NaN): {told}, of {len(next(iter(columns.values()))):,} rows; drop these rows, "
            f"or set data.impute to one of {', '.join(IMPUTED)}"
        )


def fills(columns: Mapping[str, Values], how: str) -> dict[str, float]:
    """What missing numbers of each column become: of the training set.

    Raises:
        ConfigError: a column has none.
    """
    found: dict[str, float] = {}
    for name, values in columns.items():
        if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "biuf":
            continue
        known = values[~missing(values)].astype(np.float64)
        if not known.size and how != "zero":
            raise ConfigError(
                f"data.impute = {how!r}: all values of {name!r} are missing; leave this column out of data.x"
            )
        found[name] = 0.0 if how == "zero" else float(np.mean(known) if how == "mean" else np.median(known))
    return found


def filled(
    columns: Mapping[str, Values], fill: Mapping[str, float], how: str, parts: Sequence[NDArray[np.int64]]
) -> dict[str, Values]:
    """Columns with missing numbers filled in.

    Args:
        columns: by name.
        fill: what is put in by `fills`, where nothing comes before it in ``last``.
        how: one of `IMPUTED`.
        parts: rows of each series in order, for ``last``.
    """
    found = dict(columns)
    for name, value in fill.items():
        values = columns[name]
        if not isinstance(values, np.ndarray) or not (absent := missing(values)).any():
            continue
        if how == "last":
            values = values.copy()
            for rows in parts:
                at = np.maximum.accumulate(np.where(absent[rows], -1, np.arange(len(rows))))
                values[rows] = np.where(at < 0, value, values[rows][at])
        else:
            values = np.where(absent, np.asarray(value, values.dtype), values)
        found[name] = values
    return found
