"""All experiments on the CPU, within a bound of hours: what has no committed result yet, the cheapest experiment first.

    python -m experiments.every --plan       # what is left, and how long it may take
    python -m experiments.every --hours 2    # begins no run that would not end in time

Each finished run is a file of its own and is never run again, so the same command goes on where it stopped. Times are
those of results that are there: of the same run with other seeds, else of the experiment's other runs. How fast this
machine is shows only once runs have ended; the estimates of the rest follow it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from experiments.run import HERE, Job, experiments, jobs_of, one, plan_of, runs_of

UNKNOWN = 300.0  # seconds for a run of an experiment without any result


@dataclass(frozen=True)
class Planned:
    """A run that is left, and the seconds it took elsewhere."""

    experiment: str
    job: Job
    seconds: float

    @property
    def name(self) -> str:
        """Experiment, run and seed."""
        return f"{self.experiment}/{self.job[0]} seed {self.job[4]}"


@cache
def taken(experiment: str) -> dict[str, list[float]]:
    """Seconds of the finished runs of an experiment, by their names."""
    found: dict[str, list[float]] = {}
    for file in sorted((HERE / experiment / "results").glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(result["name"], []).append(float(result["seconds"]))
    return found


def expected(experiment: str, name: str) -> float:
    """Seconds that a run may take: as its other seeds, else as the experiment's longest runs, else a guess."""
    known = taken(experiment)
    if name in known:
        return statistics.mean(known[name])
    return max((statistics.mean(times) for times in known.values()), default=UNKNOWN)


def left(names: Sequence[str]) -> list[Planned]:
    """Runs without a result, experiment by experiment, the one that is done soonest first."""
    every = [[Planned(name, job, expected(name, job[0])) for job in jobs_of(name)] for name in names]
    every.sort(key=lambda runs: sum(run.seconds for run in runs))
    return [run for runs in every for run in runs]


def tell(names: Sequence[str], runs: Sequence[Planned], workers: int) -> None:
    """Print the plan: what is done, what is left and how long it may take."""
    print(f"{'experiment':28}{'runs':>6}{'left':>6}{'seconds of them':>17}")
    for name in names:
        mine = [run.seconds for run in runs if run.experiment == name]
        whole = len(runs_of(plan_of(name))) * len(plan_of(name)["seeds"])
        known = "" if taken(name) or not mine else "  (a guess: no result yet)"
        print(f"{name:28}{whole:6}{len(mine):6}{sum(mine):17,.0f}{known}")
    total = sum(run.seconds for run in runs)
    print(f"{len(runs)} runs left, about {total / workers / 3600:.1f} hours with {workers} at a time", flush=True)


def carry_out(runs: Sequence[Planned], hours: float, workers: int) -> int:
    """Do the runs that will end within some hours; the number of those that failed.

    A process that the system kills takes the runs beside it with it; the others go on in new processes.
    """
    start, failed, done = time.monotonic(), 0, list[tuple[float, float]]()
    waiting, going = list(runs), dict[Future[str], tuple[Planned, float]]()
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        while waiting or going:
            # ratio of what runs took here to what they were expected to
            pace = sum(took for took, _ in done) / sum(planned for _, planned in done) if done else 1.0
            while waiting and len(going) < workers:
                fits = [run for run in waiting if time.monotonic() - start + pace * run.seconds <= 3600 * hours]
                if not fits:
                    break
                try:
                    future = pool.submit(one, *fits[0].job)
                except BrokenProcessPool:
                    if going:
                        break  # they fail first
                    pool.shutdown()
                    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
                    continue
                waiting.remove(fits[0])
                going[future] = (fits[0], time.monotonic())
            if not going:
                break
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                run, began = going.pop(future)
                if (error := future.exception()) is not None:
                    failed += 1
                    print(f"failed: {run.name}: {error}", file=sys.stderr, flush=True)
                    continue
                done.append((time.monotonic() - began, run.seconds))
                print(f"{len(done)} done, {len(waiting)} waiting: {run.experiment}/{future.result()}", flush=True)
    finally:
        pool.shutdown()
    if waiting:
        print(f"{len(waiting)} runs would not end within {hours:g} hours; the same command goes on with them")
    return failed


def main() -> int:
    """Plan, and carry out what fits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="*", help="names of experiments; all when left out")
    parser.add_argument("--hours", type=float, default=1.0, help="begin no run that would end later (default: 1)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--plan", action="store_true", help="only tell what is left")
    args = parser.parse_args()
    if unknown := set(args.experiments) - set(experiments()):
        parser.error(f"no such experiments: {', '.join(sorted(unknown))}; there are {', '.join(experiments())}")
    if args.hours <= 0 or args.workers < 1:
        parser.error(f"--hours {args.hours:g} --workers {args.workers}: expected hours above 0 and at least 1 worker")
    names = args.experiments or experiments()
    runs = left(names)
    tell(names, runs, args.workers)
    if args.plan or not runs:
        return 0
    home = os.environ.get("FEDBONSAI_DATA", "")
    print(
        f"data other than digits: {Path(home) if home else 'from the hub; set FEDBONSAI_DATA for a folder'}", flush=True
    )
    failed = carry_out(runs, args.hours, args.workers)
    print("python -m experiments.table --write puts new results into the tables")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
