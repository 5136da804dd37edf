"""Measures the machine it runs on with the real training step, and fits a profile.

Speed: one thread trains networks of different make; seconds a step are fitted by the multiply-accumulates of
convolutions and of linear layers, the values that modules give and the modules, so that relative errors are least.
Curves: one network at several kept fractions, physically smaller and under a mask; the affine fit is refused where R
squared is below .98 or the slope is negative, and the monotone piecewise-linear one through the points is taken.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedbonsai import local, work
from fedbonsai.core import Client, Samples
from fedbonsai.devices.clock import macs
from fedbonsai.devices.footprint import Job, measure
from fedbonsai.devices.memory import peak_bytes
from fedbonsai.devices.networks import counted, layers
from fedbonsai.devices.profile import Curve
from fedbonsai.errors import ConfigError
from fedbonsai.local import SGD
from fedbonsai.model import Arch, Model
from fedbonsai.tree import Weights, generator
from fedbonsai.work import Episode

KEPT = (1.0, 0.75, 0.5, 0.25, 0.1)
R2 = 0.98
NETWORKS = (
    Job("mlp", (1, 28, 28), options={"size": 28}),
    Job("mlp", (1, 28, 28), options={"size": 28, "widths": (1024, 512)}),
    Job("lenet5", (1, 28, 28)),
    Job("cnn-bn", (1, 28, 28), options={"size": 28}),
    Job("cnn-mnist", (1, 28, 28)),
    Job("resnet-tiny", (3, 32, 32)),
)
BATCHES = (8, 32)
BATCH = 32  # of the curves


@dataclass(frozen=True)
class Point:
    """A step that was timed."""

    seconds: float
    spread: float
    """How far the median of the repeats lies above the least, relative to that."""
    episode: Episode


def timed(model: Model, sample: tuple[int, ...], batch: int, masks: Weights | None, budget: float) -> Point:
    """Seconds of a training step, one thread: processor time, the least of the repeats, since others may share the machine.

    Args:
        model: network.
        sample: shape of an input.
        batch: samples a step.
        masks: by name of the weight.
        budget: seconds that all repeats may take.
    """
    samples = Samples(torch.zeros(batch, *sample), torch.zeros(batch, dtype=torch.int64))
    me, repeats = Client("profile", 0, samples, samples[:0]), 5

    def run(steps: int) -> float:
        begin = time.process_time()
        local.train(model, me, SGD(lr=0.0, batch=batch, steps=steps), mask=masks)
        return time.process_time() - begin

    run(2)
    once = run(1)
    steps = max(1, min(200, round(budget / repeats / once)))
    with work.collecting() as done:
        local.train(model, me, SGD(lr=0.0, batch=batch, steps=1), mask=masks)
    pairs = [(run(steps + 1), run(1)) for _ in range(repeats)]
    seconds, spread = least([long for long, _ in pairs], [short for _, short in pairs], steps)
    return Point(seconds, spread, done[0])


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


def narrowed(model: Model, share: float) -> Model:
    """A network whose inner widths are ``share`` of the whole one's; inputs and scores keep theirs."""
    shapes = {name: tuple(value.shape) for name, value in model.weights.items()}
    many = [name for name, shape in shapes.items() if len(shape) > 1]
    inner: Weights = {}
    for name, value in model.weights.items():
        cut = [slice(None)] * value.ndim
        of_last = name.rpartition(".")[0] == many[-1].rpartition(".")[0]
        if not of_last:
            cut[0] = slice(0, max(1, round(share * value.shape[0])))
        if value.ndim > 1 and name != many[0]:
            cut[1] = slice(0, max(1, round(share * value.shape[1])))
        inner[name] = value[tuple(cut)].clone()
    return model.replace(inner)


def masked(model: Model, kept: float) -> Weights:
    """Masks that keep a random share of every weight of two dimensions or more."""
    random = generator(0)
    return {
        name: torch.rand(value.shape, generator=random) < kept
        for name, value in model.weights.items()
        if value.ndim > 1 and value.is_floating_point()
    }


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


