"""What is left of a sweep in seconds, bytes and disk: as runs took that are finished, else by a few steps of each kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from statistics import fmean

from fedbonsai.runs.config import RunConfig, optimizers_of
from fedbonsai.runs.folder import Folder
from fedbonsai.runs.jobs import Job
from fedbonsai.runs.progress import guess, size
from fedbonsai.runs.run import Run, load
from fedbonsai.runs.setup import run_context
from fedbonsai.runs.shown import span
from fedbonsai.runs.structure import unstructure
from fedbonsai.telling import each


@dataclass(frozen=True)
class Expected:
    """What a run may take, whole: seconds here, bytes moved, bytes of disk; NaN where nobody knows."""

    seconds: float
    bytes: float
    disk: float

    def part(self, share: float) -> Expected:
        """Of a share of its rounds."""
        return Expected(self.seconds * share, self.bytes * share, self.disk * share)


UNKNOWN = Expected(nan, nan, nan)


def expected(jobs: Sequence[Job]) -> dict[str, Expected]:
    """What each run that is not finished may still take, by its name.

    Runs of a variant take what its finished seeds took; of the others a few steps are tried here, once for all that
    differ neither in data, network and local training nor in their method.
    """
    left = [job for job in jobs if job.status != "finished"]
    took = measured(jobs)
    tried: dict[str, Expected] = {}
    for job in each("trying what a few steps of each kind of run take", left):
        if variant(job) not in took and (kind := kind_of(job.config)) not in tried:
            tried[kind] = attempted(job.config)
    found: dict[str, Expected] = {}
    for job in left:
        whole = took.get(variant(job)) or tried[kind_of(job.config)]
        file = Folder(job.folder).metrics
        done = file.read_bytes().count(b"\n") if file.exists() else 0
        found[job.name] = whole.part(max(0.0, 1 - done / job.config.rounds))
    return found


def variant(job: Job) -> str:
    """The name of a run without its seed."""
    return job.name.removesuffix(f"-{job.seed}")


def measured(jobs: Sequence[Job]) -> Mapping[str, Expected]:
    """What finished runs took, by variant: means over their seeds."""
    every: dict[str, list[Expected]] = {}
    for job in jobs:
        if job.status == "finished":
            run = load(job.folder)
            disk = sum(file.stat().st_size for file in job.folder.rglob("*") if file.is_file())
            every.setdefault(variant(job), []).append(
                Expected(seconds(run), float(sum(run.bytes.values())), float(disk))
            )
    return {
        name: Expected(*(fmean(values) for values in zip(*((e.seconds, e.bytes, e.disk) for e in some), strict=True)))
        for name, some in every.items()
    }


def seconds(run: Run) -> float:
    """Seconds that a finished run took here: all of its last process, and at least those of its rounds."""
    whole = float(run.info.get("ended", 0)) - float(run.info.get("started", 0))
    return max(whole, sum(float(row["seconds"]) for row in run.metrics))


def kind_of(config: RunConfig) -> str:
    """What a few steps depend on."""
    table = unstructure(config)
    kept = {name: table[name] for name in ("rounds", "evaluate_every", "data", "model", "objective", "fleet", "buffer")}
    how = {name: unstructure(each) for name, each in optimizers_of(config.method).items()}
    method = table["method"]
    return json.dumps([kept, how, method["name"], method.get("cohort")], sort_keys=True, default=str)


def attempted(config: RunConfig) -> Expected:
    """By a few steps of the dense model here; whatever is wrong, the run will tell."""
    try:
        stage = run_context(config)
        try:
            found = guess(config, stage, config.rounds)
        finally:
            stage.fleet.close()
    except Exception:
        return UNKNOWN
    return Expected(found.seconds, found.bytes, found.disk)


def told(left: Mapping[str, Expected], workers: int, home: Path) -> str:
    """What is left in one sentence."""
    here = next((folder for folder in (home, *home.resolve().parents) if folder.exists()), Path())
    free = shutil.disk_usage(here).free
    disk, moved = (sum(known(values)) for values in zip(*((e.disk, e.bytes) for e in left.values()), strict=True))
    times = [each.seconds for each in left.values()]
    lacking = len(times) - len(known(times))
    parts = [
        f"about {span(wait(times, workers))} of training here, what comes before the first round included",
        f"about {size(moved)} moved, if what has not run yet compresses nothing",
        f"some {size(disk)} of disk, {size(free)} free",
    ]
    said = "; ".join(parts) + (f"; {lacking} runs could not be tried, and are not in this" if lacking else "")
    return said + (". That is more than there is room for" if disk > free else "")


def known(values: Iterable[float]) -> list[float]:
    """Those that are numbers."""
    return [value for value in values if not isnan(value)]


def wait(times: Sequence[float], workers: int) -> float:
    """Seconds until runs of these seconds have ended, so many at a time: no less than the longest of them takes."""
    told = known(times)
    return max(sum(told) / max(1, workers), max(told, default=0.0))
