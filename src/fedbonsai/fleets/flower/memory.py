"""A device's memory in files: every slot is written whole, named by its content, and verified when it is read.

A request names the slot to start from, so that a replayed round, a late request, a restored backup or a damaged disk
can never lead to a wrong start: the slot is there as it was, or the device says that it forgot. Slots that are no
longer needed are removed when a newer round was accepted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from fedbonsai.core import Memory, SavedMemory
from fedbonsai.errors import BadMessage, ConfigError, Forgotten, Silent
from fedbonsai.fleets.envelope import Envelope
from fedbonsai.wire import OWN, decode, encode, message

RUNS = 4  # runs whose memories a device keeps; those that were used least recently go
STALE = 3600.0  # seconds after which a file that was never finished is removed
_RUN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SLOT = re.compile(r"(-?\d{1,9})\.(\d{1,9})\.(\d{1,9})\.([0-9a-f]{32})")


@message("flower/slot@1")
class Slot:
    """A memory: when it was made, and the digest of its content."""

    round: int
    attempt: int
    ask: int
    digest: str

    def __post_init__(self) -> None:
        """Refuse what no device ever named."""
        if not _SLOT.fullmatch(self.name):
            raise ValueError(f"slot {self.name[:80]!r}: expected round.attempt.ask.digest")

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.round}.{self.attempt}.{self.ask}.{self.digest}"

    def kept(self) -> Memory:
        """What a server keeps of it: plain values, so that a checkpoint can be read without Flower."""
        return {"slot": (self.round, self.attempt, self.ask, self.digest)}


def slot_of(kept: Memory) -> Slot | None:
    """The slot that a server kept, or none."""
    return Slot(*kept["slot"]) if "slot" in kept else None


class Lost(Forgotten):
    """The memory that a request starts from is not there."""


class Store:
    """Memories of one device, by run.

    Args:
        folder: only its owner may read it: a memory tells about the device's data.

    Raises:
        ConfigError: it cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._grown = True  # whether there may be more runs than are kept
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        except OSError as error:
            raise ConfigError(
                f"device memory {folder}: {error.strerror}; choose a folder that can be written"
            ) from None

    @property
    def bases(self) -> Path:
        """Where parameters lie that are not trained; beside the runs, which are removed one day."""
        return self.folder / ".bases"

    def load(self, run: str, slot: Slot | None) -> Memory:
        """The memory in a slot; the empty one for none.

        Raises:
            Lost: it is not there, or not as it was written.
        """
        if slot is None:
            return {}
        file = self._run(run) / slot.name
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise Lost(f"memory of round {slot.round} is not here ({error.strerror})") from None
        if digest(raw) != slot.digest:
            raise Lost(f"memory of round {slot.round} is damaged: {len(raw)} bytes with another digest")
        try:
            return dict(decode(raw, OWN).memory)
        except (BadMessage, AttributeError) as error:
            raise Lost(f"memory of round {slot.round} cannot be read: {error}") from None

    def save(self, head: Envelope, start: Slot | None, memory: Memory) -> Slot | None:
        """Write a memory before the reply is sent; nothing is written for an empty one that follows an empty one.

        Raises:
            Silent: the disk does not take it.
        """
        if not memory and start is None:
            return None
        raw = bytes(encode(SavedMemory(head.round, head.attempt, memory)))
        slot = Slot(head.round, head.attempt, head.ask, digest(raw))
        folder = self._run(head.run)
        try:
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
                self._grown = True
            _write(folder, slot.name, raw)
            os.utime(folder)
        except OSError as error:
            raise Silent(
                f"memory of {len(raw)} bytes cannot be written to {self.folder}: {error.strerror}; free some space"
            ) from None
        return slot

    def tidy(self, head: Envelope, start: Slot | None) -> None:
        """Remove what no request will name again: all that is older than the accepted memory, and old runs.

        What cannot be removed stays: another process of this device may tidy at the same time.
        """
        folder = self._run(head.run)
        with contextlib.suppress(OSError), os.scandir(folder) as files:
            for file in files:
                with contextlib.suppress(OSError):
                    if _past(file, head, start):
                        os.unlink(file)
        if self._grown:
            self._grown = False
            with contextlib.suppress(OSError):
                there = [run for run in self.folder.iterdir() if run.is_dir() and run != self.bases]
                runs = sorted(there, key=lambda run: run.stat().st_mtime)
                for run in runs[:-RUNS]:
                    if run != folder:
                        shutil.rmtree(run, ignore_errors=True)

    def _run(self, run: str) -> Path:
        if not _RUN.fullmatch(run):
            raise BadMessage(f"run {run[:80]!r}: expected letters, digits, - and _")
        return self.folder / run


def _past(file: os.DirEntry[str], head: Envelope, start: Slot | None) -> bool:
    """Whether no request will name a file again."""
    found = _SLOT.fullmatch(file.name)
    if found is None:
        return file.stat(follow_symlinks=False).st_mtime < time.time() - STALE
    round, attempt, ask = (int(part) for part in found.groups()[:3])
    older = round < head.base[0] or (round == head.base[0] and attempt != head.base[1])
    passed = start is not None and (round, attempt) == (start.round, start.attempt) and ask < start.ask
    return older or passed


def digest(raw: bytes) -> str:
    """Digest of a memory's bytes."""
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def _write(folder: Path, name: str, raw: bytes) -> None:
    """Write a file so that after a crash it is there whole or not at all."""
    handle, part = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        Path(part).replace(folder / name)
    except OSError:
        Path(part).unlink(missing_ok=True)
        raise
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
