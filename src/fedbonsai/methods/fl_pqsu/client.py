"""A round of selective updating: what a client is asked, what it does with it, and its upload or the mark of a skip.

FL-PQSU (Xu et al. 2021). Training, gate and packing are `stages.selective`; the server's half is `newest`.
"""

from __future__ import annotations

from fedbonsai.arch import Arch
from fedbonsai.core import Client, Memory, task
from fedbonsai.errors import Forgotten
from fedbonsai.model import Model
from fedbonsai.stages.broadcast import Coded, Sent, received
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.pruning.units import Shapes, forms_of
from fedbonsai.stages.selective import OWN, Rule, selected, trained
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import Tree
from fedbonsai.wire import message


@message("fl-pqsu/train@1")
class Train:
    """Model, how to train it, and when and how to upload it; nothing sent: go on from your own."""

    arch: Arch
    shapes: Shapes
    sent: Sent | None
    sgd: Optimizer
    rule: Rule


@message("fl-pqsu/upload@1")
class Upload:
    """New weights, or their change, packed; training samples of the client, and its mean loss over the round."""

    packed: Packed
    examples: int
    loss: float


@message("fl-pqsu/skip@1")
class Skip:
    """Nothing new: the mark alone."""


@task("fl-pqsu/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Upload | Skip, Memory]:
    """Dequantize, train in fp32, gate, pack.

    Raises:
        Forgotten: what was sent, or that nothing was, needs what is not held here.
    """
    sent, like = request.sent, forms_of(request.arch, request.shapes)  # forms are smaller than the builder's
    if sent is None and OWN not in memory:
        raise Forgotten("nothing was sent, and there is no model of its own here to go on from")
    if sent is None:
        start: Tree = memory[OWN].dense(like)
    elif isinstance(sent, Coded):
        start = sent.packed.dense(like)
    else:
        start, memory = received(sent, request.arch, memory)
    found, loss = trained(Model(request.arch, start), me, request.sgd, request.rule.gate)
    packed, memory = selected(request.rule, start, found.weights, loss, memory, me)
    return Skip() if packed is None else Upload(packed, found.examples, found.loss), memory
