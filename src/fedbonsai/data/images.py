"""Labelled images as they were stored: bytes, before any division or scaling, and the cache of decoded ones."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Images:
    """A training set and a test set, decoded.

    ``x`` and ``test_x`` are [samples, height, width, channels] with values from 0 to ``top``; ``y`` and ``test_y`` are
    class numbers; ``owners`` says whose each training sample is (empty unless a column was asked for).
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


def cache_file(*key: object) -> Path:
    """Where decoded images of a key are kept: ``FEDBONSAI_CACHE``, or ``~/.cache/fedbonsai``."""
    folder = os.environ.get("FEDBONSAI_CACHE") or Path.home() / ".cache" / "fedbonsai"
    return Path(folder) / f"images-{hashlib.sha256(repr(('v1', *key)).encode()).hexdigest()[:24]}.npz"


def cached(path: Path) -> Images | None:
    """What `keep` wrote, or None where nothing is there that can be read."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # numpy leaks a damaged file's handle
            held: dict[str, Any] = {field.name: file[field.name] for field in fields(Images)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # never written, or damaged: it is made again and replaced
    names, mark, top = held.pop("names"), held.pop("fingerprint"), held.pop("top")
    return Images(**held, names=tuple(str(name) for name in names), fingerprint=str(mark), top=int(top))


def keep(images: Images, path: Path) -> None:
    """Write decoded images, whole or not at all; a folder that cannot be written is no fault, only slower next time."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            held: dict[str, Any] = {field.name: np.asarray(getattr(images, field.name)) for field in fields(Images)}
            np.savez(file, **held)
        temporary.replace(path)
    except OSError:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
