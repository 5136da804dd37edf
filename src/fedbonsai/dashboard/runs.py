"""What is known of a run on devices: from its job in the federation's folder, and from the run's own folder as it grows."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower.names import plain
from fedbonsai.objectives import measure_named
from fedbonsai.runs.flower import result_of, told_of
from fedbonsai.runs.folder import Folder
from fedbonsai.runs.submit import STARTS
from fedbonsai.runs.trouble import fruitless, of_round

T = TypeVar("T")
Once = Callable[[Path, Callable[[], T]], T]

POINTS = 200  # of a curve


@dataclass(frozen=True)
class Curve:
    """A column of a run's metrics: points (round from 1, value)."""

    name: str
    better: str
    """``higher`` or ``lower``."""
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class RunFacts:
    """A run."""

    name: str
    folder: str
    method: str
    status: str
    """``running``, ``finished``, ``failed``, ``died``, ``interrupted``, ``starting`` before its first file is there
    (it waits for devices), or ``not known``."""
    reason: str
    """Why it failed."""
    doing: str
    """What takes time just now."""
    changed: float | None
    """When its folder was last written to, in seconds since 1970."""
    disk_free: int | None
    """Bytes on the disk of its folder, while it goes on."""
    round: int
    """Rounds that are over."""
    rounds: int | None
    measure: str
    """The measure that decides, in words."""
    score: float | None
    """Its value, on the server's test set, in the last round that was judged."""
    best: float | None
    bytes_down: int
    bytes_up: int
    seconds: float | None
    """A round takes, by the mean of the last five."""
    answered: int | None
    """Devices whose answer the last round used."""
    silent: int
    """Devices that were silent in the last round."""
    fruitless: int
    """Rounds that brought no update."""
    trouble: str
    """What there is to tell of the last round."""
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Rows:
    """What the metrics' file holds, as far as it is shown."""

    rounds: int = 0
    last: Mapping[str, Any] | None = None
    scores: tuple[tuple[int, float], ...] = ()
    losses: tuple[tuple[int, float], ...] = ()
    fruitless: int = 0
    seconds: float | None = None
    fault: str = ""


def run_facts(job: Path, told: Mapping[str, Any], once: Once[Rows]) -> RunFacts:
    """Facts of a run.

    Args:
        job: its file in the federation's folder.
        told: what that says.
        once: gives what was made of a file before, where the file is the same.
    """
    folder = Folder(Path(str(told.get("folder", job.with_suffix("")))))
    config = told.get("config", {})
    status, reason, metric = _status(job, folder, bool(told))
    measure = measure_named(metric)
    rows = once(folder.metrics, lambda: read(folder, metric))
    last = rows.last or {}
    scores = [value for _, value in rows.scores]
    curves = [Curve(measure.words, measure.better, thinned(rows.scores))]
    if metric != "loss":
        curves.append(Curve("loss", "lower", thinned(rows.losses)))
    return RunFacts(
        plain(folder.path.name),
        str(folder.path),
        plain(str(config.get("method", {}).get("name", ""))),
        status,
        plain(reason or rows.fault),
        plain(told_of(job)) if status in ("running", "starting") else "",
        _changed(folder),
        _free(folder) if status == "running" else None,
        rows.rounds,
        int(config["rounds"]) if "rounds" in config else None,
        measure.words,
        scores[-1] if scores else None,
        measure.best(scores) if scores else None,
        int(last.get("total_bytes_down", 0)),
        int(last.get("total_bytes_up", 0)),
        rows.seconds,
        last.get("answered"),
        int(last.get("silent", 0)),
        rows.fruitless,
        plain(of_round(last)) if last else "",
        tuple(curve for curve in curves if len(curve.points) > 1),
    )


def _status(job: Path, folder: Folder, known: bool) -> tuple[str, str, str]:
    """Status, reason, and the name of the measure that decides."""
    end: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError):  # it has not ended, or the end is just being written
        end = dict(json.loads(result_of(job).read_text(encoding="utf-8")))
    try:
        facts = folder.facts()
    except ConfigError as error:
        if end.get("status") == "failed":
            return "failed", str(end.get("reason", "")), "accuracy"
        if known and not folder.info.exists() and not end:
            went = "" if _starts(job) else "its process ended before the first round"
            return "died" if went else "starting", went, "accuracy"
        return "not known", str(error), "accuracy"
    status, reason = str(facts["status"]), str(facts.get("reason", ""))
    if end.get("status") == "failed" and status in ("died", "finished"):
        status, reason = "failed", str(end.get("reason", ""))
    return status, reason if status in ("failed", "died") else "", str(facts.get("metric", "accuracy"))


def _changed(folder: Folder) -> float | None:
    times = [file.stat().st_mtime for file in (folder.info, folder.metrics) if file.exists()]
    return max(times, default=None)


def _free(folder: Folder) -> int | None:
    try:
        return shutil.disk_usage(folder.path).free
    except OSError:
        return None


def _starts(job: Path) -> bool:
    """Whether the process of a job runs, or was asked to start a moment ago."""
    if job.with_suffix(".pid").exists():
        return True
    try:
        return time.time() - job.stat().st_mtime < STARTS
    except OSError:
        return False


def read(folder: Folder, metric: str) -> Rows:
    """The metrics' file of a run."""
    try:
        rows = folder.rows()
    except ConfigError as error:
        return Rows(fault=str(error))
    if not rows:
        return Rows()
    late = [float(row["seconds"]) for row in rows[-5:] if "seconds" in row]
    return Rows(
        len(rows),
        rows[-1],
        _column(rows, metric),
        _column(rows, "loss"),
        sum(map(fruitless, rows)),
        sum(late) / len(late) if late else None,
    )


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[tuple[int, float], ...]:
    points = ((int(row["round"]) + 1, float(row[name])) for row in rows if row.get(name) is not None)
    return tuple((round, value) for round, value in points if isfinite(value))


def thinned(points: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """At most so many of the points as are drawn, the last among them."""
    step = max(1, -(-len(points) // POINTS))
    return tuple(points[::-step][::-1])
