"""One writer: a file that one process holds until it lets go or ends in any way, `kill -9` too.

The kernel keeps the lock (``flock``), so nothing is left behind that somebody must delete. The file names the process
for people; where a file system has no locks, it is what decides.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PROBE = 0.5  # seconds in which who only asks, as `holder` does, has long let go again


@dataclass(frozen=True)
class Lock:
    """A file that this process holds until `close`."""

    file: Path
    handle: IO[bytes]

    def close(self) -> None:
        """Let go, and leave no file."""
        if self.handle.closed:
            return
        if not self.lost():
            with contextlib.suppress(OSError):
                self.file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            fcntl.flock(self.handle, fcntl.LOCK_UN)  # a child that was forked meanwhile has the handle too
        self.handle.close()

    def lost(self) -> bool:
        """Whether the file was deleted or replaced, so that another process could hold what lies there now."""
        return not _same(self.file, self.handle)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def hold(file: Path) -> Lock | None:
    """Hold a file for this process; nothing where another one does.

    Raises:
        OSError: the file cannot be made.
    """
    until = time.monotonic() + PROBE
    while True:
        handle = file.open("a+b", buffering=0)  # what a full disk refuses shall not come again when it is closed
        try:
            free = _locked(handle, fcntl.LOCK_EX)
            if free and _same(file, handle):
                return _signed(file, handle)
        except BaseException:
            handle.close()
            raise
        handle.close()
        if not free:
            if time.monotonic() > until:
                return None
            time.sleep(0.01)


def holder(file: Path) -> str:
    """Who holds a file, such as ``process 4711 on pi-01``; empty where nobody does."""
    try:
        with file.open("rb") as handle:
            if _locked(handle, fcntl.LOCK_SH):
                return ""
            handle.seek(0)
            said = _said(handle)
    except OSError:
        return ""
    return f"process {said.get('process', '?')} on {said.get('host', 'a machine that it does not name')}"


def _locked(handle: IO[bytes], how: int) -> bool:
    """Whether this handle has the lock now."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here: whether the process that signed is alive
        handle.seek(0)
        return not _alive(_said(handle))
    return True


def _alive(said: dict[str, Any]) -> bool:
    if said.get("host") != socket.gethostname():
        return bool(said)  # nobody here can tell
    try:
        os.kill(int(said["process"]), 0)
    except (ProcessLookupError, ValueError, KeyError):
        return False
    except PermissionError:
        return True
    return int(said["process"]) != os.getpid()


def _said(handle: IO[bytes]) -> dict[str, Any]:
    try:
        return dict(json.loads(handle.read()))
    except (ValueError, TypeError):
        return {}  # being written, or on a disk that is full


def _signed(file: Path, handle: IO[bytes]) -> Lock:
    with contextlib.suppress(OSError):  # a full disk: the lock holds even so
        handle.truncate(0)
        handle.write(json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
        handle.flush()
    return Lock(file, handle)


def _same(file: Path, handle: IO[bytes]) -> bool:
    try:
        there, ours = file.stat(), os.fstat(handle.fileno())
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
