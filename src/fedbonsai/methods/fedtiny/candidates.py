"""What passes between server and devices when FedTiny chooses among candidates, and the devices' two passes.

Huang et al., ICDCS 2023 (arXiv 2212.01977; specs/fedtiny §1.2). Pass A measures the normalisation statistics of every
candidate, pass B its loss with the merged ones. Candidates of one model are nested, layer by layer, since all keep its largest
weights: their union and a number for each layer tell all of them. The server's side is `selection`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from fedbonsai import training
from fedbonsai.core import Client, Memory, Samples, task
from fedbonsai.errors import ConfigError, Forgotten
from fedbonsai.methods.fedtiny.norm_statistics import measured
from fedbonsai.methods.fedtiny.places import masks_of, packed_masks
from fedbonsai.methods.fedtiny.pool import Counts
from fedbonsai.model import Arch, Model, forms
from fedbonsai.stages.codec import Chain, Packed, parse
from fedbonsai.stages.pruning.masks import Masks, keep_each, masked
from fedbonsai.stages.pruning.scores import magnitude
from fedbonsai.telling import each
from fedbonsai.tree import Tree
from fedbonsai.wire import message

KNOWN: Chain = parse(["known"])  # values of a mask that both ends hold, in full precision
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
class Judge:
    """Merged statistics of every candidate."""

    statistics: tuple[Mapping[str, Tensor], ...]


@message("candidates/judged@1")
class Judged:
    """Mean cross-entropy of every candidate, and the samples it is of."""

    losses: tuple[float, ...]
    examples: int


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
def judge(request: Judge, me: Client, memory: Memory) -> tuple[Judged, Memory]:
    """Pass B: the loss of every candidate with the merged statistics."""
    held: Measure | None = memory.get(HELD)
    if held is None:
        raise Forgotten("the candidates that were sent are not held here")
    samples = development(me)
    losses = tuple(
        training.evaluate(model.replace({**model.weights, **statistics}), samples, me.device).loss
        for (model, _), statistics in zip(
            each("judging candidates", candidates(held), len(held.counts)), request.statistics, strict=True
        )
    )
    return Judged(losses, len(samples)), without(memory)


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


def candidates(request: Measure) -> Iterator[tuple[Model, Masks]]:
    """The pruned models with their masks, one at a time."""
    like = forms(request.arch)
    for index, counts in enumerate(request.counts):
        sent = request.models[min(index, len(request.models) - 1)]
        weights = sent.packed.dense(like, masks_of(sent.masks, like))
        masks = by_magnitude(weights, counts)
        yield Model(request.arch, masked(weights, masks)), masks


def by_magnitude(weights: Tree, counts: Counts) -> Masks:
    """The largest weights of each layer."""
    return keep_each(magnitude({name: weights[name] for name in counts}), counts)


def shared(model: Model, counts: Sequence[Counts], nested: bool) -> tuple[Sparse, ...]:
    """The candidates as they are sent."""
    union = {name: max(each[name] for each in counts) for name in counts[0]}
    made: list[Sparse] = []
    for kept in [union] if nested else counts:
        masks = by_magnitude(model.weights, kept)
        made.append(Sparse(packed_masks(masks), KNOWN.pack(model.weights, 0, masks)))
    return tuple(made)
