"""A round of selective updating: what a client is asked, what it does with it, and its upload or the mark of a skip.

FL-PQSU (Xu et al. 2021). The client's half is in `stages.selective`, the server's in `newest`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedbonsai.core import Client, Memory, task
from fedbonsai.model import Arch, Model
from fedbonsai.stages.broadcast import Sent
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.pruning.filters import Shapes, forms_of, narrowed
from fedbonsai.stages.selective import Rule, begun, selected, trained
from fedbonsai.training.optimizers import SGD
from fedbonsai.wire import message


@message("fl-pqsu/train@1")
class Train:
    """Model, how to train it, and when and how to upload it; nothing sent: go on from your own."""

    arch: Arch
    shapes: Shapes
    sent: Sent | None
    sgd: SGD
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
    """The client's part: dequantize, train in fp32, gate, pack."""
    start, memory = begun(request.sent, request.arch, forms_of(request.arch, request.shapes), memory)
    found, loss = trained(Model(request.arch, start), me, request.sgd, request.rule.gate)
    packed, memory = selected(request.rule, start, found.weights, loss, memory, me)
    return Skip() if packed is None else Upload(packed, found.examples, found.loss), memory


@dataclass(frozen=True)
class Training:
    """What a round is the same in for all clients."""

    model: Model
    sgd: SGD
    rule: Rule

    def of(self, sent: Sent | None) -> Train:
        """The request to those who are sent this, or nothing."""
        return Train(self.model.arch, narrowed(self.model), sent, self.sgd, self.rule)
