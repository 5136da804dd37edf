"""What a FedTiny device is asked for, what it does, and what it answers.

Huang et al., ICDCS 2023 (arXiv 2212.01977). The two passes of the selection (specs/fedtiny §1.2) measure the normalisation
statistics of every candidate, then its loss with the merged ones. In a round (specs/fedtiny §2) a device trains under the
masks and, where these are adjusted, adds its largest gradients at pruned places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, Samples, task
from fedbonsai.errors import ConfigError, Forgotten
from fedbonsai.methods.fedtiny.norm_statistics import measured
from fedbonsai.methods.fedtiny.places import Pairs, masks_of
from fedbonsai.methods.fedtiny.pool import Counts, by_magnitude
from fedbonsai.methods.fedtiny.top_gradients import top_gradients
from fedbonsai.model import Model, parameter_specs
from fedbonsai.stages import masked_upload, selective
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.held_masks import Sent, pack, received
from fedbonsai.stages.masked_upload import Skip
from fedbonsai.stages.pruning.masks import Masks, masked
from fedbonsai.stages.selective import Rule
from fedbonsai.telling import each
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import seed_of
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
class Judge:
    """Merged statistics of every candidate."""

    statistics: tuple[Mapping[str, Tensor], ...]


@message("candidates/judged@1")
class Judged:
    """Mean cross-entropy of every candidate, and the samples it is of."""

    losses: tuple[float, ...]
    examples: int


@message("fedtiny/train@1")
class Train:
    """Model, how to train it, and how many gradients of which layers to send back (none in ordinary rounds)."""

    arch: Arch
    sent: Sent
    sgd: Optimizer
    counts: Mapping[str, int]
    batch: int


@message("fedtiny/selective@1")
class Selective:
    """An ordinary request, and how and when what was learned goes up."""

    train: Train
    rule: Rule


@message("fedtiny/trained@1")
class Trained:
    """Trained weights under the masks that came, and the largest gradients at pruned places."""

    packed: Packed
    examples: int
    steps: int
    loss: float
    pairs: Mapping[str, Pairs]


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
    memory, samples = without(memory), development(me)
    losses = tuple(
        training.evaluate(model.replace({**model.weights, **statistics}), samples, me.device).loss
        for (model, _), statistics in zip(
            each("judging candidates", candidates(held), len(held.counts)), request.statistics, strict=True
        )
    )
    return Judged(losses, len(samples)), memory


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


@task("fedtiny/train")
def train(request: Train | Selective, me: Client, memory: Memory) -> tuple[Trained | Skip, Memory]:
    """E local epochs under the masks, then, if asked, the gradients of one batch at the trained weights.

    A device whose gate closes computes no gradients and sends none.
    """
    rule, request = (request.rule, request.train) if isinstance(request, Selective) else (None, request)
    start, masks, memory = received(request.sent, request.arch, without(memory))
    model = Model(request.arch, start)
    if rule is None:
        found = training.train(model, me, request.sgd, mask=masks).finite()
        packed = pack(found.weights, masks, me.seed)
    else:
        found, loss = selective.trained(model, me, request.sgd, rule.gate, masks)
        packed, memory = masked_upload.sent(rule, start, found.weights, masks, loss, memory, me)
    if packed is None:
        return Skip(), memory
    pairs: Mapping[str, Pairs] = {}
    if request.counts:
        once = replace(me, seed=seed_of(me.seed, "growth", 0, 0))
        batch = next(training.batches(once, SGD(batch=request.batch)))
        pairs = top_gradients(model.replace(found.weights), once, masks, request.counts, batch, request.sgd)
    return Trained(packed, found.examples, found.steps, found.loss, pairs), memory
