"""What PruneFL's server makes of a round's answers: the mean of the weights, and the sum of the importances.

Jiang et al., TNNLS 2023. Answers are opened one by one; the importances of an update that cannot be used do not count.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite

import torch

from fedbonsai import tree
from fedbonsai.core import Answer, Answers, Device, Fleet, Silence
from fedbonsai.errors import BadMessage, Unanswered
from fedbonsai.methods.prunefl.client import Result, Secretly, Train, train_in_secret
from fedbonsai.methods.prunefl.importance import Wanted, clip_of, counted, of_squares
from fedbonsai.methods.prunefl.local_layers import Own
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.pruning.masks import masked
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.robust import Ballot, MeanRule
from fedbonsai.stages.secure.layout import layout
from fedbonsai.stages.secure.messages import Order
from fedbonsai.stages.secure.server import summed
from fedbonsai.stages.updates import MOST, Combined, Update, combine_if_any
from fedbonsai.tree import Tree, Weights


@dataclass(frozen=True)
class Aggregate:
    """What came of a round.

    Attributes:
        combined: mean weights; None where all had lost the masks.
        importance: sum over the devices, by name.
        rest: the same of everything that is never pruned.
        values: importances that each device sent; None where they were not asked for.
    """

    combined: Combined | None
    importance: Weights
    rest: float
    values: int | None


def aggregate(
    answers: Answers[Result], start: Tree, masks: Tree, wanted: Wanted, lr: float, fleet: Fleet, rule: MeanRule
) -> Aggregate:
    """The mean and the sum over the devices whose answers can be used.

    Args:
        answers: of the fleet.
        start: weights from which devices trained.
        masks: under which.
        wanted: what devices were to do with importances.
        lr: learning rate of the round.
        fleet: that was asked.
        rule: how many updates become one, and how importances do: then their sum is so many times what the rule makes of them.

    Raises:
        Unanswered: no answer could be used.
    """
    z, rest = {name: torch.zeros_like(start[name]) for name in masks}, 0.0
    ballot, rests = Ballot(rule, z), list[float]()

    def updates() -> Iterator[Answer[Update]]:
        """Weights under the masks; an update that is damaged goes on empty, so that `combine` drops it."""
        nonlocal z, rest
        for answer in answers:
            value, weights = answer.value, Weights()
            try:
                if not isinstance(value.update.result, Packed):
                    raise BadMessage("expected packed weights")
                found = value.update.result.dense(start, masks)
                if wanted.asked:
                    own = importance_of(value, found, start, masks, lr if wanted.derived else 0.0)
                    if rule.streams:
                        z = tree.add(z, own)
                        rest += value.rest
                    else:
                        ballot.add(answer.device, own)
                        rests.append(value.rest)
                weights = masked(found, masks)
            except BadMessage:
                pass
            yield answer.of(replace(value.update, result=weights))

    combined = combine_if_any(answers, updates(), start, fleet, rule=rule)
    if len(ballot):
        count = len(ballot)
        z = {name: count * value for name, value in ballot.close(fleet).change.items()}
        rest = count * statistics.median(rests)
    values = sum(int((~mask).sum()) if wanted.derived else mask.numel() for mask in masks.values())
    return Aggregate(combined, z, rest, values if wanted.asked else None)


def aggregate_in_secret(
    fleet: Fleet,
    requests: Mapping[Device, Train],
    own: Own,
    span: int,
    order: Order,
    start: Tree,
    masks: Tree,
) -> tuple[Aggregate, Mapping[Device, Silence]]:
    """As `aggregate`, of sums alone, and who was silent.

    Args:
        fleet: the clients.
        requests: to them.
        own: the local layers.
        span: rounds whose importances add up.
        order: of the session.
        start: weights from which devices train.
        masks: under which.

    Raises:
        Unanswered: too few devices stayed.
    """
    told = next(iter(requests.values()))
    places, wanted = layout(start, masks, None, order.seed), told.wanted.asked
    values = sum(mask.numel() for mask in masks.values())
    secret = requests_for(requests, lambda request: Secretly(request, own, span, order))
    try:
        found = summed(fleet, train_in_secret, secret, order, start, places, (values + 1) * wanted, finer=True)
    except Unanswered as error:
        if not error.forgot:
            raise
        return Aggregate(None, {}, 0.0, None), {Device(id): Silence(Device(id), "", forgot=True) for id in error.forgot}
    combined = replace(found.combined, mean=tree.add(start, found.combined.mean), whole=True)
    if not wanted:
        return Aggregate(combined, {}, 0.0, None), found.silent
    most = clip_of(order.how.clip, told.sgd.lr, combined.examples * span)
    z, rest = of_squares(found.wanted, masks, counted(start, masks), most)
    return Aggregate(combined, z, rest, values), found.silent


def importance_of(value: Result, weights: Tree, start: Tree, masks: Tree, lr: float) -> Weights:
    """One device's importances; with ``lr`` those of kept weights are derived from what it trained.

    Raises:
        BadMessage: they are missing, negative or not finite, or the weights are not.
    """
    examples = value.update.examples
    if value.importance is None or not (isfinite(value.rest) and value.rest >= 0 and 0 < examples < MOST):
        raise BadMessage("importances are missing, or not finite")
    pruned = {name: ~mask for name, mask in masks.items()} if lr else {}
    z = value.importance.dense({name: start[name] for name in masks}, pruned)
    if lr:
        kept = {name: examples * ((weights[name] - start[name]) / lr).square() for name in masks}
        z = {name: torch.where(masks[name], kept[name], z[name]) for name in masks}
    if not (tree.finite(weights) and tree.finite(z)) or any(bool((part < 0).any()) for part in z.values()):
        raise BadMessage("importances are negative, or not finite")
    return z
