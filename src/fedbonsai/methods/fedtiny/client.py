"""What a FedTiny device is asked for in a round, what it does, and what it answers.

Huang et al., ICDCS 2023 (arXiv 2212.01977; specs/fedtiny §2). A device trains under the masks and, where these are adjusted,
adds its largest gradients at pruned places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, task
from fedbonsai.methods.fedtiny.selection import without
from fedbonsai.model import Model
from fedbonsai.stages import masked_upload, selective
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.held_masks import Sent, pack, received
from fedbonsai.stages.masked_upload import Skip
from fedbonsai.stages.pruning.masks import Masks
from fedbonsai.stages.pruning.places import Pairs, checked
from fedbonsai.stages.pruning.top_gradients import top_gradients
from fedbonsai.stages.secure.codes import coded
from fedbonsai.stages.secure.device import commit
from fedbonsai.stages.secure.layout import layout
from fedbonsai.stages.secure.messages import Keys, Open, Order
from fedbonsai.stages.selective import Rule
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import seed_of
from fedbonsai.wire import message


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


@message("fedtiny/secure@1")
class Secretly:
    """An ordinary request whose answer is summed up in secret."""

    train: Train
    order: Order


@message("fedtiny/trained@1")
class Trained:
    """Trained weights under the masks that came, and the largest gradients at pruned places."""

    packed: Packed
    examples: int
    steps: int
    loss: float
    pairs: Mapping[str, Pairs]


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
    pairs = _wanted(request, model.replace(found.weights), masks, me)
    return Trained(packed, found.examples, found.steps, found.loss, pairs), memory


@task("fedtiny/secure")
def train_in_secret(request: Secretly, me: Client, memory: Memory) -> tuple[Keys | Open, Memory]:
    """The same, of which only keys are told yet; the largest gradients stand among zeros at all pruned places of the unit."""
    told, order = request.train, request.order
    start, masks, memory = received(told.sent, told.arch, without(memory))
    model = Model(told.arch, start)
    found = training.train(model, me, told.sgd, mask=masks).finite()
    gradients = checked(_wanted(told, model.replace(found.weights), masks, me), masks, told.counts)
    rows = [np.empty(0)]
    for name, (places, values) in gradients.items():
        row, largest = np.zeros(masks[name].numel()), float(values.abs().max())
        row[places] = values.double().numpy() / (largest or 1.0)
        rows.append(row[~masks[name].reshape(-1).numpy()])
    known = layout(start, masks, None, order.seed)
    given = coded(order, found, start, known, me.seed, np.concatenate(rows))
    return commit(order, given, (told.sgd, told.counts, told.batch, masks, start), me, memory)


def _wanted(request: Train, model: Model, masks: Masks, me: Client) -> Mapping[str, Pairs]:
    """The largest gradients of one batch at pruned places, where they are asked for."""
    if not request.counts:
        return {}
    once = replace(me, seed=seed_of(me.seed, "growth", 0, 0))
    batch = next(training.batches(once, SGD(batch=request.batch)))
    return top_gradients(model, once, masks, request.counts, batch, request.sgd)
