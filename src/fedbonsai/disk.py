"""What a disk refuses, in words: no room, no right to write, a file in the way."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fedbonsai.errors import ConfigError, DiskFull, Unwritable

LITTLE = 1 << 20  # bytes; with less a disk is as good as full
ADVICE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "make room",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOTDIR: "a file is in the way; choose another folder",
    errno.EEXIST: "a file is in the way; choose another folder",
    errno.EISDIR: "a folder is in the way; choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "the folder is gone, or was never there",
    errno.ELOOP: "a link leads to itself",
    errno.EIO: "the disk has a fault",
    errno.ENODEV: "the disk is gone",
    errno.ESTALE: "the disk is gone",
}


def refused(error: OSError, path: object = None) -> str:
    """A line about what a disk refused; empty where the error is none of a disk's."""
    if error.errno not in ADVICE:
        return ""
    what = path or error.filename or "what was to be written"
    return f"{what}: {error.strerror}; {ADVICE[error.errno]}"


def in_words(error: BaseException) -> BaseException:
    """The error itself, or where a disk refused without a word of ours, the `Unwritable` that says so in a line."""
    if not isinstance(error, OSError) or not (line := refused(error)):
        return error
    return _kind(error)(line)


def no_room(path: Path) -> str:
    """A line where the disk of a folder has no room; empty where it has some, or is not known."""
    try:
        free = shutil.disk_usage(path).free
    except OSError:
        return ""
    return f"the disk of {path} is full; {ADVICE[errno.ENOSPC]}" if free < LITTLE else ""


def room_for(target: Path) -> None:
    """Make the folder of a file that ``--out`` names.

    Raises:
        ConfigError: it is a folder, or no file can be there.
    """
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; --out names a file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error}") from None


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Say in one line what the disk refuses.

    Raises:
        Unwritable: it refused; `DiskFull`: because there is no room.
    """
    try:
        yield
    except OSError as error:
        raise _kind(error)(refused(error, path) or f"{path} cannot be written: {error.strerror or error}") from None
    except UnicodeEncodeError:
        raise Unwritable(
            f"{str(path)!r} cannot be the name of a file under this locale; set LC_ALL=C.UTF-8, or choose another --name"
        ) from None


def _kind(error: OSError) -> type[Unwritable]:
    return DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else Unwritable
