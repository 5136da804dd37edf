"""What FedTiny's server makes of a round's answers: the mean of the weights, and that of the gradients at pruned places.

Huang et al., ICDCS 2023 (arXiv 2212.01977; specs/fedtiny §2). Answers are opened one by one; of gradients all are held
until the weights are averaged, since a device counts in both means or in none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import nan

from fedbonsai.core import Answer, Answers, Fleet
from fedbonsai.errors import BadMessage
from fedbonsai.methods.fedtiny.client import Trained
from fedbonsai.stages.masked_upload import Skip, changed
from fedbonsai.stages.pruning.grow_prune import mean_gradients, shortened
from fedbonsai.stages.pruning.places import Gradients, checked
from fedbonsai.stages.robust import MeanRule
from fedbonsai.stages.updates import Combined, Update, combine_if_any
from fedbonsai.tree import Tree, Weights


@dataclass(frozen=True)
class Aggregate:
    """Mean weights, or None where all skipped or had lost the masks; mean gradients of the same devices; who skipped."""

    combined: Combined | None
    gradients: Gradients
    skipped: tuple[str, ...]


def aggregate(
    answers: Answers[Trained | Skip],
    start: Tree,
    masks: Tree,
    counts: Mapping[str, int],
    coded: bool,
    fleet: Fleet,
    rule: MeanRule,
) -> Aggregate:
    """Means over the devices whose answers can be used.

    Args:
        answers: of the fleet.
        start: weights from which devices trained.
        masks: under which.
        counts: gradients that were asked for, by layer.
        coded: devices send changes of the weights, as `stages.masked_upload` has it, or the mark of a skip.
        fleet: that was asked.
        rule: how many updates become one. Under all but the plain one no device's gradients count more than the median device's.

    Raises:
        Unanswered: no answer could be used.
    """
    gradients, skipped = dict[str, Gradients](), list[str]()

    def updates() -> Iterator[Answer[Update]]:
        """Answers as weights. One that is damaged comes as no weights, which is dropped, and so are its gradients."""
        for answer in answers:
            value, found, update = answer.value, Weights(), Update({}, 0, 0, nan)
            if isinstance(value, Skip):
                if coded:
                    skipped.append(answer.device.id)
                    continue
            else:
                try:
                    gradients[answer.device.id] = checked(value.pairs, masks, counts)
                    found = changed(value.packed, start, masks) if coded else value.packed.dense(start, masks)
                except BadMessage:
                    pass
                update = Update(found, value.examples, value.steps, value.loss)
            yield Answer(answer.device, update, answer.down, answer.up, answer.work)

    combined = combine_if_any(answers, updates(), start, fleet, skipped, rule)
    found = {id: (share, gradients[id]) for id, share in combined.shares.items()} if combined else {}
    mean = mean_gradients(list(found.values()) if rule.streams else shortened(list(found.values())))
    return Aggregate(combined, mean, tuple(skipped))
