"""Choosing among coarsely pruned models: the server of FedTiny's adaptive batch-norm selection, two exchanges.

Huang et al., ICDCS 2023 (arXiv 2212.01977; specs/fedtiny §1.3). Devices measure the normalisation statistics of every
candidate, the server merges them, devices judge the candidates with the merged ones, and the least mean loss wins.
Whoever is silent in an exchange has no part in its mean. Candidates are nested, layer by layer, since all keep the largest
weights of one model: their union and a number for each layer tell all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from fedbonsai.core import Answer, Answers, Fleet
from fedbonsai.methods.fedtiny.client import Judge, Judged, Measure, Measured, Sparse, judge, measure
from fedbonsai.methods.fedtiny.norm_statistics import merged, statistics_of, usable
from fedbonsai.methods.fedtiny.places import packed_masks
from fedbonsai.methods.fedtiny.pool import Counts, by_magnitude, pool_size
from fedbonsai.model import Model
from fedbonsai.stages.held_masks import pack
from fedbonsai.stages.pruning.masks import Masks, masked
from fedbonsai.stages.updates import MOST, Usable
from fedbonsai.tree import Tree

R = TypeVar("R", Measured, Judged)


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

    def size(self, density: float) -> int:
        """C, the number of candidates at a density."""
        return 1 if self.by == "none" else self.pool or pool_size(density)


@dataclass(frozen=True)
class Selected:
    """The chosen candidate: its place in the pool, masks, pruned model with merged statistics, and the mean losses of all."""

    index: int
    masks: Masks
    model: Model
    losses: tuple[float, ...]


def select(model: Model, counts: Sequence[Counts], how: Selection, fleet: Fleet) -> Selected:
    """Choose among candidates: by the devices' losses, or without asking anybody the first.

    Raises:
        Unanswered: no device gave statistics or losses that can be used.
    """
    nobody: tuple[int, tuple[float, ...], Tree] = (0, (), {})
    index, losses, statistics = nobody if how.by == "none" else least_loss(model, counts, how, fleet)
    masks = by_magnitude(model.weights, counts[index])
    return Selected(index, masks, model.replace({**masked(model.weights, masks), **statistics}), losses)


def least_loss(
    model: Model, counts: Sequence[Counts], how: Selection, fleet: Fleet
) -> tuple[int, tuple[float, ...], Tree]:
    """Passes A and B: the place of the best candidate, the losses of all, and its statistics. Who is silent in A is out of B."""
    shown = Measure(
        model.arch, packed(model, counts, how.nested), tuple(counts), how.statistics, how.momentum, how.merge, how.batch
    )
    own = statistics_of(model.weights)
    measured = _usable(
        fleet.ask(measure, dict.fromkeys(fleet.devices, shown)),
        lambda found: len(found.statistics) == len(counts) and all(usable(each, own) for each in found.statistics),
        "statistics",
        fleet,
    )
    known: tuple[Tree, ...] = (own,) * len(counts)
    if how.by == "adaptive":
        parts = [(answer.value.examples, answer.value.statistics) for answer in measured]
        known = tuple(merged([(n, part[c]) for n, part in parts], how.merge) for c in range(len(counts)))
    judged = _usable(
        fleet.ask(judge, dict.fromkeys([answer.device for answer in measured], Judge(known))),
        lambda found: len(found.losses) == len(known) and any(map(math.isfinite, found.losses)),
        "losses",
        fleet,
    )
    index, losses = best([answer.value for answer in judged], how.weighted)
    return index, losses, known[index]


def packed(model: Model, counts: Sequence[Counts], nested: bool) -> tuple[Sparse, ...]:
    """The candidates as they are sent: the union of all if ``nested``, else one after another."""
    union = {name: max(each[name] for each in counts) for name in counts[0]}
    made: list[Sparse] = []
    for kept in [union] if nested else counts:
        masks = by_magnitude(model.weights, kept)
        made.append(Sparse(packed_masks(masks), pack(model.weights, masks, 0)))
    return tuple(made)


def _usable(answers: Answers[R], fits: Callable[[R], bool], what: str, fleet: Fleet) -> list[Answer[R]]:
    """The answers that fit.

    Raises:
        Unanswered: there is none.
    """
    fitting = Usable(answers, fleet, lambda a: a if fits(a.value) and 0 < a.value.examples < MOST else None)
    if found := [answer for answer, _ in fitting]:
        return found
    raise fitting.none(what)


def best(judged: Sequence[Judged], weighted: bool = True) -> tuple[int, tuple[float, ...]]:
    """specs/fedtiny (4) and (5): the candidate of least mean loss, the first of equals; and the means, infinite for NaN."""
    shares = [answer.examples if weighted else 1 for answer in judged]
    means = tuple(
        sum(n * answer.losses[c] for n, answer in zip(shares, judged, strict=True)) / sum(shares)
        for c in range(len(judged[0].losses))
    )
    means = tuple(mean if math.isfinite(mean) else math.inf for mean in means)
    return means.index(min(means)), means
