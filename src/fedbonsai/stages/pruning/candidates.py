"""Choosing among coarsely pruned models: FedTiny's adaptive batch-norm selection, a conversation of two exchanges.

Huang et al., ICDCS 2023 (arXiv 2212.01977). `pool` prunes one model by magnitude in several ways. `select` lets devices
measure the normalisation statistics of every candidate (pass A), merges them, and lets devices judge the candidates with
the merged statistics (pass B). Candidates of one model are nested, layer by layer, since all keep its largest weights: their
union and a number for each layer tell all of them.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedbonsai import local, tree
from fedbonsai.core import Client, Device, Fleet, Memory, Samples, task
from fedbonsai.errors import ConfigError, Forgotten, Unanswered
from fedbonsai.model import Arch, Model, forms, skeleton
from fedbonsai.stages.codec import Chain, Packed, parse
from fedbonsai.stages.pruning.distributions import exactly
from fedbonsai.stages.pruning.grow_prune import masks_of, packed_masks
from fedbonsai.stages.pruning.masks import Masks, keep_each, masked
from fedbonsai.stages.pruning.scores import magnitude
from fedbonsai.tree import Tree, Weights, generator
from fedbonsai.wire import message

Counts = Mapping[str, int]  # weights kept, by name
KNOWN: Chain = parse(["known"])  # values of a mask that both ends hold, in full precision
HELD = "candidates"  # what a device keeps from pass A to pass B


@dataclass(frozen=True)
class Selection:
    """The pool of candidates and how one is chosen."""

    by: Literal["adaptive", "vanilla", "none"] = "adaptive"
    """`adaptive` measures statistics first, `vanilla` judges with the server's own, `none` takes the uniform mask."""
    pool: int = 0
    """Candidates (C); 0 means 0.1 / density, at least one."""
    noise: float = 0.5
    """Largest change of a layer's density, as a share of the density (epsilon); the first candidate has none."""
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


# --- pool ----------------------------------------------------------------------------------------------------------


def pool_size(density: float) -> int:
    """C = max(1, round(0.1 / d)): all candidates together hold a tenth of the dense model.

    >>> [pool_size(density) for density in (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001)]
    [1, 1, 2, 5, 10, 20, 100]
    """
    return max(1, round(0.1 / density))


def pool(forms: Tree, budget: int, count: int, noise: float, seed: int) -> list[dict[str, int]]:
    """Numbers of weights that each candidate keeps in each layer; every candidate keeps exactly ``budget`` in all.

    Args:
        forms: prunable weights; only shapes count.
        budget: weights kept.
        count: candidates; fewer come back where so many different ones were not found.
        noise: largest change of a layer's density, as a share of it; the first candidate has none.
        seed: of the draws.

    Raises:
        ConfigError: less than one weight a layer.
    """
    total = sum(value.numel() for value in forms.values())
    if not len(forms) <= budget <= total:
        raise ConfigError(f"{budget} weights for {len(forms)} layers of {total}: choose another density")
    random, base, found = generator(seed), budget / total, list[dict[str, int]]()
    for attempt in range(20 * count):
        draws = torch.rand(len(forms), generator=random, dtype=torch.float64) * 2 - 1
        shares = base * (1 + noise * draws * (attempt > 0))
        raw = [share * value.numel() for share, value in zip(shares.clamp(0, 1).tolist(), forms.values(), strict=True)]
        scale = budget / sum(raw) if sum(raw) else 0.0
        counts = {
            name: min(value.numel(), max(1, math.floor(scale * want + 1e-9)))
            for (name, value), want in zip(forms.items(), raw, strict=True)
        }
        counts = exactly(counts, forms, budget)
        if counts not in found:
            found.append(counts)
        if len(found) == count:
            break
    return found


# --- messages ------------------------------------------------------------------------------------------------------


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
class Judge:
    """Merged statistics of every candidate."""

    statistics: tuple[Mapping[str, Tensor], ...]


@message("candidates/judged@1")
class Judged:
    """Mean cross-entropy of every candidate, and the samples it is of."""

    losses: tuple[float, ...]
    examples: int


# --- device --------------------------------------------------------------------------------------------------------


@task("candidates/measure")
def measure(request: Measure, me: Client, memory: Memory) -> tuple[Measured, Memory]:
    """Pass A: forward only; nothing but the statistics of normalisation layers moves."""
    samples = development(me)
    found = tuple(measured(model, samples, request, me.device) for model in candidates(request))
    return Measured(found, len(samples)), {**memory, HELD: request}


@task("candidates/judge")
def judge(request: Judge, me: Client, memory: Memory) -> tuple[Judged, Memory]:
    """Pass B: the loss of every candidate with the merged statistics."""
    held: Measure | None = memory.get(HELD)
    if held is None:
        raise Forgotten("the candidates that were sent are not held here")
    samples = development(me)
    losses = tuple(
        local.evaluate(model.replace({**model.weights, **statistics}), samples, me.device).loss
        for model, statistics in zip(candidates(held), request.statistics, strict=True)
    )
    return Judged(losses, len(samples)), {name: value for name, value in memory.items() if name != HELD}


def development(me: Client) -> Samples:
    """The samples that judge: a client's validation part, or all it has where it has none."""
    return me.valid if len(me.valid) else me.train


def candidates(request: Measure) -> Iterator[Model]:
    """The pruned models, one at a time."""
    like = forms(request.arch)
    for index, counts in enumerate(request.counts):
        sent = request.models[min(index, len(request.models) - 1)]
        weights = sent.packed.dense(like, masks_of(sent.masks, like))
        yield Model(request.arch, masked(weights, by_magnitude(weights, counts)))


