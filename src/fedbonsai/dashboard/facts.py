"""What is known of a federation, from the files that its processes write: devices, runs, the server.

Nothing is asked of anybody here, and nothing is made up: what no file says is None or empty.
"""

from __future__ import annotations

import shutil
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from fedbonsai.dashboard.runs import RunFacts, run_facts
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower.certificates import days_left
from fedbonsai.fleets.flower.federation import Federation
from fedbonsai.fleets.flower.logbook import Entry, entries_of, logbook_of

T = TypeVar("T")

ONLINE = (
    60.0  # seconds since it was last seen; a device asks for work every few seconds, and says that it lives every 30
)
FRESH = 1.0  # seconds for which a picture is good
RUNS = 30  # the newest, that are shown


@dataclass(frozen=True)
class DeviceFacts:
    """A device. Times are seconds since 1970."""

    name: str
    enrolled: bool
    """Whether its key was let in."""
    waits: bool
    """Whether its key lies in the folder and was not let in yet."""
    state: str
    """``online``, ``offline``, ``never seen``, ``not let in`` while its key waits, ``out`` once that is gone; ``not known``
    while no server runs."""
    last_seen: float | None
    version: str
    machine: str
    """Its architecture."""
    fits: bool | None
    """Whether it could take part in the newest run that it met."""
    refused: str
    """Why not."""
    train: int | None
    valid: int | None
    rounds: int | None
    """Rounds of which an answer came, over all runs; None where no run met it."""
    silent: int | None
    """Questions that it did not answer."""
    bytes_down: int | None
    bytes_up: int | None
    seconds: float | None
    """From request to answer, as the server sees it: the mean over all answers."""
    error: str
    """Why it was silent last."""
    error_at: float | None
    error_run: str
    answered_at: float | None
    """When it answered last."""


@dataclass(frozen=True)
class ServerFacts:
    """The server itself."""

    folder: str
    running: bool
    port: int | None
    certificate_days: float | None
    """Days until its certificate ends."""
    disk_free: int | None
    """Bytes."""
    disk_total: int | None


@dataclass(frozen=True)
class Picture:
    """All of it at one time."""

    at: float
    server: ServerFacts
    devices: tuple[DeviceFacts, ...]
    runs: tuple[RunFacts, ...]
    """The newest first."""
    older: int
    """Runs beside them."""


class Facts:
    """Looks at the files of a federation, and keeps what has not changed.

    Args:
        federation: whose.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._kept: dict[Path, tuple[object, Any]] = {}
        self._picture: Picture | None = None
        self._lock = threading.Lock()

    def picture(self, now: float | None = None) -> Picture:
        """What is known now; whoever asks within a second gets the same.

        Raises:
            ConfigError: the file that says who was let in is damaged.
        """
        with self._lock:
            at = time.time() if now is None else now
            if now is not None or self._picture is None or not 0 <= at - self._picture.at < FRESH:
                self._picture = self._look(at)
            return self._picture

    def _look(self, now: float) -> Picture:
        jobs = sorted(self._federation.jobs.glob("*.toml"), key=_changed, reverse=True)
        runs = tuple(run_facts(job, self._file(job, _table), self._once) for job in jobs[:RUNS])
        books = [(name_of(job), self._file(logbook_of(job), entries_of)) for job in jobs]
        try:
            said, running = self._federation.running(), True
        except ConfigError:
            said, running = dict[str, Any](), False
        devices = self._devices(now, running, said.get("waiting"), books)
        return Picture(now, self._server(running, said), devices, runs, max(0, len(jobs) - RUNS))

    def _server(self, running: bool, said: Mapping[str, Any]) -> ServerFacts:
        folder = self._federation.folder
        try:
            days = days_left(self._federation.certificate)
        except ConfigError:
            days = None
        try:
            disk = shutil.disk_usage(folder)
        except OSError:
            disk = None
        free, total = (disk.free, disk.total) if disk else (None, None)
        return ServerFacts(str(folder), running, said.get("port"), days, free, total)

    def _devices(
        self, now: float, running: bool, why: Mapping[str, str] | None, books: Sequence[tuple[str, Mapping[str, Entry]]]
    ) -> tuple[DeviceFacts, ...]:
        enrolled, seen = self._federation.registered(), self._federation.last_seen()
        waiting = self._federation.waiting() | dict(why or {})
        waiting = {name: text for name, text in waiting.items() if name not in enrolled}
        by_name: dict[str, list[tuple[str, Entry]]] = {name: [] for name in (*enrolled, *waiting)}
        for run, entries in books:
            for name, entry in entries.items():
                by_name.setdefault(name, []).append((run, entry))

        def state(name: str) -> str:
            if name not in enrolled:
                return "not let in" if name in waiting else "out"
            if not running:
                return "not known"
            if name not in seen:
                return "never seen"
            return "online" if now - seen[name] < ONLINE else "offline"

        return tuple(
            _device(name, name in enrolled, state(name), seen.get(name), waiting.get(name), by_name[name])
            for name in sorted(by_name)
        )

    def _once(self, file: Path, made: Callable[[], T]) -> T:
        """What is made of a file, anew only where the file changed."""
        try:
            told = file.stat()
        except OSError:
            mark = None
        else:
            mark = (told.st_mtime_ns, told.st_size, told.st_ino)
        held = self._kept.get(file)
        if held is None or held[0] != mark:
            held = self._kept[file] = (mark, made())
        return cast("T", held[1])

    def _file(self, file: Path, read: Callable[[Path], T]) -> T:
        return self._once(file, lambda: read(file))


def _device(
    name: str, enrolled: bool, state: str, seen: float | None, why: str | None, books: list[tuple[str, Entry]]
) -> DeviceFacts:
    entries = [entry for _, entry in books]
    last = max(entries, key=lambda entry: entry.met, default=Entry())
    wrong, run = max(((entry, run) for run, entry in books), key=lambda each: each[0].error_at, default=(Entry(), ""))
    refused = why or last.refused
    answers = _sum(entry.answers for entry in entries)
    return DeviceFacts(
        name,
        enrolled,
        why is not None,
        state,
        seen,
        last.version,
        last.machine,
        False if refused else True if last.met else None,
        refused,
        last.train,
        last.valid,
        _sum(entry.rounds for entry in entries),
        _sum(entry.silent for entry in entries),
        _sum(entry.down for entry in entries),
        _sum(entry.up for entry in entries),
        sum(entry.seconds for entry in entries) / answers if answers else None,
        wrong.error,
        wrong.error_at or None,
        run if wrong.error else "",
        max((entry.answered_at for entry in entries), default=0.0) or None,
    )


def _sum(values: Iterable[int]) -> int | None:
    held = list(values)
    return sum(held) if held else None


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _table(job: Path) -> dict[str, Any]:
    """What a job says; nothing where it cannot be read."""
    try:
        return tomllib.loads(job.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def name_of(job: Path) -> str:
    """Name of a run by its job, whose file ends in the digest of where the run's folder is."""
    return job.stem.rpartition("-")[0] or job.stem
