"""Choosing among coarsely pruned models: the server of FedTiny's adaptive batch-norm selection, two exchanges.

Huang et al., ICDCS 2023 (arXiv 2212.01977; specs/fedtiny §1.3). Devices measure the normalisation statistics of every
candidate, the server merges them, devices judge the candidates with the merged ones, and the least mean loss wins.
Whoever is silent in an exchange has no part in its mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedbonsai.core import Device, Fleet
from fedbonsai.errors import Unanswered
from fedbonsai.methods.fedtiny.candidates import Judge, Judged, Measure, Measured, by_magnitude, judge, measure, shared
from fedbonsai.methods.fedtiny.norm_statistics import merged, statistics_of, usable
from fedbonsai.methods.fedtiny.pool import Counts, pool, pool_size
from fedbonsai.model import Model
from fedbonsai.stages.pruning.masks import Masks, masked
from fedbonsai.stages.updates import MOST
from fedbonsai.tree import Tree


@dataclass(frozen=True)
class Selection:
    """The pool of candidates and how one is chosen."""

    by: Literal["adaptive", "vanilla", "none"] = "adaptive"
    """`adaptive` measures statistics first, `vanilla` judges with the server's own, `none` takes the first candidate."""
    pool: int = 0
    """Candidates (C); 0 means 0.1 / density, at least one."""
    noise: float = 0.5
    """Largest change of a layer's density, as a share of the density (epsilon); the first candidate has none."""
    base: Literal["uniform", "erk"] = "uniform"
    """Densities of the layers before noise: one for all (the paper's), or by the Erdős-Rényi kernel, more in small layers."""
    statistics: Literal["cumulative", "ema"] = "cumulative"
    """How a device goes over its batches: all alike, or by an exponential average."""
    momentum: float = 0.1
    """Of the exponential average (rho)."""
    merge: Literal["pooled", "averaged"] = "pooled"
    """Variances: exact pooling, or the plain mean."""
    weighted: bool = True
    """Weigh losses by samples."""
    batch: int = 64
    """Samples in a batch."""
    nested: bool = True
    """Send the union of the candidates once, instead of each by itself."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.pool < 0 or self.batch < 2:
            raise ValueError(f"pool = {self.pool}, batch = {self.batch}: expected pool >= 0 and batch >= 2")
        if not (0 <= self.noise <= 1 and 0 < self.momentum <= 1):
            raise ValueError(f"noise = {self.noise}, momentum = {self.momentum}: expected shares of 1")

    def candidates(self, forms: Tree, budget: int, density: float, seed: int) -> list[dict[str, int]]:
        """How many weights each candidate keeps in each layer; arguments are those of `pool.pool`."""
        count = 1 if self.by == "none" else self.pool or pool_size(density)
        return pool(forms, budget, count, self.noise, seed, self.base)


@dataclass(frozen=True)
class Selected:
    """The chosen candidate: its place in the pool, masks, pruned model with merged statistics, and the mean losses of all."""

    index: int
    masks: Masks
    model: Model
    losses: tuple[float, ...]


def select(model: Model, counts: Sequence[Counts], how: Selection, fleet: Fleet) -> Selected:
    """Choose among candidates: pass A with all devices, pass B with those that answered it; ``none`` takes the first.

    Raises:
        Unanswered: no device gave statistics or losses that can be used.
    """
    if how.by == "none":
        masks = by_magnitude(model.weights, counts[0])
        return Selected(0, masks, model.replace(masked(model.weights, masks)), ())
    parts = _statistics(model, counts, how, fleet)
    known: tuple[Tree, ...] = (statistics_of(model.weights),) * len(counts)
    if how.by == "adaptive":
        known = tuple(merged([(p.examples, p.statistics[c]) for _, p in parts], how.merge) for c in range(len(counts)))
    index, losses = best(_losses([device for device, _ in parts], known, fleet), how.weighted)
    masks = by_magnitude(model.weights, counts[index])
    weights = masked(model.weights, masks)
    return Selected(
        index, masks, model.replace({name: known[index].get(name, v) for name, v in weights.items()}), losses
    )


def best(judged: Sequence[Judged], weighted: bool = True) -> tuple[int, tuple[float, ...]]:
    """specs/fedtiny (4) and (5): the candidate of least mean loss, the first of equals; and the means, infinite for NaN."""
    shares = [answer.examples if weighted else 1 for answer in judged]
    means = tuple(
        sum(n * answer.losses[c] for n, answer in zip(shares, judged, strict=True)) / sum(shares)
        for c in range(len(judged[0].losses))
    )
    means = tuple(mean if math.isfinite(mean) else math.inf for mean in means)
    return means.index(min(means)), means


def _statistics(model: Model, counts: Sequence[Counts], how: Selection, fleet: Fleet) -> list[tuple[Device, Measured]]:
    """Pass A: who measured what."""
    shown = Measure(
        model.arch, shared(model, counts, how.nested), tuple(counts), how.statistics, how.momentum, how.merge, how.batch
    )
    own, parts = statistics_of(model.weights), list[tuple[Device, Measured]]()
    for answer in fleet.ask(measure, dict.fromkeys(fleet.devices, shown)):
        found = answer.value
        fits = len(found.statistics) == len(counts) and all(usable(each, own) for each in found.statistics)
        if fits and 0 < found.examples < MOST:
            parts.append((answer.device, found))
        else:
            fleet.reject(answer.device)
    if not parts:
        raise Unanswered("no statistics could be used")
    return parts


def _losses(devices: Sequence[Device], known: tuple[Tree, ...], fleet: Fleet) -> list[Judged]:
    """Pass B: losses of those to whom a candidate at least has one that is a number."""
    judged: list[Judged] = []
    for answer in fleet.ask(judge, dict.fromkeys(devices, Judge(known))):
        found = answer.value
        if len(found.losses) == len(known) and any(map(math.isfinite, found.losses)) and 0 < found.examples < MOST:
            judged.append(found)
        else:
            fleet.reject(answer.device)
    if not judged:
        raise Unanswered("no losses could be used")
    return judged
