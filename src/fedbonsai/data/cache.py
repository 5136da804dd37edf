"""What took long to read or to draw, kept as arrays in files: in ``FEDBONSAI_CACHE``, or ``~/.cache/fedbonsai``."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.mapped import members
from fedbonsai.places import caches

Arrays = Mapping[str, NDArray[Any]]


def file_of(kind: str, *key: object) -> Path:
    """Where the arrays of a key are kept; ``kind`` begins the name."""
    return caches() / f"{kind}-{hashlib.sha256(repr(('v1', *key)).encode()).hexdigest()[:24]}.npz"


def version(package: str) -> str:
    """Of an installed package, as a part of a key: another one may read or draw differently; empty where it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def held(path: Path, names: tuple[str, ...]) -> dict[str, Any] | None:
    """What `keep` wrote, large arrays mapped, or None where nothing is there that can be read."""
    try:
        found = members(path)
        return {name: found[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # never written, or damaged: it is made again and replaced


def keep(path: Path, arrays: Arrays) -> None:
    """Write arrays, whole or not at all; a folder that cannot be written is no fault, only slower next time."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        temporary.replace(path)
    except OSError:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
