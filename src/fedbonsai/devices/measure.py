"""Measures the machine it runs on with the real training step: seconds of a step, speeds, memory.

One thread trains networks of different make; seconds a step are fitted by the multiply-accumulates of convolutions and
of linear layers, the values that modules give and the modules, so that relative errors are least. How they fall with the
kept fraction is measured by `fedbonsai.devices.curves`.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedbonsai import training, work
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples
from fedbonsai.devices.footprint import Job, measure
from fedbonsai.devices.memory import peak_bytes
from fedbonsai.devices.networks import counted, layers
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.telling import each
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import Weights
from fedbonsai.work import Episode

NETWORKS = (
    Job("mlp", (1, 28, 28), options={"size": 28}),
    Job("mlp", (1, 28, 28), options={"size": 28, "widths": (1024, 512)}),
    Job("lenet5", (1, 28, 28)),
    Job("cnn-bn", (1, 28, 28), options={"size": 28}),
    Job("cnn-mnist", (1, 28, 28)),
    Job("resnet-tiny", (3, 32, 32)),
)
BATCHES = (8, 32)
REPEATS = 10
FEWEST = 4  # repeats that can be used, where steps are so long that more of them take twice the time that was given
LEAST = 3  # steps of a call beside the one that a call takes anyway


@dataclass(frozen=True)
class Point:
    """A step that was timed."""

    seconds: float
    spread: float
    """Of the repeats, relative: `least` and `beside` say of what."""
    episode: Episode


@dataclass(frozen=True)
class Step:
    """A training step that can be timed."""

    model: Model
    masks: Weights | None = None
    """By name of the weight."""
    sparse: Literal["off", "on"] = "off"
    """Whether layers under a mask multiply the kept weights alone."""

    def train(self, me: Client, batch: int, steps: int) -> float:
        """Seconds of this process on the processor for so many steps, in one call."""
        begin = time.process_time()
        training.train(self.model, me, SGD(lr=0.0, batch=batch, steps=steps, sparse=self.sparse), mask=self.masks)
        return time.process_time() - begin


def timed(
    steps: Sequence[Step], sample: tuple[int, ...], batch: int, budget: float, repeats: int = REPEATS
) -> list[Point]:
    """Seconds of training steps, one thread: processor time, since others may share the machine.

    Of one step the least of the repeats counts. Several take turns, so that what disturbs the machine for a while
    disturbs all of them, and their ratios count (`beside`).

    Args:
        steps: to be timed.
        sample: shape of an input.
        batch: samples a step.
        budget: seconds that all repeats of one step may take; where they take twice as long, the fewest are made.
        repeats: turns.
    """
    samples = Samples(torch.zeros(batch, *sample), torch.zeros(batch, dtype=torch.int64))
    me = Client("profile", 0, samples, samples[:0])
    many: list[int] = []
    episodes: list[Episode] = []
    for step in steps:
        step.train(me, batch, 2)
        many.append(max(LEAST, min(200, round(budget / repeats / step.train(me, batch, 1)))))
        with work.collecting() as done:
            step.train(me, batch, 1)
        episodes.append(done[0])
    long, short = np.empty((2, repeats, len(steps)))
    made = 0
    for turn in each(f"timing {len(steps)} steps in turns", range(repeats)):
        for place, step in enumerate(steps):
            long[turn, place], short[turn, place] = step.train(me, batch, many[place] + 1), step.train(me, batch, 1)
        made = turn + 1
        usable = int((long[:made] > short[:made]).all(1).sum())
        if usable >= FEWEST and 2 * usable > made and long[:made].sum() + short[:made].sum() > 2 * budget * len(steps):
            break
    long, short = long[:made], short[:made]
    if len(steps) == 1:
        seconds, spread = least(long[:, 0].tolist(), short[:, 0].tolist(), many[0])
        return [Point(seconds, spread, episodes[0])]
    found = beside((long - short) / np.array(many))
    return [Point(seconds, spread, episode) for (seconds, spread), episode in zip(found, episodes, strict=True)]


def beside(seconds: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Seconds of each of several steps, and how far half of the turns lie around them, relative to that.

    A machine that others use is fast in one turn and slow in the next, for all steps alike: a step's share of its turn
    is what stays. The median share counts, times the length of the shortest turn.

    Args:
        seconds: [turns, steps].

    Raises:
        ConfigError: in half of the turns a call with more steps was not longer.
    """
    fine = seconds[(seconds > 0).all(1)]
    if 2 * len(fine) <= len(seconds):
        raise ConfigError(
            "a call with more steps took no longer than one with a single step: this machine is too busy to be measured; "
            "try again, with more time (--seconds)"
        )
    turns = np.exp(np.log(fine).mean(1))
    low, middle, high = np.quantile(fine / turns[:, None], [0.25, 0.5, 0.75], axis=0)
    return list(zip((middle * turns.min()).tolist(), ((high - low) / 2 / middle).tolist(), strict=True))


