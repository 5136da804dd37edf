"""A round of training under masks in which devices may also send gradients: the answer, made and read.

FedTiny, section 2 (Huang et al., ICDCS 2023, arXiv 2212.01977). A device answers with what it trained and, in adjusting
rounds, the largest gradients at pruned places; the server averages the ones and keeps the others until it adjusts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import nan

from fedbonsai import local, tree
from fedbonsai.core import Answer, Client
from fedbonsai.errors import BadMessage, NotFinite
from fedbonsai.local import SGD
from fedbonsai.model import Model
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.held_masks import pack
from fedbonsai.stages.masked_upload import Skip, changed
from fedbonsai.stages.pruning.grow_prune import Gradients, checked, mean_gradients
from fedbonsai.stages.pruning.top_gradients import Pairs, top_gradients
from fedbonsai.stages.updates import Update
from fedbonsai.tree import Tree, seed_of
from fedbonsai.wire import message


@message("fedtiny/trained@1")
class Trained:
    """Trained weights under the masks that came, and the largest gradients at pruned places."""

    packed: Packed
    examples: int
    steps: int
    loss: float
    pairs: Mapping[str, Pairs]


def trained(model: Model, masks: Tree, me: Client, sgd: SGD, counts: Mapping[str, int], batch: int) -> Trained:
    """Local epochs under the masks, then, if asked, the gradients of one batch at the trained weights.

    Args:
        model: to start from.
        masks: by name.
        me: who trains.
        sgd: how.
        counts: gradients to send of each layer; none in ordinary rounds.
        batch: samples of these gradients.

    Raises:
        NotFinite: weights or gradients are not.
    """
    found = local.train(model, me, sgd, mask=masks)
    if not tree.finite(found.weights):
        raise NotFinite(f"training gave values that are not finite (loss {found.loss}); lower the learning rate")
    pairs = largest(model.replace(found.weights), masks, me, sgd, counts, batch)
    return Trained(pack(found.weights, masks, me.seed), found.examples, found.steps, found.loss, pairs)


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
    return top_gradients(model, once, masks, counts, next(local.batches(once, SGD(batch=batch))), sgd)


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
