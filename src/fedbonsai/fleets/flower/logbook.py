"""What a run's process learns of its devices, in one small file beside the job, for the operator's page.

The file is replaced at the end of each round and is bounded: an entry for each device, texts cut. It is no part of the
run: where it cannot be written the round goes on, and a run that is resumed counts on from what it finds.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from fedbonsai.core import Answer, Scope, Silence
from fedbonsai.fleets.flower.names import plain

R = TypeVar("R")

TEXT = 300  # characters of what a device said that are kept
MOST = 4096  # entries; a federation has fewer devices

log = logging.getLogger("fedbonsai")


@dataclass
class Entry:
    """A device in one run. Times are seconds since 1970; zero, empty and None mean that it is not known."""

    met: float = 0.0
    """When it last said who it is."""
    version: str = ""
    machine: str = ""
    train: int | None = None
    """Samples to learn from, in the form that the run asks for."""
    valid: int | None = None
    refused: str = ""
    """Why it cannot take part."""
    rounds: int = 0
    """Rounds of which an answer came."""
    last_round: int = -1
    """The last of them, from 0."""
    answers: int = 0
    seconds: float = 0.0
    """From request to answer, as the server saw it; the sum over all answers."""
    down: int = 0
    """Encoded bytes sent to it."""
    up: int = 0
    """Encoded bytes that came from it."""
    silent: int = 0
    """Questions that it did not answer."""
    error: str = ""
    """Why it was silent last."""
    error_at: float = 0.0
    answered_at: float = 0.0


class Logbook:
    """Entries of one run.

    Args:
        file: where they are kept; without one they are only counted.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self.entries: dict[str, Entry] = entries_of(file) if file else {}
        self._mute = False

    def met(self, device: str, version: str, machine: str, train: int, valid: int) -> None:
        """A device said who it is."""
        entry = self._entry(device)
        entry.met, entry.version, entry.machine = time.time(), _short(version), _short(machine)
        entry.train, entry.valid, entry.refused = train, valid, ""

    def refused(self, device: str, why: str) -> None:
        """A device cannot take part."""
        self._entry(device).refused = _short(why)

    def heard(
        self, items: Iterator[Answer[R] | Silence], scope: Scope | None, took: Mapping[str, float]
    ) -> Iterator[Answer[R] | Silence]:
        """Answers as they pass.

        Args:
            items: answers and silences.
            scope: the round in which they are taken.
            took: seconds of each device's last answer.
        """
        for item in items:
            entry, now = self._entry(item.device.id), time.time()
            entry.down, entry.up = entry.down + item.down, entry.up + item.up
            if isinstance(item, Silence):
                entry.silent, entry.error, entry.error_at = entry.silent + 1, _short(item.reason), now
            else:
                entry.answers, entry.answered_at = entry.answers + 1, now
                entry.seconds += took.get(item.device.id, 0.0)
                if scope is not None and scope.round > entry.last_round:  # a round that is replayed counts once
                    entry.rounds, entry.last_round = entry.rounds + 1, scope.round
            yield item

    def write(self) -> None:
        """Replace the file. What a disk refuses is said once, and nothing else: the run does not need it."""
        if self._file is None:
            return
        fresh = self._file.with_name(self._file.name + ".new")
        try:
            fresh.write_text(json.dumps({id: asdict(entry) for id, entry in self.entries.items()}), encoding="utf-8")
            fresh.replace(self._file)
        except OSError as error:
            if not self._mute:
                log.warning("%s cannot be written (%s): the operator's page will lack this run", self._file, error)
            self._mute = True

    def _entry(self, device: str) -> Entry:
        device = _short(device)
        if device not in self.entries and len(self.entries) >= MOST:
            return Entry()  # counted nowhere
        return self.entries.setdefault(device, Entry())


def logbook_of(job: Path) -> Path:
    """Where the logbook of a job is."""
    return job.with_suffix(".devices.json")


def entries_of(file: Path) -> dict[str, Entry]:
    """Entries of a logbook's file by device; none where it is not there or damaged."""
    names = [field.name for field in fields(Entry)]
    try:
        held = cast("dict[str, dict[str, Any]]", json.loads(file.read_text(encoding="utf-8")))
        return {id: Entry(**{name: said[name] for name in names if name in said}) for id, said in held.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _short(text: str) -> str:
    return plain(text)[:TEXT]
