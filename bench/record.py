"""What every benchmark shares: interleaved medians, and a JSON with machine, versions and commit."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from fedbonsai.runs.provenance import commit

RESULTS = Path(__file__).parent / "results"


def interleaved(
    work: Mapping[str, Callable[[], object]],
    repeats: int,
    warm: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """Seconds of each piece of work, run in turn so that a noisy machine is noisy for all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(warm + repeats):
        for name, run in work.items():
            start = clock()
            run()
            if turn >= warm:
                times[name].append(clock() - start)
    return {
        name: {"median": statistics.median(each), "min": min(each), "max": max(each), "repeats": repeats}
        for name, each in times.items()
    }


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def facts() -> dict[str, object]:
    """Machine, versions, commit and day."""
    return {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def save(name: str, result: Mapping[str, object]) -> None:
    """Write ``bench/results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**facts(), **result}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote bench/results/{name}.json")
