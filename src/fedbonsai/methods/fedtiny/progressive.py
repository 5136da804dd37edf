"""A round of training under masks in which devices may also send gradients: what is asked, what a device does, what is read.

FedTiny (Huang et al., ICDCS 2023, arXiv 2212.01977; specs/fedtiny §2). A device answers with what it trained and, in
adjusting rounds, the largest gradients at pruned places; the server averages the ones and keeps the others until it
adjusts. With a rule devices send coded changes, and only if a gate lets them (`stages.masked_upload`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import nan

from fedbonsai import training
from fedbonsai.core import Answer, Client, Memory, task
from fedbonsai.errors import BadMessage
from fedbonsai.methods.fedtiny.candidates import without
from fedbonsai.methods.fedtiny.grow_prune import Gradients, checked, mean_gradients
from fedbonsai.methods.fedtiny.top_gradients import Pairs, top_gradients
from fedbonsai.model import Arch, Model
from fedbonsai.stages import masked_upload, selective
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.held_masks import Sent, pack, received
from fedbonsai.stages.masked_upload import Skip, changed
from fedbonsai.stages.selective import Rule
from fedbonsai.stages.updates import Update
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import Tree, seed_of
from fedbonsai.wire import message


@message("fedtiny/train@1")
class Train:
    """Model, how to train it, and how many gradients of which layers to send back (none in ordinary rounds)."""

    arch: Arch
    sent: Sent
    sgd: SGD
    counts: Mapping[str, int]
    batch: int


@message("fedtiny/selective@1")
class Selective:
    """An ordinary request, and how and when what was learned goes up."""

    train: Train
    rule: Rule


@dataclass(frozen=True)
class Training:
    """What a round is the same in for all devices."""

    arch: Arch
    sgd: SGD
    counts: Mapping[str, int]
    batch: int
    rule: Rule | None

    def under(self, sent: Sent) -> Train | Selective:
        """The request to those who are sent this."""
        how = Train(self.arch, sent, self.sgd, self.counts, self.batch)
        return how if self.rule is None else Selective(how, self.rule)


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
    start, masks, memory = received(request.sent, request.arch, memory)
    model, memory = Model(request.arch, start), without(memory)
    if rule is None:
        found = training.train(model, me, request.sgd, mask=masks).finite()
        packed = pack(found.weights, masks, me.seed)
    else:
        found, loss = selective.trained(model, me, request.sgd, rule.gate, masks)
        packed, memory = masked_upload.sent(rule, start, found.weights, masks, loss, memory, me)
    if packed is None:
        return Skip(), memory
    pairs = largest(model.replace(found.weights), masks, me, request.sgd, request.counts, request.batch)
    return Trained(packed, found.examples, found.steps, found.loss, pairs), memory


def largest(
    model: Model, masks: Tree, me: Client, sgd: SGD, counts: Mapping[str, int], batch: int
) -> Mapping[str, Pairs]:
    """The largest gradients of one batch at pruned places; none, and no batch, in ordinary rounds.

    Args:
        model: as it was trained.
        masks: by name.
        me: who trained.
        sgd: how.
        counts: gradients of each layer.
        batch: samples.
    """
    if not counts:
        return {}
    once = replace(me, seed=seed_of(me.seed, "growth", 0, 0))
    return top_gradients(model, once, masks, counts, next(training.batches(once, SGD(batch=batch))), sgd)


@dataclass
class Gathered:
    """What devices sent of their gradients in a round, while their weights are averaged.

    With ``selective`` devices send changes of the weights, as `stages.masked_upload` has it, or the mark of a skip.
    """

    masks: Tree
    counts: Mapping[str, int]
    selective: bool = False
    pairs: dict[str, Gradients] = field(default_factory=dict[str, Gradients])
    skipped: list[str] = field(default_factory=list[str])

    def updates(self, answers: Iterable[Answer[Trained | Skip]], like: Tree) -> Iterator[Answer[Update]]:
        """Answers as weights. One that is damaged comes as no weights, which is dropped, and so are its gradients."""
        for answer in answers:
            value = answer.value
            if isinstance(value, Skip):
                if self.selective:
                    self.skipped.append(answer.device.id)
                else:
                    yield Answer(answer.device, Update({}, 0, 0, nan), answer.down, answer.up, answer.work)
                continue
            try:
                self.pairs[answer.device.id] = checked(value.pairs, self.masks, self.counts)
                found = (
                    changed(value.packed, like, self.masks) if self.selective else value.packed.dense(like, self.masks)
                )
            except BadMessage:
                found = {}
            update = Update(found, value.examples, value.steps, value.loss)
            yield Answer(answer.device, update, answer.down, answer.up, answer.work)

    def mean(self, shares: Mapping[str, float]) -> Gradients:
        """Mean gradients over the devices whose weights were used, by their shares of the samples."""
        return mean_gradients([(share, self.pairs[id]) for id, share in shares.items()])