def least(long: Sequence[float], short: Sequence[float], steps: int) -> tuple[float, float]:
    """Seconds of a step, and how far the median of the repeats lies above, relative to that.

    A call costs something beside its steps, so that of one step is taken from that of many. The least of each is taken
    before: the least difference would be that whose short call happened to be disturbed.

    Args:
        long: seconds of calls with ``steps + 1`` steps.
        short: seconds of calls with one step.
        steps: by how many they differ.

    Raises:
        ConfigError: the long calls were not longer.
    """
    seconds = (min(long) - min(short)) / steps
    if seconds <= 0:
        raise ConfigError(
            f"{steps + 1} steps took {min(long):.2g} s of the processor and one took {min(short):.2g} s: this machine "
            "is too busy to be measured; try again, with more time (--seconds)"
        )
    return seconds, (statistics.median(long) - min(long)) / (steps * seconds)


@dataclass(frozen=True)
class Speed:
    """What `fitted` found."""

    conv: float
    """Multiply-accumulates a second."""
    linear: float
    """Multiply-accumulates a second."""
    values: float
    """Values a second."""
    overhead: float
    """Seconds a module and step."""
    error: float
    """Median relative error of the steps."""
    worst: float
    """Largest relative error of the steps."""


Costs = tuple[float, float, float, float, float]  # MACs of convolutions, of linear layers, values, modules; seconds


def speed(budget: float, say: Callable[[str], None]) -> Speed:
    """Time networks of different make and fit what a step costs."""
    steps: list[Costs] = []
    for job in NETWORKS:
        model = Model.init(Arch(job.name, dict(job.options or {})), 0)
        for batch in BATCHES:
            (point,) = timed([Step(model)], job.sample, batch, budget)
            counts = {"conv": 0.0, "linear": 0.0}
            for layer in layers(point.episode):
                counts[layer.kind] += layer.macs * batch * (2 if layer.first else 3)
            network = counted(point.episode)
            steps.append(
                (counts["conv"], counts["linear"], float(network.values * batch), float(network.modules), point.seconds)
            )
            say(f"{job.name}, batch {batch}: {1000 * point.seconds:.2f} ms a step (spread {100 * point.spread:.0f} %)")
    return fitted(steps)


FASTEST = 1e-15  # seconds an operation: what took no time at all is called very fast


def fitted(steps: Sequence[Costs]) -> Speed:
    """Speeds from timed steps, by least squares of relative errors, none negative."""
    table = np.array([step[:-1] for step in steps])
    took = np.array([step[-1] for step in steps])
    scale = table.max(0).clip(FASTEST)
    free = list(range(table.shape[1]))
    found = np.zeros(table.shape[1])
    while free:  # a negative coefficient means that the others explain it: leave it out
        found[:] = 0.0
        found[free] = np.linalg.lstsq((table / scale)[:, free] / took[:, None], np.ones(len(took)), rcond=None)[0]
        if found.min() >= 0:
            break
        free.remove(int(found.argmin()))
    found = found / scale
    errors = np.abs(table @ found / took - 1)
    conv, linear, values = (1 / max(FASTEST, each) for each in found[:3])
    return Speed(conv, linear, values, float(found[3]), float(np.median(errors)), float(errors.max()))


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    total: int
    runtime: int
    library: int
    kernels: int


def memory() -> Memory:
    """Memory of this machine, and what processes of training take beside their networks."""
    plain, folded = NETWORKS[0], NETWORKS[2]
    from fedbonsai.devices.footprint import trained

    first, second = (measure(job) for job in each("measuring memory in processes of their own", (plain, folded)))
    library = first.peak - peak_bytes(trained(plain))
    kernels = second.peak - peak_bytes(trained(folded)) - library
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Memory(total, first.torch, max(0, library), max(0, kernels))
