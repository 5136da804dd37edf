"""What a FedRTS device is asked for, what it does, and what it answers: trained weights, and places of its largest gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, task
from fedbonsai.model import Model
from fedbonsai.stages.held_masks import Sent, received
from fedbonsai.stages.pruning.top_gradients import top_gradients
from fedbonsai.stages.pruning.under_masks import packed
from fedbonsai.stages.updates import Update
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import seed_of
from fedbonsai.wire import message


@message("fedrts/train@1")
class Train:
    """Values under masks, how to train them, and how many places of which layers to send (none in ordinary rounds)."""

    arch: Arch
    sent: Sent
    optimizer: Optimizer
    counts: Mapping[str, int]
    batch: int


@message("fedrts/trained@1")
class Trained:
    """Trained weights under the masks that came, and where at pruned places the gradient is largest, packed."""

    update: Update
    places: Mapping[str, bytes]


@task("fedrts/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Trained, Memory]:
    """Train under the masks; in adjusting rounds also look where the gradient of one batch is largest."""
    start, masks, memory = received(request.sent, request.arch, memory)
    model = Model(request.arch, start)
    trained = training.train(model, me, request.optimizer, mask=masks)
    update, places = packed(trained, masks, me.seed), dict[str, bytes]()
    if request.counts:
        once = replace(me, seed=seed_of(me.seed, "growth", 0, 0))
        batch = next(training.batches(once, SGD(batch=request.batch)))
        found = top_gradients(model.replace(trained.weights), once, masks, request.counts, batch, request.optimizer)
        places = {name: pairs.places for name, pairs in found.items()}
    return Trained(update, places), memory
