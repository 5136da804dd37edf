"""The way up: a client's change of the weights, packed by a chain, and what the server makes of many of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedbonsai import tree
from fedbonsai.core import Answer, Answers, Client, Fleet, Memory, forgetful
from fedbonsai.errors import BadMessage, Unanswered
from fedbonsai.stages.codec import Chain, Packed, TopK, apply
from fedbonsai.stages.robust import Ballot, MeanRule, Plain
from fedbonsai.stages.robust.ballot import STATISTICS
from fedbonsai.stages.usable import Usable
from fedbonsai.stages.weighting import Weighting, weights
from fedbonsai.training.steps import Trained
from fedbonsai.tree import Tree, Weights, part_of
from fedbonsai.wire import message

MOST = 1 << 40  # samples that a client can claim
PLAIN = Plain()
FEEDBACK = "feedback"  # what error feedback keeps, in a client's memory


@message("parts@1")
class Parts:
    """Packed changes of several parts of a model; a part is all weights whose names begin with its name and a dot."""

    packed: Mapping[str, Packed]

    def change(self, like: Tree) -> Weights:
        """The change of the whole, in the order of ``like``, of its floating tensors.

        Raises:
            BadMessage: a part is damaged, or they do not make up the whole.
        """
        found: Weights = {}
        for part, packed in self.packed.items():
            found |= packed.change(part_of(like, part))
        names = [name for name, value in like.items() if value.is_floating_point()]
        if found.keys() != set(names):
            raise BadMessage(f"parts {sorted(self.packed)} do not make up the model")
        return {name: found[name] for name in names}


@message("update@1")
class Update:
    """A client's result: its weights as they are, or the packed change of what it started from."""

    result: Mapping[str, Tensor] | Packed | Parts
    examples: int
    steps: int
    loss: float
    withheld: float = 0.0  # norm of what error feedback holds back, by that of the change


def update(trained: Trained, start: Tree, chain: Chain, memory: Memory, me: Client, t: int) -> tuple[Update, Memory]:
    """A client's answer, and its memory with what error feedback keeps.

    Raises:
        NotFinite: training gave values that are NaN or infinite; the client counts as silent, its memory stays.
    """
    trained = trained.finite()
    if not chain.stages:
        return Update(trained.weights, trained.examples, trained.steps, trained.loss), memory
    change = tree.subtract(trained.weights, start)
    packed, held = apply(chain, change, memory.get(FEEDBACK, {}), me.seed, t)
    withheld = 0.0
    if (stage := chain.feedback) is not None:
        memory = {**memory, FEEDBACK: held}
        if size := tree.norm(change):
            withheld = tree.norm(stage.withheld(held[stage.key])) / size
    return Update(packed, trained.examples, trained.steps, trained.loss, withheld), memory


def ramped(chain: Chain, rounds: int, t: int) -> Chain:
    """The chain of round ``t``: all values in the first rounds (rho = 1), and tensors below ``min_numel`` whole as ever."""
    sparsifier = chain.sparsifier
    if t >= rounds or sparsifier is None:
        return chain
    if "values" not in chain.parts:
        return Chain()  # nothing is lost any more, so there is nothing to feed back
    everything = TopK(fraction=1.0, min_numel=sparsifier.min_numel)
    stages = (everything if stage is sparsifier else stage for stage in chain.stages)
    return Chain(tuple(stage for stage in stages if stage.family != "positions"))


def idle_ramp(chain: Chain, rounds: int) -> tuple[bool, str]:
    """Whether a ramp has no effect, and the text that says so."""
    idle = rounds > 0 and "sparsifier" not in chain.parts
    return idle, f"ramp = {rounds} has no effect without a sparsifier in uplink: set it to 0"


@dataclass(frozen=True)
class Combined:
    """What came of a round: the mean of the new weights (or of the changes), and figures about it."""

    mean: Weights
    whole: bool  # the mean is of weights; else of changes
    examples: int
    loss: float
    dropped: int
    devices: tuple[str, ...]  # whose updates were used
    shares: dict[str, float] = field(default_factory=dict[str, float])
    distances: dict[str, float] = field(default_factory=dict[str, float])
    withheld: float = 0.0
    clipped: float = 0.0  # share of values that a secure sum cut

    @property
    def spread(self) -> dict[str, float]:
        """With weights by distance, how far apart updates and their shares were; else nothing."""
        if not self.distances:
            return {}
        return {
            "share_min": min(self.shares.values()),
            "share_max": max(self.shares.values()),
            "distance_mean": sum(self.distances.values()) / len(self.distances),
        }


