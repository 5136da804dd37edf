"""Choosing among coarsely pruned models: FedTiny's adaptive batch-norm selection, two exchanges, both their ends.

Huang et al., ICDCS 2023 (arXiv 2212.01977; specs/fedtiny §1.2 and §1.3). Devices measure the normalisation statistics of every
candidate, the server merges them, devices judge the candidates with the merged ones, and the least mean loss wins.
Whoever is silent in an exchange has no part in its mean. Candidates are nested, layer by layer, since all keep the largest
weights of one model: their union and a number for each layer tell all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Answer, Answers, Client, Fleet, Memory, Samples, task
from fedbonsai.errors import ConfigError, Forgotten
from fedbonsai.methods.fedtiny.pool import Counts, Selection
from fedbonsai.model import Model, parameter_specs
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.held_masks import pack
from fedbonsai.stages.norm_statistics import measured, merged, usable
from fedbonsai.stages.pruning.masks import Masks, keep_each, masked
from fedbonsai.stages.pruning.places import masks_of, packed_masks
from fedbonsai.stages.pruning.scores import magnitude
from fedbonsai.stages.updates import MOST, Usable, statistics_of
from fedbonsai.telling import each
from fedbonsai.tree import Tree
from fedbonsai.wire import message

HELD = "candidates"  # what a device keeps from pass A to pass B


@message("candidates/sparse@1")
class Sparse:
    """Masks and the weights that they keep; everything else is whole."""

    masks: Mapping[str, bytes]
    packed: Packed


@message("candidates/measure@1")
class Measure:
    """Candidates: one sparse model that holds all, or one for each, and the numbers that each keeps by layer."""

    arch: Arch
    models: tuple[Sparse, ...]
    counts: tuple[Counts, ...]
    statistics: str
    momentum: float
    merge: str
    batch: int


@message("candidates/measured@1")
class Measured:
    """Running means and variances of every candidate, and the samples they are of."""

    statistics: tuple[Mapping[str, Tensor], ...]
    examples: int


@message("candidates/judge@1")
class Evaluate:
    """Merged statistics of every candidate."""

    statistics: tuple[Mapping[str, Tensor], ...]


@message("candidates/judged@1")
class Evaluated:
    """Mean cross-entropy of every candidate, and the samples it is of."""

    losses: tuple[float, ...]
    examples: int


R = TypeVar("R", Measured, Evaluated)


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
    seen = _usable(
        fleet.ask(measure, dict.fromkeys(fleet.devices, shown)),
        lambda found: len(found.statistics) == len(counts) and all(usable(part, own) for part in found.statistics),
        "statistics",
        fleet,
    )
    known: tuple[Tree, ...] = (own,) * len(counts)
    if how.by == "adaptive":
        parts = [(answer.value.examples, answer.value.statistics) for answer in seen]
        known = tuple(merged([(n, part[c]) for n, part in parts], how.merge) for c in range(len(counts)))
    scored = _usable(
        fleet.ask(evaluate, dict.fromkeys([answer.device for answer in seen], Evaluate(known))),
        lambda found: len(found.losses) == len(known) and any(map(math.isfinite, found.losses)),
        "losses",
        fleet,
    )
    index, losses = best([answer.value for answer in scored], how.weighted)
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


def by_magnitude(weights: Tree, counts: Counts) -> Masks:
    """The largest weights of each layer."""
    return keep_each(magnitude({name: weights[name] for name in counts}), counts)


def best(judged: Sequence[Evaluated], weighted: bool = True) -> tuple[int, tuple[float, ...]]:
    """specs/fedtiny (4) and (5): the candidate of least mean loss, the first of equals; and the means, infinite for NaN."""
    shares = [answer.examples if weighted else 1 for answer in judged]
    means = tuple(
        sum(n * answer.losses[c] for n, answer in zip(shares, judged, strict=True)) / sum(shares)
        for c in range(len(judged[0].losses))
    )
    means = tuple(mean if math.isfinite(mean) else math.inf for mean in means)
    return means.index(min(means)), means


@task("candidates/measure")
def measure(request: Measure, me: Client, memory: Memory) -> tuple[Measured, Memory]:
    """Pass A: forward only; nothing but the statistics of normalisation layers moves."""
    samples, rate = development(me), request.momentum if request.statistics == "ema" else None
    found = tuple(
        measured(model, samples, request.batch, rate, request.merge, masks, me.device)
        for model, masks in each("measuring candidates", candidates(request), len(request.counts))
    )
    return Measured(found, len(samples)), {**memory, HELD: request}


@task("candidates/judge")
def evaluate(request: Evaluate, me: Client, memory: Memory) -> tuple[Evaluated, Memory]:
    """Pass B: the loss of every candidate with the merged statistics."""
    held: Measure | None = memory.get(HELD)
    if held is None:
        raise Forgotten("the candidates that were sent are not held here")
    memory, samples = without(memory), development(me)
    losses = tuple(
        training.evaluate(model.replace({**model.weights, **statistics}), samples, me.device).loss
        for (model, _), statistics in zip(
            each("judging candidates", candidates(held), len(held.counts)), request.statistics, strict=True
        )
    )
    return Evaluated(losses, len(samples)), memory


def candidates(request: Measure) -> Iterator[tuple[Model, Masks]]:
    """The pruned models with their masks, one at a time."""
    like = parameter_specs(request.arch)
    for index, counts in enumerate(request.counts):
        sent = request.models[min(index, len(request.models) - 1)]
        weights = sent.packed.dense(like, masks_of(sent.masks, like))
        masks = by_magnitude(weights, counts)
        yield Model(request.arch, masked(weights, masks)), masks


def without(memory: Memory) -> Memory:
    """A device's memory without the candidates, which are not needed once training begins."""
    return {name: value for name, value in memory.items() if name != HELD}


def development(me: Client) -> Samples:
    """The samples that judge: a client's validation part, or all it has where it has none.

    Raises:
        ConfigError: the client has no samples.
    """
    if not len(me.valid) + len(me.train):
        raise ConfigError(f"client {me.id} has no samples to judge by; ask for a larger minimum (data.minimum)")
    return me.valid if len(me.valid) else me.train
