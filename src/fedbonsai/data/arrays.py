"""Samples as they are stored, before any division, and the cache of what took long to read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data import cache
from fedbonsai.data.mapped import blocks

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]
NOBODY: NDArray[np.str_] = np.empty(0, np.str_)
NONE: NDArray[np.float64] = np.empty(0)


@dataclass(frozen=True, eq=False)
class Arrays:
    """A training set and a test set.

    ``x`` and ``test_x`` are [samples, ...], pictures of bytes [samples, height, width, channels] with values from 0 to
    ``top``; ``y`` and ``test_y`` are targets [samples, ...], which ``names`` name where they are classes (empty where files
    hold bare numbers); ``owners`` say whose each sample is (empty where that is not known).
    """

    x: NDArray[Any]
    y: NDArray[Any]
    test_x: NDArray[Any]
    test_y: NDArray[Any]
    names: tuple[str, ...]
    owners: NDArray[np.str_]
    fingerprint: str
    top: int = 255
    kind: str = "pictures"
    """`pictures`, `numbers` or `tokens`."""
    test_owners: NDArray[np.str_] = field(default_factory=NOBODY.copy)
    held_out: str = ""
    """What the test set is, where that was asked for: `later` samples."""
    units: NDArray[np.float64] = field(default_factory=NONE.copy)
    """What stored values are multiplied with, one for each of the last axis; empty: nothing."""
    reading: str = ""
    """How a device reads its own data alike (`Reading.text`); empty for pictures as they are."""
    vocabulary: int = 0
    """Number of tokens that inputs may have."""
    notes: tuple[str, ...] = ()
    """What must be known of how they were read."""


def fingerprint(x: NDArray[Any], y: NDArray[Any]) -> str:
    """SHA-256 of the training inputs and targets in their order: what a saved split refers to."""
    digest = hashlib.sha256(repr((x.shape, y.shape)).encode())
    for part in (x, y):
        for block in blocks(part):
            digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


def kept(path: Path) -> Arrays | None:
    """What `keep` wrote, or None where nothing is there that can be read."""
    found = cache.held(path, tuple(each.name for each in fields(Arrays)))
    if found is None:
        return None
    words: dict[str, Any] = {name: str(found.pop(name)) for name in ("fingerprint", "kind", "held_out", "reading")}
    lists: dict[str, Any] = {name: tuple(map(str, found.pop(name))) for name in ("names", "notes")}
    return Arrays(**found | {name: int(found[name]) for name in ("top", "vocabulary")}, **words, **lists)


def keep(arrays: Arrays, path: Path) -> None:
    """Write them into the cache."""
    cache.keep(path, {each.name: np.asarray(getattr(arrays, each.name)) for each in fields(Arrays)})