def combine(
    answers: Iterable[Answer[Update]],
    start: Tree,
    fleet: Fleet,
    how: Weighting | None = None,
    factors: Mapping[str, float] | None = None,
    *,
    coded: bool = False,
    rule: MeanRule = PLAIN,
) -> Combined:
    """Mean of the updates; one that is damaged, not finite or of another kind is dropped, with what its client kept.

    Without distances and by the plain rule updates are added as they come, in the memory of one. With distances they are
    held packed and decoded once for the mean, once for its distances and once for the result; any other rule holds them
    unpacked. An answer to an earlier round's request counts by its weight, and the mean change is as much smaller:
    ``sum n s change / sum n`` (FedBuff).

    Args:
        answers: of the fleet.
        start: weights from which devices trained.
        fleet: that was asked.
        how: what an update counts.
        factors: by device, how much more it counts (`sampling.Sticky`); not with distances.
        coded: whether devices were told to pack changes; else they send weights as they are.
        rule: how many updates become one; all but the plain one let every device count alike.

    Raises:
        Unanswered: no update could be used, too few for the rule, or their mean exceeds its type.
    """
    how = how or Weighting()
    usable = Usable(answers, fleet, lambda answer: _weights(answer.value, start, coded))
    if how.needs_distances:
        return _by_distance(usable, start, how)
    if not rule.streams:
        return _by_rule(usable, start, fleet, rule, coded)
    mean, total, loss, withheld, examples, damped = tree.Mean(), 0.0, 0.0, 0.0, 0, False
    devices, counts = list[str](), list[float]()
    for answer, found in usable:
        share = answer.value.examples if how.prior == "examples" else 1
        if factors:
            share *= factors[answer.device.id]
        mean.add(found, share * answer.weight if answer.weight != 1 else share)
        damped = damped or answer.weight != 1
        devices.append(answer.device.id)
        counts.append(share)
        withheld += share * answer.value.withheld
        total, loss, examples = total + share, loss + share * answer.value.loss, examples + answer.value.examples
    if not mean.weight:
        raise usable.none()
    shares = dict(zip(devices, (share / total for share in counts), strict=True))
    found = _finite(mean)
    if damped:
        found = {name: value * (mean.weight / total) for name, value in found.items()}
    return Combined(
        found, not coded, examples, loss / total, usable.dropped, tuple(devices), shares, withheld=withheld / total
    )


def combine_if_any(
    answers: Answers[Any],
    updates: Iterable[Answer[Update]],
    start: Tree,
    fleet: Fleet,
    skipped: Collection[str] = (),
    rule: MeanRule = PLAIN,
) -> Combined | None:
    """As `combine`; None where devices skipped or had lost what they held, and nothing else came.

    Args:
        answers: of the fleet.
        updates: the same, opened one by one.
        start: weights from which devices trained.
        fleet: that was asked.
        skipped: who sent the mark of a skip, once all updates have been read.
        rule: how many updates become one.

    Raises:
        Unanswered: no update could be used, and nothing was learned of any device.
    """
    try:
        return combine(updates, start, fleet, rule=rule)
    except Unanswered:
        if not (skipped or forgetful(answers.silent)):
            raise
        return None


def _by_rule(usable: Usable[Update, Tree], start: Tree, fleet: Fleet, rule: MeanRule, coded: bool) -> Combined:
    """What a rule makes of the updates; the loss is the median of those that are told, which one liar cannot move far."""
    ballot, held = Ballot(rule, start), list[Answer[Update]]()
    for answer, found in usable:
        ballot.add(answer.device, found if coded else tree.subtract(found, start))
        held.append(answer)
    if not held:
        raise usable.none()
    elected = ballot.close(fleet)
    usable.refused |= elected.refused
    used = [answer for answer in held if answer.device.id in elected.shares]
    return Combined(
        elected.change if coded else elected.weights,
        not coded,
        sum(answer.value.examples for answer in used),
        statistics.median(answer.value.loss for answer in used),
        usable.dropped,
        tuple(elected.shares),
        dict(elected.shares),
        withheld=statistics.fmean(answer.value.withheld for answer in used),
    )


