"""Rows gathered to windows: of one engine or station at a time, in order, never across two of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.config import SeriesConfig
from fedbonsai.errors import ConfigError

Rows = NDArray[np.int64]


def ordered(keys: NDArray[np.str_], by: Sequence[NDArray[np.generic]]) -> list[Rows]:
    """Rows of each key, in the order of the columns ``by``, the first of which counts most, and then of the files."""
    rows = np.lexsort([*reversed(by), keys]) if len(keys) else np.empty(0, np.int64)
    begins = np.flatnonzero(np.r_[True, keys[rows][1:] != keys[rows][:-1]])
    return np.split(rows, begins[1:])


def windows(parts: Sequence[Rows], series: SeriesConfig, scored: NDArray[np.bool_] | None) -> tuple[Rows, Rows]:
    """Rows of each window [windows, length], and the row of its target.

    Args:
        parts: rows of each key, in order (`ordered`).
        series: lengths.
        scored: rows after which a window ends; None: every so many rows as ``series.stride`` says.

    Raises:
        ConfigError: a key has fewer rows than a window, and that shall be refused.
    """
    back = np.arange(1 - series.length, 1)
    found: list[Rows] = []
    targets: list[Rows] = []
    short = [len(rows) for rows in parts if len(rows) < series.length + series.horizon]
    if short and series.short == "refuse":
        raise ConfigError(
            f"{len(short)} of {len(parts)} series have fewer rows than a window and its horizon, "
            f"{series.length + series.horizon} ({min(short)} the shortest); lower data.series.length, or set "
            "data.series.short = 'pad' or 'drop'"
        )
    for rows in parts:
        last = len(rows) - series.horizon
        first = min(series.length, last) - 1 if series.short == "pad" else series.length - 1
        ends = np.arange(max(first, 0), last, series.stride)
        if scored is not None:
            ends = np.flatnonzero(scored[rows][:last])
            ends = ends if series.short == "pad" else ends[ends >= series.length - 1]
        found.append(rows[np.maximum(ends[:, None] + back, 0)])
        targets.append(rows[ends + series.horizon])
    return np.concatenate(found), np.concatenate(targets)
