"""Hand a run to the server of a federation, and follow it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from fedbonsai.disk import no_room, writing
from fedbonsai.errors import ConfigError, FedbonsaiError, NothingLearned, TaskFailed, Unanswered
from fedbonsai.lock import Lock, hold
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.flower import refuse, result_of, telling_of, told_of
from fedbonsai.runs.folder import Folder, write
from fedbonsai.runs.run import Run, load
from fedbonsai.runs.structure import unstructure
from fedbonsai.telling import At, doing

if TYPE_CHECKING:
    from fedbonsai.fleets.flower.federation import Federation

LOOK = 0.5  # seconds between looks at the run's folder
ASK = 20.0  # seconds between questions whether Flower still runs it
STARTS = 60.0  # seconds in which Flower starts the app of a run
ENDED = "finished"
LINK = "fedbonsai"  # name of the connection in Flower's configuration

Tell = Callable[[Mapping[str, Any]], None]


def submit(config: RunConfig, folder: Path, resume: bool, tell: Tell | None = None) -> Run:
    """Run a configuration on the devices of a federation, in this folder, and wait for its end.

    Args:
        config: what to run.
        folder: of the run.
        resume: whether it goes on with what is there.
        tell: called with each new line of the metrics.

    Raises:
        ConfigError: no server runs, or the run failed; the text is that of the failure.
        Unanswered: too few devices answered, or nothing was learned.
        TaskFailed: a task fails alike on all devices.
    """
    from fedbonsai.fleets.flower.federation import Federation

    refuse(config)
    federation = Federation(Path(config.fleet.flower.folder))
    federation.running()
    where = str(folder.resolve())
    job = federation.jobs / f"{folder.name}-{hashlib.blake2b(where.encode(), digest_size=4).hexdigest()}.toml"
    told = {
        "folder": where,
        "resume": resume,
        "cwd": str(Path.cwd()),
        "federation": str(federation.folder),
        "config": unstructure(config),
    }
    with _turn(federation):
        _check_alone(federation, job, told)
        _hand_in(federation, job, told)
    try:
        _follow(federation, job, Folder(folder), tell)
    except KeyboardInterrupt:
        with contextlib.suppress(ConfigError):  # a server that is down has nothing to stop
            federation.flwr("stop", number_of(job).read_text(encoding="utf-8"), LINK)
        if Folder(folder).info.exists():
            Folder(folder).set_info(status="interrupted")
        raise
    return load(folder)


def _turn(federation: Federation) -> Lock:
    """The right to hand in a run, once the runs that others are just handing in are taken."""
    file = federation.jobs / "hand-in.lock"
    with writing(file), doing("waiting until another run is handed in to this server"):
        while (held := hold(file)) is None:
            time.sleep(LOOK)
    return held


def _check_alone(federation: Federation, job: Path, told: Mapping[str, Any]) -> None:
    """Refuse a second run in one folder, and a second one of one configuration: devices would take both for one.

    Raises:
        ConfigError: there is one.
    """
    for other in sorted(federation.jobs.glob("*.toml")):
        if not _goes_on(other):
            continue
        held = tomllib.loads(other.read_text(encoding="utf-8"))
        if other == job:
            raise ConfigError(f"{held['folder']} is being written by a run that goes on; wait for its end")
        if held["config"] == tomllib.loads(tomli_w.dumps(told["config"])):
            raise ConfigError(
                f"a run of the very same configuration goes on in {held['folder']}, and devices keep one memory for "
                "both; wait for its end, or change its seed"
            )


def _goes_on(job: Path) -> bool:
    """Whether the app of a job runs, or was asked to start a moment ago."""
    try:
        os.kill(int(job.with_suffix(".pid").read_text(encoding="utf-8")), 0)
    except (OSError, ValueError):
        given = number_of(job)
        return not result_of(job).exists() and given.exists() and time.time() - given.stat().st_mtime < STARTS
    return True


def resume_all(federation: Federation) -> list[str]:
    """Hand in again what was running when the server ended; a line for each, also for one that cannot go on."""
    lines: list[str] = []
    for job in sorted(federation.jobs.glob("*.toml")):
        try:
            lines += _resume(federation, job)
        except (ConfigError, OSError, ValueError, KeyError) as error:  # what its files say; others shall go on
            lines.append(f"{job.name} cannot go on: {error}; by hand: fedbonsai run --resume FOLDER")
    return lines


def _resume(federation: Federation, job: Path) -> list[str]:
    if result_of(job).exists():
        return []
    told = tomllib.loads(job.read_text(encoding="utf-8"))
    held = Folder(Path(told["folder"]))
    if not held.config.exists() or not held.info.exists():
        return []
    if held.facts()["status"] not in ("running", "died"):
        return []
    _hand_in(federation, job, {**told, "resume": True})
    return [f"{held.path} goes on from its last finished round"]


def _hand_in(federation: Federation, job: Path, told: dict[str, Any]) -> None:
    """Start a job."""
    from fedbonsai.fleets.flower.logbook import logbook_of

    for left in (result_of(job), telling_of(job), *(() if told["resume"] else (logbook_of(job),))):
        left.unlink(missing_ok=True)
    write(job, tomli_w.dumps(told).encode())
    said = federation.flwr("run", str(federation.app), LINK, "--run-config", f"job={json.dumps(str(job))}")
    with writing(number_of(job)):
        number_of(job).write_text(str(said["run-id"]), encoding="utf-8")


def _follow(federation: Federation, job: Path, folder: Folder, tell: Tell | None) -> None:
    with doing("over Flower") as at:
        _watch(federation, job, folder, tell, at)


def _watch(federation: Federation, job: Path, folder: Folder, tell: Tell | None, at: At) -> None:
    result, asked, gone = result_of(job), time.monotonic(), ""
    told = len(folder.rows())
    while True:
        over = result.exists()
        rows = folder.rows() if tell else []
        for row in rows[told:]:
            assert tell is not None
            tell(row)
        told = len(rows)
        if words := told_of(job):
            at(0, f"over Flower, {words}")
        if over:
            end = json.loads(result.read_text(encoding="utf-8"))
            if end["status"] != ENDED:
                raise _error(end)
            return
        if time.monotonic() - asked > ASK:
            before, gone, asked = gone, _gone(federation, job), time.monotonic()
            if gone and gone == before:  # twice, since a server that was started again may just be handing it in
                full = no_room(folder.path) or no_room(federation.folder)
                why = f"{full}, then: fedbonsai run --resume {folder.path}" if full else f"see {federation.log}"
                raise ConfigError(f"the run's process on the server ended; {why}")
        time.sleep(LOOK)


def _error(end: Mapping[str, Any]) -> FedbonsaiError:
    """The error that ended a run, as its app told it; whatever is not known here is what the configuration led to."""
    kinds = {kind.__name__: kind for kind in (NothingLearned, Unanswered, TaskFailed)}
    error = kinds.get(str(end.get("kind")), ConfigError)(str(end["reason"]))
    for note in end.get("notes", ()):
        error.add_note(str(note))
    return error


def _gone(federation: Federation, job: Path) -> str:
    """Number of the Flower run of a job, if its process died without a word; a server that is down may come back."""
    number = number_of(job).read_text(encoding="utf-8")
    try:
        (run,) = federation.flwr("list", LINK, "--run-id", number)["runs"]
    except ConfigError:
        return ""
    return number if str(run["status"]).startswith("finished") else ""


def number_of(job: Path) -> Path:
    """Where the number of a job's Flower run is written."""
    return job.with_suffix(".run")
