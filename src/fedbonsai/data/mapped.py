"""Arrays that lie in files and are mapped: what nobody looks at takes no memory, and nothing makes a second copy in it.

Who gathers rows of a mapped array gets another mapped one, in a file of the cache folder that goes away with the process.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedbonsai.places import caches

SMALL = 1 << 20  # bytes of an array that is read as a whole
SPOOL = 1 << 26  # bytes of gathered rows for which a file is made
BLOCK = 1 << 24  # bytes that are looked at in one step
AROUND = 1 << 21  # bytes that a look at one of them may map: Linux keeps files in pieces of up to so many

Array = NDArray[Any]


def opened(file: Path) -> Array:
    """An array of a `.npy` file, mapped where it is not small. It may be written into: the file stays as it is.

    Raises:
        OSError, ValueError: the file holds none.
    """
    return np.load(file, mmap_mode="c" if file.stat().st_size > SMALL else None, allow_pickle=False)


def members(file: Path) -> dict[str, Array]:
    """All arrays of a `.npz` file; those that are large and not compressed are mapped, after a look at their checksum.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: the file is damaged, or holds what is no array.
    """
    found: dict[str, Array] = {}
    with file.open("rb") as raw, np.load(raw, allow_pickle=False) as held, zipfile.ZipFile(raw) as archive:
        places = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        for name in cast("Sequence[str]", held.files):
            entry = places[name]
            large = entry.compress_type == zipfile.ZIP_STORED and entry.file_size > SMALL
            found[str(name)] = _member(file, raw, entry) if large else held[name]
    return found


def _member(file: Path, raw: Any, entry: zipfile.ZipInfo) -> Array:
    raw.seek(entry.header_offset + 26)
    lengths = np.frombuffer(raw.read(4), "<u2")
    begin = raw.seek(entry.header_offset + 30 + int(lengths.sum()))
    version = np.lib.format.read_magic(raw)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(raw)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    whole = np.memmap(file, np.uint8, "r", begin, (entry.file_size,))
    sum_ = 0
    for block in blocks(whole):
        sum_ = zlib.crc32(block.data, sum_)
    if sum_ != entry.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {entry.filename!r}")
    return np.memmap(file, dtype, "c", raw.tell(), shape, "F" if fortran else "C")


def is_mapped(x: object) -> bool:
    """Whether values lie in a file."""
    return _map_of(x) is not None


def _map_of(x: object) -> mmap.mmap | None:
    while isinstance(x, np.ndarray):
        if (found := getattr(x, "_mmap", None)) is not None:
            return found
        x = x.base
    return None


def release(x: object) -> None:
    """Let the pages of a mapped array go; they are read again when somebody looks at them."""
    found = _map_of(x)
    if found is not None and hasattr(mmap, "MADV_DONTNEED"):
        found.madvise(mmap.MADV_DONTNEED)


def blocks(x: Array) -> Iterator[Array]:
    """Consecutive rows of an array, a few MB at a time."""
    rows = max(1, BLOCK // max(1, x[:1].nbytes))
    for begin in range(0, len(x), rows):
        yield x[begin : begin + rows]
        release(x)


def gathered(x: Array, rows: NDArray[np.int64], axes: Sequence[int] | None = None) -> Array:
    """Rows of an array in an order, in memory or, of a large mapped array, in a file.

    Args:
        x: [samples, ...].
        rows: numbers of samples.
        axes: order of the axes of what is given back, the samples first; as they are where not given.
    """
    turned = tuple(axes or range(x.ndim))
    out = _room((len(rows), *(x.shape[axis] for axis in turned[1:])), x.dtype, is_mapped(x))
    # a look at one page of a file brings those around it into memory, however small a row is
    around = AROUND if is_mapped(x) and x.nbytes > 4 * BLOCK else 1
    step = max(1, 4 * BLOCK // max(around, x[:1].nbytes))
    for begin in range(0, len(rows), step):
        out[begin : begin + step] = x[rows[begin : begin + step]].transpose(turned)
        release(x)
        release(out)
    return out


def joined(parts: Sequence[Array]) -> Array:
    """Arrays one after another, in memory or, where one of them is mapped and all are large, in a file."""
    if len(parts) == 1:
        return parts[0]
    if not any(map(is_mapped, parts)):
        return np.concatenate(parts)
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        return np.concatenate(parts)  # says what does not fit
    out = _room((sum(map(len, parts)), *shapes.pop()), np.result_type(*parts), True)
    begin = 0
    for part in parts:
        for block in blocks(part):
            out[begin : begin + len(block)] = block
            begin += len(block)
            release(out)
    return out


def _room(shape: tuple[int, ...], dtype: np.dtype[Any], mapped: bool) -> Array:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not mapped or size < SPOOL or not hasattr(os, "posix_fallocate"):
        return np.empty(shape, dtype)
    try:
        caches().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=caches()) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is told now, not by a signal later
            return np.memmap(file, dtype, "r+", 0, shape)
    except OSError:
        return np.empty(shape, dtype)
