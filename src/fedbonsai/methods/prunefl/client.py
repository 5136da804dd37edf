"""What a PruneFL device is asked for in a round, what it does, and what it answers.

Further pruning (Jiang et al., TNNLS 2023): local steps under masks, and where the server wants them the importances of
weights (`importance`), which may add up in the device's memory from one reconfiguration to the next. Values travel under
masks that both ends hold (`stages.held_masks`), local layers not at all (`local_layers`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fedbonsai import tree
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, task
from fedbonsai.methods.prunefl import local_layers
from fedbonsai.methods.prunefl.importance import Wanted, clip_of, counted, importances, processed, squares, trained
from fedbonsai.methods.prunefl.local_layers import NOTHING, Own
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.held_masks import Sent, pack, received
from fedbonsai.stages.pruning.masks import Masks
from fedbonsai.stages.secure.codes import coded
from fedbonsai.stages.secure.device import commit
from fedbonsai.stages.secure.layout import layout
from fedbonsai.stages.secure.messages import Keys, Open, Order
from fedbonsai.stages.updates import Update
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.steps import Trained
from fedbonsai.tree import Weights
from fedbonsai.wire import message

KEPT = "importance"  # what a device accumulates from one reconfiguration to the next


@message("prunefl/train@1")
class Train:
    """A round: the model under its masks, how to train it, and what to do with importances."""

    arch: Arch
    sent: Sent
    sgd: Optimizer
    wanted: Wanted


@message("prunefl/own-train@1")
class OwnTrain:
    """A round whose model is the shared part; the personal one is on the device."""

    train: Train
    own: Own


@message("prunefl/secure@1")
class Secretly:
    """A round whose answer is summed up in secret; ``span``: rounds whose importances add up, which are divided by it."""

    train: Train
    own: Own
    span: int
    order: Order


@message("prunefl/update@1")
class Result:
    """Weights under the mask; importances by name where asked, and the sum of those of what is never pruned."""

    update: Update
    importance: Packed | None = None
    rest: float = 0.0


@task("prunefl/train")
def train(request: Train | OwnTrain, me: Client, memory: Memory) -> tuple[Result, Memory]:
    """Local steps of the masked model, with the local layers if there are any; gradients are of all coordinates."""
    request, own = (request.train, request.own) if isinstance(request, OwnTrain) else (request, NOTHING)
    found, _, masks, told, memory = _learned(request, own, me, memory)
    update = Update(pack(found.weights, masks, me.seed), found.examples, found.steps, found.loss)
    if told is None:
        return Result(update), memory
    z, rest = told
    pruned = {name: ~mask for name, mask in masks.items()} if request.wanted.derived else {}
    return Result(update, pack(z, pruned, me.seed), rest), memory


@task("prunefl/secure")
def train_in_secret(request: Secretly, me: Client, memory: Memory) -> tuple[Keys | Open, Memory]:
    """The same, of which only keys are told yet; importances stand as squares of what a code can tell (`importance.squares`)."""
    told, own, order = request.train, request.own, request.order
    found, start, masks, z, memory = _learned(told, own, me, memory)
    values = np.empty(0)
    if z is not None:
        values = squares(*z, counted(start, masks), clip_of(order.how.clip, told.sgd.lr, found.examples * request.span))
    given = coded(order, found, start, layout(start, masks, None, order.seed), me.seed, values, finer=True)
    alike = (told.arch, told.sgd, told.wanted, own, request.span, masks, start)
    return commit(order, given, alike, me, memory)


def _learned(
    request: Train, own: Own, me: Client, memory: Memory
) -> tuple[Trained, Weights, Masks, tuple[Weights, float] | None, Memory]:
    """What training gave of the shared part, from where, under which masks, importances if they are asked for, the memory."""
    sgd, wanted = request.sgd, request.wanted
    shared, masks, memory = received(request.sent, request.arch, memory, own.names)
    model = local_layers.whole(own, request.arch, shared, memory)
    found, summed = trained(model, masks, me, sgd, wanted)
    examples = processed(found.examples, sgd)
    gradients = {name: value.cpu() for name, value in summed.items()}
    z, rest = importances(gradients, masks, examples) if gradients else ({}, 0.0)
    found, memory = local_layers.kept(own, found, memory)
    found = replace(found, examples=examples)
    if not gradients:
        return found, shared, masks, None, memory
    before: dict[str, Any] = memory.get(KEPT, {})
    if wanted.accumulate and before.get("since") == wanted.since:
        z, rest = tree.add(z, before["z"]), rest + before["rest"]
    memory = {name: value for name, value in memory.items() if name != KEPT}
    if not wanted.asked:
        return found, shared, masks, None, {**memory, KEPT: {"since": wanted.since, "z": z, "rest": rest}}
    return found, shared, masks, (z, rest), memory
