"""How the time of this machine's training step falls with the kept fraction: physically smaller, under a mask, sparse.

One network at several kept fractions. The affine fit is refused where R squared is below .98 or a coefficient is negative,
and the monotone piecewise-linear one through the points is taken. Vector units compute channels in blocks, so the time of
smaller networks is a staircase over their widths, which few points would miss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from fedbonsai.arch import Arch
from fedbonsai.devices.clock import kept as kept_of
from fedbonsai.devices.footprint import Job
from fedbonsai.devices.measure import Step, timed
from fedbonsai.devices.profile import Curve
from fedbonsai.model import Model
from fedbonsai.tree import Weights, generator

KEPT = (1.0, 0.75, 0.5, 0.25, 0.1)  # under a mask
SMALLER = (1.0, 0.9, 0.8, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1)  # of the operations of smaller networks
DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)  # of sparse layers
R2 = 0.98
BATCH = 32


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


def sparse_curve(densities: Sequence[float], seconds: Sequence[float], dense: float, source: str) -> Curve:
    """A curve through timed steps of sparse layers, relative to the dense step; relative errors are least.

    Args:
        densities: kept fractions.
        seconds: a step took.
        dense: seconds of the dense step with everything kept.
        source: how it was measured.
    """
    order = np.argsort(densities)
    x, y = np.array(densities)[order], np.array(seconds)[order] / dense
    slope, intercept = (float(each) for each in np.polyfit(x, y, 1, w=1 / y))
    fit = intercept + slope * x
    r2 = 1 - float(((y - fit) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    whole = f"{source}: relative to the dense step, {y[-1]:.2f} of it with all weights"
    if r2 >= R2 and slope >= 0 and intercept >= 0:
        rest = float(np.abs(fit / y - 1).max())
        text = f"{whole}, R squared {r2:.4f}, largest residual {100 * rest:.0f} %"
        return Curve("measured", text, intercept, slope, r2)
    text = f"{whole}, not affine (R squared {r2:.3f}, intercept {intercept:.3f}), so piecewise"
    return Curve("measured", text, kept=tuple(x.tolist()), relative=tuple(rising(y.tolist()).tolist()))


@dataclass(frozen=True)
class Curves:
    """Of one network on this machine."""

    structured: Curve
    masked: Curve
    sparse: Curve | None
    """None where numba is missing."""


def curves(job: Job, budget: float, say: Callable[[str], None]) -> Curves:
    """The curves of a network; all steps take turns, so that the sparse ones are relative to a dense one beside them."""
    model = Model.init(Arch(job.name, dict(job.options or {})), 0)
    densities = DENSITIES if find_spec("numba") else ()
    steps = [
        *(Step(narrowed(model, kept**0.5)) for kept in SMALLER),
        *(Step(model, masked(model, kept)) for kept in KEPT),
        *(Step(model, masked(model, kept), "on") for kept in densities),
    ]
    points = timed(steps, job.sample, BATCH, budget)
    small, rest = points[: len(SMALLER)], points[len(SMALLER) :]
    dense, few = rest[: len(KEPT)], rest[len(KEPT) :]
    shares = [kept_of(point.episode)[0] for point in small]
    for share, point in zip(shares, small, strict=True):
        say(f"{job.name} with {share:.3f} of its operations: {1000 * point.seconds:.2f} ms a step")
    for kept, point in zip(KEPT, dense, strict=True):
        say(f"{job.name} under a mask of {kept}: {1000 * point.seconds:.2f} ms")
    for kept, point in zip(densities, few, strict=True):
        say(f"{job.name} with {kept} of its weights in sparse layers: {1000 * point.seconds:.2f} ms")
    how = f"{job.name}, batch {BATCH}, one thread"
    noise = 2 * max(point.spread for point in dense)  # half of the turns lie in a range as wide
    return Curves(
        curve(shares, [point.seconds for point in small], 0.0, how),
        curve(KEPT, [point.seconds for point in dense], noise, how),
        sparse_curve(densities, [point.seconds for point in few], dense[0].seconds, how) if few else None,
    )
