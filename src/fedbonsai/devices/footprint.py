"""Peak memory of a real process that trains a network, to check predictions and to measure a machine.

The child process imports torch, notes its memory, then builds a model, trains it and notes the peak. Its blocks of 64 kB
and more go back to the system at once, as a device with little memory should have it (glibc would otherwise keep up to
twice as much in pieces).
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedbonsai.errors import ConfigError
from fedbonsai.work import Work

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
TIDY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Job:
    """A training to be measured: one client, batches of equal size, momentum."""

    name: str
    sample: tuple[int, ...]
    batch: int = 32
    steps: int = 3
    options: Mapping[str, Any] | None = None
    tokens: bool = False
    """Whether inputs are tokens, the next of which is learned."""


@dataclass(frozen=True)
class Footprint:
    """Bytes."""

    torch: int
    """Of a process that has imported torch."""
    peak: int
    """Above that, at the peak of the training."""


def trained(job: Job) -> Work:
    """Do a job in this process; what it reported."""
    import torch

    from fedbonsai import training
    from fedbonsai.arch import Arch
    from fedbonsai.core import Client, Samples
    from fedbonsai.model import Model
    from fedbonsai.objectives import Classification, Tokens
    from fedbonsai.work import collecting

    torch.set_num_threads(1)
    count = job.batch * job.steps
    x = torch.zeros(count, *job.sample, dtype=torch.int64 if job.tokens else torch.float32)
    samples = Samples(x, torch.zeros(x.shape if job.tokens else count, dtype=torch.int64))
    me = Client("footprint", 0, samples, samples[:0])
    with collecting() as done:
        arch = Arch(job.name, dict(job.options or {}), Tokens() if job.tokens else Classification())
        training.train(Model.init(arch, 0), me, training.SGD(batch=job.batch, momentum=0.9))
    return tuple(done)


def measure(job: Job, tidy: bool = True) -> Footprint:
    """Do a job in a process of its own.

    Args:
        job: what is trained.
        tidy: whether freed blocks go back to the system; else as the C library does it by default.

    Raises:
        ConfigError: it failed; the text is the process's own.
    """
    if not sys.platform.startswith("linux"):
        raise ConfigError(f"memory is measured on Linux only, this is {sys.platform}")
    words = json.dumps([job.name, list(job.sample), job.batch, job.steps, dict(job.options or {}), job.tokens])
    child = subprocess.run(
        [sys.executable, "-m", "fedbonsai.devices.footprint", words],
        env=os.environ | ONE_THREAD | (TIDY if tidy else {}),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if child.returncode:
        raise ConfigError(f"the process that trains {job.name!r} failed: {child.stderr[-500:]}")
    before, after = json.loads(child.stdout)
    return Footprint(before, after - before)


def _resident(peak: bool) -> int:
    """Bytes of this process that lie in memory, now or at most so far."""
    with open("/proc/self/status", encoding="utf-8") as status:
        line = next(line for line in status if line.startswith("VmHWM:" if peak else "VmRSS:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """The child."""
    importlib.import_module("torch")  # what that takes is not the training's
    before = _resident(False)
    name, sample, *rest = json.loads(sys.argv[1])
    trained(Job(name, tuple(sample), *rest))
    print(json.dumps([before, _resident(True)]))


if __name__ == "__main__":
    main()
