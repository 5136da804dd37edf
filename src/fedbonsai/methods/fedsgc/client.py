"""What a FedSGC device is asked for in a readjusting round, what it does, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, task
from fedbonsai.methods.fedsgc.congruity import congruent
from fedbonsai.model import Model
from fedbonsai.stages.codec import Packed, parse
from fedbonsai.stages.held_masks import Sent, received
from fedbonsai.stages.pruning.readjust import changed
from fedbonsai.stages.pruning.trading import trained_with_trade
from fedbonsai.stages.pruning.under_masks import packed
from fedbonsai.stages.updates import Update
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import Tree, Weights
from fedbonsai.wire import message

SIGNS = parse([{"threshold": {"tau": 0.0, "min_numel": 0}}, "ternary"])  # places, a bit for each, and their size, 1


@message("fedsgc/readjust@1")
class Readjust:
    """Values under masks, the global direction, how to train, and what shares of a layer to trade how."""

    arch: Arch
    sent: Sent
    direction: Packed
    optimizer: Optimizer
    fraction: float
    opposed: float
    agreed: float
    after: int
    batch: int


@message("fedsgc/readjusted@1")
class Readjusted:
    """Weights under the client's new masks; the masks only where they are not those that came."""

    update: Update
    masks: Mapping[str, Tensor] | None


@task("fedsgc/readjust")
def readjust(request: Readjust, me: Client, memory: Memory) -> tuple[Readjusted, Memory]:
    """Train, trade weights with regard to the global direction, train on."""
    start, masks, memory = received(request.sent, request.arch, memory)
    direction = signs(request.direction.dense({name: start[name] for name in masks}))

    def trade(weights: Tree, gradients: Tree) -> tuple[Weights, Weights]:
        """By congruity."""
        return congruent(weights, start, masks, gradients, direction, request.fraction, request.opposed, request.agreed)

    model, how = Model(request.arch, start), request.optimizer
    trained, new = trained_with_trade(model, masks, me, how, request.after, request.batch, trade)
    return Readjusted(packed(trained, new, me.seed), new if changed(masks, new) else None), memory


def signs(values: Tree) -> Weights:
    """-1, 0 and 1."""
    return {name: value.sign() for name, value in values.items()}