def by_magnitude(weights: Tree, counts: Counts) -> Masks:
    """The largest weights of each layer."""
    return keep_each(magnitude({name: weights[name] for name in counts}), counts)


def measured(model: Model, samples: Samples, how: Measure, device: str = "cpu") -> Weights:
    """Running means and variances of the normalisation layers over the samples, batch by batch; nothing else changes."""
    net = skeleton(model, device)
    batches = [samples[begin : begin + how.batch] for begin in range(0, len(samples), how.batch)]
    if len(batches) > 1 and len(batches[-1]) == 1:  # one sample alone may have no variance
        batches[-2:] = [samples[(len(batches) - 2) * how.batch :]]
    seen: list[tuple[int, Weights]] = []
    with _measuring(net.module, how.momentum if how.statistics == "ema" else 1.0), torch.no_grad():
        for batch in batches:
            net.module(batch.to(device).x)
            seen.append((len(batch), statistics_of(net.snapshot())))
    return seen[-1][1] if how.statistics == "ema" else merged(seen, how.merge)


@contextmanager
def _measuring(net: nn.Module, momentum: float) -> Generator[None]:
    """Normalisation layers move at this rate, everything else is in evaluation mode; the network object is shared."""
    net.eval()
    layers = [layer for layer in net.modules() if isinstance(layer, _BatchNorm)]
    before = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.train()
            layer.momentum = momentum
        yield
    finally:
        for layer, held in zip(layers, before, strict=True):
            layer.momentum = held


# --- both ----------------------------------------------------------------------------------------------------------


def statistics_of(weights: Tree) -> Weights:
    """Running means and variances."""
    return {name: value for name, value in weights.items() if name.endswith(("running_mean", "running_var"))}


def merged(parts: Sequence[tuple[float, Tree]], how: str = "pooled") -> Weights:
    """Statistics of several sets of samples as those of one, equations (2) and (3'), or (3) if ``averaged``.

    Args:
        parts: samples and statistics of each.
        how: ``pooled``: the variance of all samples together; ``averaged``: the mean of the variances.
    """
    mean = tree.Mean()
    for examples, part in parts:
        wide = {name: value.double() for name, value in part.items()}
        if how == "pooled":
            wide = {n: v + wide[_mean_of(n)].square() if n.endswith("var") else v for n, v in wide.items()}
        mean.add(wide, examples)
    found = mean.result()
    if how == "pooled":
        found = {
            n: (v - found[_mean_of(n)].square()).clamp(min=0) if n.endswith("var") else v for n, v in found.items()
        }
    return {name: value.to(parts[0][1][name].dtype) for name, value in found.items()}


def _mean_of(name: str) -> str:
    return name.removesuffix("var") + "mean"


# --- server --------------------------------------------------------------------------------------------------------


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
    shown = Measure(
        model.arch, shared(model, counts, how.nested), tuple(counts), how.statistics, how.momentum, how.merge, how.batch
    )
    own = statistics_of(model.weights)
    parts: list[tuple[Device, Measured]] = []
    for answer in fleet.ask(measure, dict.fromkeys(fleet.devices, shown)):
        if _fits(answer.value, own, len(counts)):
            parts.append((answer.device, answer.value))
        else:
            fleet.reject(answer.device)
    if not parts:
        raise Unanswered("no statistics could be used")
    known: tuple[Tree, ...] = (own,) * len(counts)
    if how.by == "adaptive":
        known = tuple(merged([(p.examples, p.statistics[c]) for _, p in parts], how.merge) for c in range(len(counts)))
    judged: list[Judged] = []
    for answer in fleet.ask(judge, dict.fromkeys((device for device, _ in parts), Judge(known))):
        if len(answer.value.losses) == len(counts) and answer.value.examples > 0:
            judged.append(answer.value)
        else:
            fleet.reject(answer.device)
    if not judged:
        raise Unanswered("no losses could be used")
    index, losses = best(judged, how.weighted)
    masks = by_magnitude(model.weights, counts[index])
    weights = masked(model.weights, masks)
    return Selected(
        index, masks, model.replace({name: known[index].get(name, v) for name, v in weights.items()}), losses
    )


def best(judged: Sequence[Judged], weighted: bool = True) -> tuple[int, tuple[float, ...]]:
    """Equations (4) and (5): the candidate of least mean loss, ties to the first; and the means, infinite where not a number."""
    shares = [answer.examples if weighted else 1 for answer in judged]
    means = tuple(
        math.fsum(n * answer.losses[c] for n, answer in zip(shares, judged, strict=True)) / sum(shares)
        for c in range(len(judged[0].losses))
    )
    means = tuple(mean if math.isfinite(mean) else math.inf for mean in means)
    return means.index(min(means)), means


def shared(model: Model, counts: Sequence[Counts], nested: bool) -> tuple[Sparse, ...]:
    """The candidates as they are sent."""
    union = {name: max(each[name] for each in counts) for name in counts[0]}
    made: list[Sparse] = []
    for kept in [union] if nested else counts:
        masks = by_magnitude(model.weights, kept)
        made.append(Sparse(packed_masks(masks), KNOWN.pack(model.weights, 0, masks)))
    return tuple(made)


def _fits(answer: Measured, own: Tree, count: int) -> bool:
    return (
        answer.examples > 0
        and len(answer.statistics) == count
        and all(
            found.keys() == own.keys() and all(found[n].shape == own[n].shape for n in own) and tree.finite(found)
            for found in answer.statistics
        )
    )