def _by_distance(usable: Usable[Update, Tree], start: Tree, how: Weighting) -> Combined:
    held: list[Answer[Update]] = []
    norms: list[float] = []
    plain = tree.Mean()
    for answer, found in usable:
        change = found if isinstance(answer.value.result, Packed | Parts) else tree.subtract(found, start)
        held.append(answer)
        norms.append(tree.norm(change))
        plain.add(change, answer.value.examples if how.prior == "examples" else 1)
    if not plain.weight:
        raise usable.none()
    middle = plain.result()
    if how.reference == "mean":
        distances = [tree.norm(tree.subtract(change, middle)) for change in _changes(held, start)]
    else:
        by = [a.value.steps if how.reference == "global_step" else 1 for a in held]
        distances = [norm / max(1, steps) for norm, steps in zip(norms, by, strict=True)]
    shares = weights(distances, [answer.value.examples for answer in held], how)
    if not sum(shares):
        raise Unanswered("no update has a finite distance")
    result = tree.Mean()
    for share, change in zip(shares, _changes(held, start), strict=True):
        result.add(change, share)
    loss = math.fsum(share * answer.value.loss for share, answer in zip(shares, held, strict=True)) / sum(shares)
    ids = [answer.device.id for answer in held]
    return Combined(
        _finite(result),
        False,
        sum(answer.value.examples for answer in held),
        loss,
        usable.dropped,
        tuple(ids),
        dict(zip(ids, shares, strict=True)),
        dict(zip(ids, distances, strict=True)),
        math.fsum(share * answer.value.withheld for share, answer in zip(shares, held, strict=True)) / sum(shares),
    )


def _finite(mean: tree.Mean) -> Weights:
    """The mean, which can still exceed its type where every part of it was finite."""
    found = mean.result()
    if not tree.finite(found):
        raise Unanswered(
            "the mean of the updates is beyond what its type holds; lower the learning rate, or set method.mean"
        )
    return found


def _changes(held: list[Answer[Update]], start: Tree) -> Iterator[Weights]:
    for answer in held:
        result = answer.value.result
        yield result.change(start) if isinstance(result, Packed | Parts) else tree.subtract(result, start)


def statistics_of(weights: Tree) -> Weights:
    """Running means and variances of batch normalisation."""
    return {name: value for name, value in weights.items() if name.endswith(STATISTICS)}


def _weights(value: Update, start: Tree, coded: bool) -> Tree | None:
    """Decoded weights or changes of an update, if they can be used.

    Raises:
        BadMessage: it is damaged, or weights where a change was asked for, or the other way round.
    """
    if coded != isinstance(value.result, Packed | Parts):
        raise BadMessage(f"expected {'a packed change' if coded else 'weights as they are'}, got the other")
    found = value.result.change(start) if isinstance(value.result, Packed | Parts) else value.result
    forms = {n: (form.shape, form.dtype) for n, form in start.items() if form.is_floating_point() or not coded}
    fits = forms == {name: (form.shape, form.dtype) for name, form in found.items()}
    if not (fits and tree.finite(found) and 0 < value.examples < MOST):
        return None
    return {name: found[name] for name in forms}  # in the server's order, whatever the client's was


def change_of(value: Update, start: Tree) -> Weights | None:
    """What an update changed, of floating tensors, if it can be used.

    Raises:
        BadMessage: it is damaged.
    """
    coded = isinstance(value.result, Packed | Parts)
    found = _weights(value, start, coded)
    if found is None:
        return None
    return dict(found) if coded else tree.subtract(found, start)


def apply_update(weights: Tree, start: Tree, combined: Combined, rate: float = 1.0) -> Weights:
    """The new weights of the server.

    Args:
        weights: of the server.
        start: from which the clients trained; the same unless the way down loses something.
        combined: of this round.
        rate: the server's step.
    """
    change = combined.mean if not combined.whole else None
    if change is None:
        if rate == 1 and start is weights:
            return combined.mean
        change = tree.subtract(combined.mean, start)
    # statistics are measured, not learned: a step of more than one would overshoot, variances even below zero
    still = statistics_of(change)
    return tree.add(tree.add(weights, {n: v for n, v in change.items() if n not in still}, rate), still)
