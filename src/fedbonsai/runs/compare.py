"""Many runs in one go: recipes by seeds, several at a time, each in a folder of its own, resumable.

A run that is finished is left alone, one that was interrupted goes on, so the same command again does what is left.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

from fedbonsai.errors import ConfigError
from fedbonsai.runs import recipes
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.folder import Folder
from fedbonsai.runs.run import execute, stored
from fedbonsai.runs.structure import unstructure
from fedbonsai.telling import doing

LOOK = 2.0  # seconds between looks at how far the runs are

Status = Literal["new", "begun", "finished"]


@dataclass(frozen=True)
class Job:
    """One run of a comparison."""

    recipe: str
    preset: str
    seed: int
    folder: Path
    config: RunConfig
    status: Status

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.folder.name


def plan(
    names: Sequence[str], seeds: int, home: Path, overrides: Mapping[str, object], first_seed: int = 0
) -> list[Job]:
    """What a comparison consists of, seed by seed, so that every recipe has a first result soon.

    Args:
        names: recipes; ``fl-pqsu:published`` is a preset of one.
        seeds: how many for each recipe.
        home: folder of the comparison.
        overrides: settings of all runs, by dotted path.
        first_seed: the first of the seeds.

    Raises:
        ConfigError: a recipe or setting is wrong, two recipes are the same run or would share a folder, or a folder
            holds a run of another configuration.
    """
    if seeds < 1:
        raise ConfigError(f"seeds = {seeds}: expected at least 1")
    if twice := {name for name in names if list(names).count(name) > 1}:
        raise ConfigError(f"{', '.join(sorted(twice))} given twice; each recipe is compared once")
    if taken := {"seed", "name"} & overrides.keys():
        raise ConfigError(f"--{min(taken)} is set by the comparison; use --seeds and --first-seed")
    jobs: list[Job] = []
    for seed in range(first_seed, first_seed + seeds):
        for name in names:
            recipe, _, preset = name.partition(":")
            label = f"{Path(recipe).stem}-{preset}-{seed}" if preset else f"{Path(recipe).stem}-{seed}"
            config = recipes.load(recipe, preset, {**overrides, "seed": seed, "name": label})
            jobs.append(Job(recipe, preset, seed, home / label, config, status(home / label, config)))
    _apart(names, jobs[: len(names)])
    return jobs


def _apart(names: Sequence[str], jobs: Sequence[Job]) -> None:
    """Refuse what would be found out when all hours are spent: runs in one folder, that are the same, or judged unlike."""
    for place, (name, job) in enumerate(zip(names, jobs, strict=True)):
        for other, earlier in zip(names[:place], jobs, strict=False):
            judges = [each.config.objective.metric for each in (earlier, job)]
            if judges[0] != judges[1]:
                raise ConfigError(
                    f"{other} is judged by {judges[0]}, {name} by {judges[1]}: set --objective.metric for both"
                )
            if job.folder == earlier.folder:
                raise ConfigError(f"{other} and {name} would both run in {job.folder}; give one of them another name")
            if unstructure(replace(job.config, name="")) == unstructure(replace(earlier.config, name="")):
                raise ConfigError(f"{other} and {name} are the same run; leave one of them out")


def status(folder: Path, config: RunConfig) -> Status:
    """Where the run of a folder stands.

    Raises:
        ConfigError: it holds a run of another configuration.
    """
    files = Folder(folder)
    if not files.config.exists():
        return "new"
    if unstructure(stored(folder)) != unstructure(config):
        raise ConfigError(f"{folder} holds a run with other settings; choose another --name, or delete the folder")
    return "finished" if files.noted().get("status") == "finished" else "begun"


def carry_out(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, str | Exception]]:
    """Do what is left, ``workers`` runs at a time; each job as it ends, with what to tell of it or why it failed.

    A run that fails is told and does not stop the others. Ctrl-C stops all of them, and each keeps what it has.
    """
    left = [job for job in jobs if job.status != "finished"]
    context = get_context("spawn")
    with ProcessPoolExecutor(max(1, min(workers, len(left))), mp_context=context, initializer=_ready) as pool:
        going: dict[Future[str], Job] = {pool.submit(_run, job): job for job in left}
        try:
            with doing("rounds of all runs", sum(job.config.rounds for job in left)) as at:
                while going:
                    for future in wait(going, LOOK, FIRST_COMPLETED).done:
                        yield going.pop(future), _told(future)
                    at(sum(map(_rounds, left)))
        except BaseException:
            for process in list((getattr(pool, "_processes", None) or {}).values()):  # a shutdown forgets them
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _rounds(job: Job) -> int:
    """Rounds that a run has finished so far."""
    file = Folder(job.folder).metrics
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _told(future: Future[str]) -> str | Exception:
    try:
        return future.result()
    except Exception as error:
        return error


def _ready() -> None:
    """A process that carries out runs: Ctrl-C is its parent's to handle, and it does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """Else a comparison that was killed would still be writing into the folders in which it is begun again."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _stopped(signal: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _run(job: Job) -> str:
    """In a process of its own: one run from its first or next round to its last."""
    from fedbonsai.fleets.allocator import keep_memory

    keep_memory()
    start = time.perf_counter()
    recipes.own_modules({"imports": list(job.config.imports)})
    signal.signal(signal.SIGTERM, _stopped)  # the run notes that it was interrupted and gives its workers back
    try:
        run = execute(job.config, job.folder, job.status == "begun")
    except KeyboardInterrupt:
        os._exit(130)  # an error would be told to nobody, and the next run begun
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    moved = sum(run.bytes.values()) / 1e6
    measure, column = run.measure, f"personal_{run.measure.name}"
    own = next((row[column] for row in reversed(run.metrics) if column in row), None)
    reached = measure.text(run.score) if own is None else f"{measure.text(own)} by the devices' own models"
    return f"{measure.words} {reached}, {moved:.2f} MB, {time.perf_counter() - start:.0f} s"
