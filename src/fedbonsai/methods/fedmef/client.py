"""What a FedMef device is asked for, what it does, and what it answers.

Huang, Zhuang, Chen, Lyu, "FedMef: Towards Memory-efficient Federated Dynamic Pruning", CVPR 2024. A device trains under the
masks with inputs saved in part; where masks are adjusted it presses out what will be pruned, and adds its largest gradients
at pruned places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, task
from fedbonsai.methods.fedmef.extrusion import Extrusion, Pressing, marked
from fedbonsai.model import Model
from fedbonsai.stages.held_masks import Sent, received
from fedbonsai.stages.pruning.places import Pairs
from fedbonsai.stages.pruning.top_gradients import top_gradients
from fedbonsai.stages.pruning.under_masks import packed
from fedbonsai.stages.updates import Update
from fedbonsai.training.batches import steps
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.training.saved_inputs import pruned
from fedbonsai.training.through import train_through
from fedbonsai.tree import seed_of
from fedbonsai.wire import message


@message("fedmef/train@1")
class Train:
    """Values under masks, how to train them, and how many weights each layer will trade (none in ordinary rounds)."""

    arch: Arch
    sent: Sent
    optimizer: Optimizer
    cut: float
    extrusion: Extrusion
    counts: Mapping[str, int]
    batch: int


@message("fedmef/trained@1")
class Trained:
    """Trained weights under the masks that came, and the largest gradients at pruned places."""

    update: Update
    pairs: Mapping[str, Pairs]


@task("fedmef/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Trained, Memory]:
    """Train under the masks; if they will be adjusted, press out what goes and take the gradient of one batch."""
    start, masks, memory = received(request.sent, request.arch, memory)
    how, model, counts = request.optimizer, Model(request.arch, start), request.counts
    pressing = None
    if counts:
        marks = marked(start, masks, counts)
        all_steps = steps(len(me.train), how)
        pressing = Pressing(request.extrusion, marks, request.arch.objective, all_steps, how.rate(me.round))
    shares = dict.fromkeys(start, 1 - request.cut)
    found = train_through(
        model,
        me,
        how,
        mask=masks,
        around=lambda network: pruned(network, shares),
        loss=pressing.loss if pressing else None,
        rate=pressing.next_rate if pressing else None,
    )
    update, pairs = packed(found, masks, me.seed), dict[str, Pairs]()
    if counts:
        once = replace(me, seed=seed_of(me.seed, "growth", 0, 0))
        batch = next(training.batches(once, SGD(batch=request.batch)))
        pairs = top_gradients(model.replace(found.weights), once, masks, counts, batch)
    return Trained(update, pairs), memory
