"""A sweep from its plan to its tables: one process at a time in its folder, and everything in it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path

from fedbonsai.disk import writing
from fedbonsai.errors import ConfigError, DiskFull
from fedbonsai.lock import hold, holder
from fedbonsai.runs.config import check_name
from fedbonsai.runs.jobs import Job, carry_out, status
from fedbonsai.runs.shown import span
from fedbonsai.sweeps.configured import chosen, jobs_of, over, with_seeds
from fedbonsai.sweeps.estimated import UNKNOWN, Expected, expected, wait
from fedbonsai.sweeps.plan import Plan
from fedbonsai.sweeps.results import Stored, Sweep, load_sweep, store, stored
from fedbonsai.sweeps.tuned import FOLDER, tuned, tuning, unjudged

LOCK = "sweep.lock"


@dataclass(frozen=True)
class Ready:
    """A sweep before it begins: nothing in it is wrong as far as its settings say.

    Attributes:
        plan: all of it, with what trials have chosen so far.
        part: of it that was asked for.
        home: its folder.
        data: folder in which data sets are looked for by their names.
        jobs: the runs that were asked for.
        trials: the sweep that must come before, by which variants choose settings; None where all have chosen.
    """

    plan: Plan
    part: Plan
    home: Path
    data: Path | None
    jobs: tuple[Job, ...]
    trials: Ready | None = None

    @property
    def left(self) -> list[Job]:
        """Runs that are not finished."""
        return [job for job in self.jobs if job.status != "finished"]


def ready(
    plan: Plan,
    runs: Path,
    name: str = "",
    settings: Mapping[str, object] | None = None,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    data: Path | None = None,
) -> Ready:
    """See that a plan can be carried out, and where its runs stand; nothing is written.

    Args:
        plan: what shall run.
        runs: folder of the sweep's folder.
        name: of the sweep's folder; empty: the plan's.
        settings: of all runs, by dotted path, over those of the plan.
        only: variants, or names of runs in the plan; all where none is given.
        seeds: only of these; the tables have those beside the plan's.
        data: folder in which data sets are looked for by their names.

    Raises:
        ConfigError: lists every fault with the variants that have it.
    """
    check_name("--name", name)
    plan = over(plan, settings or {})
    home = runs / (name or plan.name)
    if (home / "config.toml").exists():
        raise ConfigError(f"{home} is the folder of a run: give the sweep another --name")
    part = chosen(plan, only, seeds)
    return _ready(with_seeds(plan, {each.name: seeds for each in part.variants}), part, home, data)


def _ready(plan: Plan, part: Plan, home: Path, data: Path | None) -> Ready:
    plan = tuned(plan, home)
    chose = {each.name: each for each in plan.variants}
    part = replace(part, variants=tuple(replace(chose[each.name], seeds=each.seeds) for each in part.variants))
    jobs = tuple(jobs_of(part, home, data))
    if part.tune.grid and part.tune.seed in {seed for each in plan.variants for seed in each.seeds}:
        raise ConfigError(f"seed {part.tune.seed} is that of the trials (tune.seed): take another")
    if not part.tune.grid or all(each.tuned for each in part.variants):
        return Ready(plan, part, home, data, jobs)
    left = tuple(each for each in part.variants if not each.tuned)
    trials = _ready(tuning(plan), tuning(replace(part, variants=left)), home / FOLDER, data)
    if blind := [job.name for job in trials.jobs if not job.config.data.valid and not job.config.data.split]:
        raise ConfigError(
            f"{blind[0]}: tune.grid is judged on the clients' validation parts, and data.valid = 0 leaves none; raise it"
        )
    return Ready(plan, part, home, data, jobs, trials)


def refuse_if_taken(home: Path) -> None:
    """See that nobody carries out a sweep in a folder now.

    Raises:
        ConfigError: another process does.
    """
    if who := holder(home / LOCK):
        raise ConfigError(
            f"a sweep goes on in {home}, carried out by {who}; wait for its end, end that process, or choose another --name"
        )


@contextmanager
def alone(home: Path) -> Generator[None]:
    """Make the folder of a sweep and be its only process meanwhile.

    Raises:
        ConfigError: another process carries out a sweep there, or the folder cannot be made.
    """
    with writing(home):
        home.mkdir(parents=True, exist_ok=True)
        held = hold(home / LOCK)
    if held is None:
        refuse_if_taken(home)
        raise ConfigError(f"a sweep went on in {home} until now; give the same command again")
    with held:
        yield


def carry(
    what: Ready,
    workers: int,
    left: Mapping[str, Expected] | None = None,
    hours: float = 0.0,
    say: Callable[[str], object] = lambda _: None,
) -> tuple[Sweep, dict[str, Exception]]:
    """Do what is left, and write the tables of all that there is.

    Args:
        what: from `ready`.
        workers: runs at a time.
        left: what runs may take, if that is known already.
        hours: begin no run that would not end within so many; 0 is no bound.
        say: takes a line for each run that ends.

    Returns:
        The sweep, and why runs failed, by the names of their folders.

    Raises:
        ConfigError: another process carries out a sweep there.
        DiskFull: there is no room; what was finished is kept, and the same call goes on.
    """
    if workers < 1:
        raise ConfigError(f"workers = {workers}: expected at least 1")
    with alone(what.home):
        if what.trials is not None:
            begun = time.monotonic()
            failed = carry(what.trials, workers, None, hours, say)[1]  # a step that is too long may well fail
            what, left = _ready(what.plan, what.part, what.home, what.data), None
            if faults := unjudged(what.part, what.home):
                raise ConfigError("\n".join(faults))
            if what.trials is not None:
                store(what.home, Stored(what.plan, _still(what.home, what.jobs)))
                return load_sweep(what.home), failed
            hours = max(1e-9, hours - (time.monotonic() - begun) / 3600) if hours else 0.0
        jobs = [replace(job, status=status(job.folder, job.config)) for job in what.jobs]  # others may have gone on
        store(what.home, Stored(what.plan, _still(what.home, jobs)))
        pace = Pace(expected(jobs) if left is None else left, workers, hours)
        todo, failed = [job for job in jobs if job.status != "finished"], dict[str, Exception]()
        with closing(carry_out(todo, workers, pace.may_begin)) as ends:
            for done, (job, result) in enumerate(ends, 1):
                if isinstance(result, DiskFull):
                    raise DiskFull(
                        f"{job.name}: {result}. The sweep has stopped, and what was finished is kept: make room, and the "
                        "same command goes on"
                    )
                pace.ended(job)
                if isinstance(result, Exception):
                    failed[job.name] = result
                told = f"failed: {result}" if isinstance(result, Exception) else result
                say(f"{done} of {len(todo)} done: {job.name}: {told}{pace.told()}")
        if pace.refused:
            say(f"{len(pace.refused)} runs would not end within {hours:g} hours; the same command goes on with them")
        store(what.home, Stored(what.plan, _still(what.home, jobs) | {name: str(why) for name, why in failed.items()}))
        found = load_sweep(what.home)
        found.write()
        return found, failed


def _still(home: Path, jobs: Sequence[Job]) -> dict[str, str]:
    """Why runs failed that are not begun again this time."""
    try:
        before = stored(home).failed
    except ConfigError:
        return {}
    return {name: why for name, why in before.items() if name not in {job.name for job in jobs}}


class Pace:
    """How fast runs end beside what they were expected to take, and which may therefore begin.

    Args:
        left: what runs may take.
        workers: runs at a time.
        hours: in which all shall end; 0 is no bound.
        clock: seconds.
    """

    def __init__(
        self,
        left: Mapping[str, Expected],
        workers: int,
        hours: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._left = {name: each.seconds for name, each in left.items()}
        self._workers, self._hours, self._clock = workers, hours, clock
        self._start, self._began = clock(), dict[str, float]()
        self._took, self._planned = 0.0, 0.0
        self.refused: list[str] = []

    @property
    def ratio(self) -> float:
        """What runs took to what they were expected to take."""
        return self._took / self._planned if self._planned else 1.0

    def may_begin(self, job: Job) -> bool:
        """Whether a run would end in time; of one that nobody knows that is hoped."""
        now = self._clock()
        seconds = self._left.get(job.name, UNKNOWN.seconds)
        if self._hours and now - self._start + (0.0 if isnan(seconds) else self.ratio * seconds) > 3600 * self._hours:
            self.refused.append(job.name)
            del self._left[job.name]
            return False
        self._began[job.name] = now
        return True

    def ended(self, job: Job) -> None:
        """A run has ended."""
        took, seconds = self._clock() - self._began[job.name], self._left.pop(job.name, UNKNOWN.seconds)
        if not isnan(seconds):
            self._took, self._planned = self._took + took, self._planned + seconds

    def told(self) -> str:
        """How long the rest may take; empty where there is none."""
        rest = wait(list(self._left.values()), self._workers)
        return f", about {span(self.ratio * rest)} left" if self._left else ""
