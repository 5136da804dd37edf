"""Labelled images as they were stored: bytes, before any division or scaling, and the cache of decoded ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data import cache

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Images:
    """A training set and a test set, decoded.

    ``x`` and ``test_x`` are [samples, height, width, channels] with values from 0 to ``top``; ``y`` and ``test_y`` are
    class numbers, which ``names`` name (empty where the files hold bare numbers); ``owners`` says whose each training
    sample is (empty unless a column was asked for).
    """

    x: Bytes
    y: Labels
    test_x: Bytes
    test_y: Labels
    names: tuple[str, ...]
    owners: NDArray[np.str_]
    fingerprint: str
    top: int = 255


def fingerprint(x: Bytes, y: Labels) -> str:
    """SHA-256 of the training images and labels in their order: what a saved split refers to."""
    digest = hashlib.sha256(repr((x.shape, y.shape)).encode())
    digest.update(np.ascontiguousarray(x).data)
    digest.update(np.ascontiguousarray(y).data)
    return digest.hexdigest()


def kept(path: Path) -> Images | None:
    """What `keep` wrote, or None where nothing is there that can be read."""
    found = cache.held(path, tuple(field.name for field in fields(Images)))
    if found is None:
        return None
    names, mark, top = found.pop("names"), found.pop("fingerprint"), found.pop("top")
    return Images(**found, names=tuple(str(name) for name in names), fingerprint=str(mark), top=int(top))


def keep(images: Images, path: Path) -> None:
    """Write decoded images into the cache."""
    cache.keep(path, {field.name: np.asarray(getattr(images, field.name)) for field in fields(Images)})
