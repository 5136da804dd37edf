"""What FedTiny's server makes of a round's answers: the mean of the weights, and that of the gradients at pruned places.

Huang et al., ICDCS 2023 (arXiv 2212.01977; specs/fedtiny §2). Answers are opened one by one; of gradients all are held
until the weights are averaged, since a device counts in both means or in none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import nan

import numpy as np
import torch
from torch import Tensor

from fedbonsai import tree
from fedbonsai.core import Answer, Answers, Device, Fleet, forgetful
from fedbonsai.errors import BadMessage, Unanswered
from fedbonsai.methods.fedtiny.client import Secretly, Train, Trained, train_in_secret
from fedbonsai.stages.codec.bits import Ints
from fedbonsai.stages.masked_upload import Skip, changed
from fedbonsai.stages.pruning.grow_prune import mean_gradients, shortened
from fedbonsai.stages.pruning.places import Gradients, checked
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.robust import MeanRule
from fedbonsai.stages.secure.layout import layout
from fedbonsai.stages.secure.messages import Order
from fedbonsai.stages.secure.server import summed
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
            yield answer.of(update)

    combined = combine_if_any(answers, updates(), start, fleet, skipped, rule)
    found = {id: (share, gradients[id]) for id, share in combined.shares.items()} if combined else {}
    mean = mean_gradients(list(found.values()) if rule.streams else shortened(list(found.values())))
    return Aggregate(combined, mean, tuple(skipped))


def aggregate_in_secret(
    fleet: Fleet, requests: Mapping[Device, Train], order: Order, start: Tree, masks: Tree, counts: Mapping[str, int]
) -> tuple[Aggregate, Iterable[Device]]:
    """As `aggregate`, of sums alone, and who had lost the masks; gradients are by the largest of each device and layer.

    Args:
        fleet: the clients.
        requests: to them.
        order: of the session.
        start: weights from which devices train.
        masks: under which.
        counts: gradients that are asked for, by layer.

    Raises:
        Unanswered: too few devices stayed.
    """
    secret = requests_for(requests, lambda request: Secretly(request, order))
    pruned = {name: np.flatnonzero(~masks[name].reshape(-1).numpy()) for name in counts}
    places = layout(start, masks, None, order.seed)
    wanted = sum(map(len, pruned.values()))
    try:
        found = summed(fleet, train_in_secret, secret, order, start, places, wanted)
    except Unanswered as error:
        if not error.forgot:
            raise
        return Aggregate(None, {}, ()), [Device(id) for id in error.forgot]
    combined = replace(found.combined, mean=tree.add(start, found.combined.mean), whole=True)
    gradients: dict[str, tuple[Ints, Tensor]] = {}
    rest = found.wanted
    for name, at in pruned.items():
        row, rest = rest[: len(at)], rest[len(at) :]
        gradients[name] = at[row != 0], torch.from_numpy(row[row != 0])
    return Aggregate(combined, gradients, ()), map(Device, forgetful(found.silent))
