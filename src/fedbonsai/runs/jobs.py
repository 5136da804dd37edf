"""Several runs at a time, each in a folder and a process: what is finished is left alone, what was interrupted goes on."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

from fedbonsai import forked
from fedbonsai.errors import ConfigError, FedbonsaiError, said
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
    """One run of several."""

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


class Ended(FedbonsaiError):
    """The process of a run ended before its run: the system killed it, or it left by itself."""


def carry_out(
    jobs: Sequence[Job], workers: int, may_begin: Callable[[Job], bool] = lambda _: True
) -> Generator[tuple[Job, str | Exception]]:
    """Do what is left, ``workers`` runs at a time; each job as it ends, with what to tell of it or why it failed.

    A run that fails, or whose process is killed, is told and does not stop the others. Ctrl-C stops all of them, as does
    an error of who reads this, and each keeps what it has.

    Args:
        jobs: in the order in which they begin.
        workers: processes.
        may_begin: asked of a job when its turn has come; one that may not begin is left as it is.
    """
    left = deque(job for job in jobs if job.status != "finished")
    with doing("rounds of all runs", sum(job.config.rounds for job in left)) as at:
        every, crew = list(left), [Worker() for _ in range(min(workers, len(left)))]
        try:
            while left or any(each.job for each in crew):
                for each in crew:
                    while left and each.job is None:
                        if may_begin(job := left.popleft()):
                            each.begin(job)
                busy = {each.pipe: each for each in crew if each.job}
                if not busy:
                    break
                for pipe in connection.wait(list(busy), LOOK):
                    yield busy[pipe].result()  # type: ignore[index]
                at(sum(map(_rounds, every)))
        except BaseException:
            for each in crew:
                each.process.terminate()
            raise
        finally:
            for each in crew:
                each.pipe.close()  # upon which it leaves
                each.process.join()


class Worker:
    """A process that carries out one run after another; one that dies is replaced by its next."""

    process: BaseProcess
    pipe: connection.Connection[Any, Any]

    def __init__(self) -> None:
        self.job: Job | None = None
        self._hire()

    def _hire(self) -> None:
        context = forked.context(["fedbonsai.runs.run"])
        self.pipe, theirs = context.Pipe()
        self.process = forked.process(context, _work, theirs)
        self.process.start()
        theirs.close()  # so that our end says when the process is gone

    def begin(self, job: Job) -> None:
        """Have it do a run."""
        self.job = job
        try:
            self.pipe.send(job)
        except OSError:  # it died while it had nothing to do
            self._hire()
            self.pipe.send(job)

    def result(self) -> tuple[Job, str | Exception]:
        """The run that ended, and what to tell of it or why it failed."""
        job, self.job = self.job, None
        assert job is not None
        try:
            return job, self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            how = self.process.exitcode or 0
            by = f"was ended by {signal.Signals(-how).name}" if how < 0 else f"left with code {how}"
            memory = ", perhaps because memory ran out: take fewer --workers" if how == -signal.SIGKILL else ""
            self.pipe.close()
            self._hire()
            return job, Ended(f"its process {by}{memory}; what was finished is kept")


def _rounds(job: Job) -> int:
    """Rounds that a run has finished so far."""
    file = Folder(job.folder).metrics
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _work(pipe: connection.Connection[Any, Any]) -> None:
    """In a process of its own: runs as they come."""
    settle_in()
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        try:
            told: str | Exception = _run(job)
        except Exception as error:
            told = _sendable(error)
        pipe.send(told)


def settle_in() -> None:
    """A process that carries out runs for another: Ctrl-C is its parent's to handle, and it does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _sendable(error: Exception) -> Exception:
    """An error as it is if it can cross to the parent, else what it says."""
    try:
        return error if type(pickle.loads(pickle.dumps(error))) is type(error) else RuntimeError(said(error))
    except Exception:
        return RuntimeError(said(error))


def _leave_with_parent() -> None:
    """Else runs whose parent was killed would still be writing into the folders in which they are begun again."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


@contextmanager
def terminable() -> Generator[None]:
    """A run in here notes that it was interrupted, and gives its workers back, when its process is told to end.

    Then the process ends: an answer would be told to nobody, and the next run begun.
    """
    signal.signal(signal.SIGTERM, _stopped)
    try:
        yield
    except KeyboardInterrupt:
        os._exit(130)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stopped(signal: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _run(job: Job) -> str:
    """One run from its first or next round to its last."""
    from fedbonsai.fleets.allocator import keep_memory

    keep_memory()
    start = time.perf_counter()
    recipes.own_modules({"imports": list(job.config.imports)})
    with terminable():
        run = execute(job.config, job.folder, job.status == "begun")
    moved = sum(run.bytes.values()) / 1e6
    measure, column = run.measure, f"personal_{run.measure.name}"
    own = next((row[column] for row in reversed(run.metrics) if column in row), None)
    reached = measure.text(run.score) if own is None else f"{measure.text(own)} by the devices' own models"
    return f"{measure.words} {reached}, {moved:.2f} MB, {time.perf_counter() - start:.0f} s"