Step = tuple[float, float, float, float, float]  # MACs of convolutions, of linear layers, values, modules; seconds


def speed(budget: float, say: Callable[[str], None]) -> Speed:
    """Time networks of different make and fit what a step costs."""
    steps: list[Step] = []
    for job in NETWORKS:
        model = Model.init(Arch(job.name, dict(job.options or {})), 0)
        for batch in BATCHES:
            point = timed(model, job.sample, batch, None, budget)
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


def fitted(steps: Sequence[Step]) -> Speed:
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


def affine(kept: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Intercept, slope and R squared of the least-squares line."""
    x, y = np.array(kept), np.array(seconds)
    slope, intercept = np.polyfit(x, y, 1)
    rest, all_ = float(((y - intercept - slope * x) ** 2).sum()), float(((y - y.mean()) ** 2).sum())
    return float(intercept), float(slope), 1 - rest / all_ if all_ else 1.0


def rising(values: Sequence[float]) -> NDArray[np.float64]:
    """The nearest sequence that never falls (pool adjacent violators, equal weights)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2], blocks[-1]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return np.concatenate([np.full(count, value) for value, count in blocks])


def curve(kept: Sequence[float], seconds: Sequence[float], noise: float, source: str) -> Curve:
    """A curve through timed steps, relative to the one with everything kept.

    Args:
        kept: fractions, the largest of which is 1.
        seconds: a step took.
        noise: relative spread of repeats; where all steps lie within it of each other the curve is level.
        source: how it was measured.
    """
    order = np.argsort(kept)
    x, y = np.array(kept)[order], np.array(seconds)[order]
    if y.max() / y.min() - 1 <= noise:
        return Curve("measured", f"{source}: level within the spread of repeats, {100 * noise:.0f} %")
    intercept, slope, r2 = affine(x.tolist(), y.tolist())
    if r2 >= R2 and slope >= 0 and intercept >= 0:
        whole = intercept + slope
        rest = float(np.abs((intercept + slope * x) / y - 1).max())
        text = f"{source}: R squared {r2:.4f}, largest residual {100 * rest:.0f} %"
        return Curve("measured", text, intercept / whole, slope / whole, r2)
    y = rising(y.tolist())
    text = f"{source}: not affine (R squared {r2:.3f}, slope {slope / y[-1]:.3f}), so piecewise"
    return Curve("measured", text, kept=tuple(x.tolist()), relative=tuple((y / y[-1]).tolist()))


def curves(job: Job, budget: float, say: Callable[[str], None]) -> tuple[Curve, Curve]:
    """The structured and the masked curve of a network."""
    model = Model.init(Arch(job.name, dict(job.options or {})), 0)
    whole = 0
    xs: list[float] = []
    small: list[Point] = []
    sparse: list[Point] = []
    for kept in KEPT:
        point = timed(narrowed(model, kept**0.5), job.sample, BATCH, None, budget)
        count = macs([point.episode]).done
        whole = whole or count
        xs.append(count / whole)
        small.append(point)
        sparse.append(timed(model, job.sample, BATCH, masked(model, kept), budget))
        say(
            f"{job.name} with {xs[-1]:.3f} of its operations: {1000 * point.seconds:.2f} ms a step; "
            f"under a mask of {kept}: {1000 * sparse[-1].seconds:.2f} ms"
        )
    how = f"{job.name}, batch {BATCH}, one thread"
    noise = max(point.spread for point in sparse)
    return (
        curve(xs, [point.seconds for point in small], 0.0, how),
        curve(KEPT, [point.seconds for point in sparse], noise, how),
    )


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

    first, second = measure(plain), measure(folded)
    library = first.peak - peak_bytes(trained(plain))
    kernels = second.peak - peak_bytes(trained(folded)) - library
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Memory(total, first.torch, max(0, library), max(0, kernels))
