"""What is measured once for a machine and kept in a file of ``FEDBONSAI_CACHE`` (or ``~/.cache/fedbonsai``)."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fedbonsai.places import caches
from fedbonsai.telling import doing

SECONDS = 0.6  # spent on a comparison; at least three turns are taken
TURNS = 25
LIMITS = (  # settings that switch vector units off, for torch's loops, its convolutions and products, and for numba
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "NUMBA_CPU_NAME",
    "NUMBA_CPU_FEATURES",
)

_known: dict[Path, dict[str, float]] = {}


def once(name: str, key: str, what: str, measure: Callable[[], float]) -> float:
    """A number that was measured on this machine before, or is now.

    Args:
        name: of the file.
        key: what the number depends on beside the machine, torch and its threads.
        what: is measured, for people who wait.
        measure: gives the number.
    """
    file, key = caches() / f"{name}.json", f"{machine()} | {key}"
    if file not in _known:
        _known[file] = _read(file)
    if key not in _known[file]:
        with doing(f"measuring {what}"):
            _known[file][key] = measure()
        _write(file, {**_read(file), **_known[file]})
    return _known[file][key]


def fastest(runs: list[Callable[[], object]]) -> list[float]:
    """Least seconds of each, run in turn so that a noisy machine is noisy for all alike; see `clock`."""
    best, begin, now = [float("inf")] * len(runs), time.perf_counter(), clock()
    for run in runs:
        run()
    for turn in range(TURNS):
        for place, run in enumerate(runs):
            start = now()
            run()
            best[place] = min(best[place], now() - start)
        if turn > 1 and time.perf_counter() - begin > SECONDS:
            break
    return best


def clock() -> Callable[[], float]:
    """Seconds of this thread on the processor if it works alone: what others do there does not count; else wall-clock."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def machine() -> str:
    """This machine, as far as it decides how fast something is."""
    limits = "".join(f" {name}={os.environ[name]}" for name in LIMITS if name in os.environ)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{_processor()}{limits} {capability} torch {torch.__version__} threads {torch.get_num_threads()}"


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.lower().startswith(("model name", "model\t"))]
    return " ".join(dict.fromkeys(named)) or platform.processor() or platform.machine()


def _read(file: Path) -> dict[str, float]:
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # missing or damaged: measured again


def _write(file: Path, values: dict[str, float]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".new", delete=False, encoding="utf-8") as new:
            json.dump(values, new, indent=1, sort_keys=True)
        os.replace(new.name, file)
    except OSError:
        return  # a folder that cannot be written costs a measurement in each process, not the training
