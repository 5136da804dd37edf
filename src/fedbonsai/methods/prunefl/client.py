"""What a PruneFL device is asked for in a round, what it does, and what it answers.

Further pruning (Jiang et al., TNNLS 2023): local steps under masks, and where the server wants them the importances of
weights (`importance`), which may add up in the device's memory from one reconfiguration to the next. Values travel under
masks that both ends hold (`stages.held_masks`), local layers not at all (`local_layers`).
"""

from __future__ import annotations

from typing import Any

from fedbonsai import tree
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, task
from fedbonsai.methods.prunefl import local_layers
from fedbonsai.methods.prunefl.importance import Wanted, importances, processed, trained
from fedbonsai.methods.prunefl.local_layers import NOTHING, Own
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.held_masks import Sent, pack, received
from fedbonsai.stages.updates import Update
from fedbonsai.training.optimizers import Optimizer
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
    sgd, wanted = request.sgd, request.wanted
    shared, masks, memory = received(request.sent, request.arch, memory, own.names)
    model = local_layers.whole(own, request.arch, shared, memory)
    found, summed = trained(model, masks, me, sgd, wanted)
    examples = processed(found.examples, sgd)
    gradients = {name: value.cpu() for name, value in summed.items()}
    z, rest = importances(gradients, masks, examples) if gradients else ({}, 0.0)
    found, memory = local_layers.kept(own, found, memory)
    update = Update(pack(found.weights, masks, me.seed), examples, found.steps, found.loss)
    if not gradients:
        return Result(update), memory
    before: dict[str, Any] = memory.get(KEPT, {})
    if wanted.accumulate and before.get("since") == wanted.since:
        z, rest = tree.add(z, before["z"]), rest + before["rest"]
    memory = {name: value for name, value in memory.items() if name != KEPT}
    if not wanted.asked:
        return Result(update), {**memory, KEPT: {"since": wanted.since, "z": z, "rest": rest}}
    pruned = {name: ~mask for name, mask in masks.items()} if wanted.derived else {}
    return Result(update, pack(z, pruned, me.seed), rest), memory
