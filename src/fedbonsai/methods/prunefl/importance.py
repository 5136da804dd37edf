"""How much each weight matters: the squared sum of a device's gradients over its local steps (PruneFL).

`measured` is the device's side: it sends what it is asked for and may accumulate from one reconfiguration to the next.
`opened` is the server's: it decodes updates and adds their importances up. With plain SGD a kept weight's summed gradient
is its change by the learning rate, so that importances of pruned weights alone need to travel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from fedbonsai import training, tree
from fedbonsai.core import Answer, Client, Memory
from fedbonsai.errors import BadMessage
from fedbonsai.model import Model
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.held_masks import pack
from fedbonsai.stages.pruning.masks import masked
from fedbonsai.stages.updates import MOST, Update
from fedbonsai.training.batches import epochs
from fedbonsai.training.optimizers import SGD
from fedbonsai.training.sparse import Rows
from fedbonsai.training.steps import Trained
from fedbonsai.tree import Tree, Weights, generator
from fedbonsai.wire import message

KEPT = "importance"  # what a client accumulates from one reconfiguration to the next


@message("prunefl/wanted@1")
class Wanted:
    """What a device shall do with the importances of this round.

    Attributes:
        asked: send them.
        accumulate: add those of the rounds since the last reconfiguration, in round ``since``.
        derived: send those of pruned weights only; the server derives the others.
    """

    asked: bool
    accumulate: bool
    derived: bool
    since: int

    def values(self, masks: Tree) -> int | None:
        """How many importances a device sends; None where it sends none."""
        if not self.asked:
            return None
        return sum(int((~mask).sum()) if self.derived else mask.numel() for mask in masks.values())


@message("prunefl/update@1")
class Result:
    """Weights under the mask; importances by name where asked, and the sum of those of what is never pruned."""

    update: Update
    importance: Packed | None = None
    rest: float = 0.0


def plain(sgd: SGD) -> bool:
    """Whether a weight's change is exactly the learning rate times the sum of its gradients."""
    return sgd.lr > 0 and not (sgd.momentum or sgd.weight_decay or sgd.proximal or sgd.clip)


def processed(count: int, sgd: SGD) -> int:
    """n_k: samples that a device with ``count`` of them goes through in a round; E batches, not its whole data."""
    return sum(end - begin for _, cuts in epochs(count, sgd, generator(0)) for begin, end in cuts)


def trained(model: Model, masks: Tree, me: Client, sgd: SGD, wanted: Wanted) -> tuple[Trained, Weights]:
    """Local training under masks, and where they are wanted the gradients of all weights, added up over its steps.

    Where training is sparse (`sparse_form`) a step's gradients come in tiles: the sums are the only dense tensors.
    """
    summed: Weights = {}
    if not (wanted.asked or wanted.accumulate):
        return training.train(model, me, sgd, masks), summed
    return training.train_growing(model, me, sgd, masks, summing(model.weights, summed)), summed


def summing(like: Tree, into: Weights) -> Rows:
    """Sees gradients, whole or some rows at a time, and adds them up by name."""

    def add(name: str, first: int, rows: Tensor) -> None:
        if name not in into:
            into[name] = torch.zeros_like(like[name], device=rows.device)
        (into[name][first : first + len(rows)] if rows.dim() else into[name]).add_(rows)

    return add


def importances(summed: Tree, masks: Tree, examples: float) -> tuple[Weights, float]:
    """Importances z of what masks touch, and the sum of it over everything else.

    Args:
        summed: gradients of a client's local steps, added up before they are squared: n (sum_e g)^2. Used up.
        masks: names that count one by one.
        examples: n, samples processed.
    """
    squares: dict[str, Tensor] = {name: value.square_().mul_(examples) for name, value in summed.items()}
    rest = sum(float(value.double().sum()) for name, value in squares.items() if name not in masks)
    return {name: squares[name] for name in masks}, float(rest)


def measured(
    trained: Trained, summed: Tree, masks: Tree, sgd: SGD, wanted: Wanted, me: Client, memory: Memory
) -> tuple[Result, Memory]:
    """A device's answer, and its memory with what it accumulates.

    Args:
        trained: by local training under the masks.
        summed: gradients, as `summing` added them up; empty unless they are asked for or accumulated.
        masks: of this round.
        sgd: of this round.
        wanted: what to do with importances.
        me: whose seed.
        memory: as it is before.
    """
    examples = processed(trained.examples, sgd)
    update = Update(pack(trained.weights, masks, me.seed), examples, trained.steps, trained.loss)
    if not (wanted.asked or wanted.accumulate):
        return Result(update), memory
    z, rest = importances({name: value.cpu() for name, value in summed.items()}, masks, examples)
    before: dict[str, Any] = memory.get(KEPT, {})
    if wanted.accumulate and before.get("since") == wanted.since:
        z, rest = tree.add(z, before["z"]), rest + before["rest"]
    memory = {name: value for name, value in memory.items() if name != KEPT}
    if not wanted.asked:
        return Result(update), {**memory, KEPT: {"since": wanted.since, "z": z, "rest": rest}}
    pruned = {name: ~mask for name, mask in masks.items()} if wanted.derived else {}
    return Result(update, pack(z, pruned, me.seed), rest), memory


@dataclass
class Gathered:
    """Importances of a reconfiguration, as answers come."""

    z: Weights
    rest: float = 0.0

    @staticmethod
    def zero(weights: Tree, masks: Tree) -> Gathered:
        """Before the first answer."""
        return Gathered({name: torch.zeros_like(weights[name]) for name in masks})


def opened(
    answers: Iterable[Answer[Result]], start: Tree, masks: Tree, wanted: Wanted, lr: float, to: Gathered
) -> Iterator[Answer[Update]]:
    """Updates unpacked under the masks; one that cannot be used goes on empty, so that `combine` drops it.

    Args:
        answers: of a round.
        start: weights from which devices trained.
        masks: under which.
        wanted: what they were asked for.
        lr: learning rate of the round.
        to: takes the importances of every update that is used.
    """
    for answer in answers:
        value = answer.value
        update = replace(value.update, result={})
        try:
            if not isinstance(value.update.result, Packed):
                raise BadMessage("expected packed weights")
            weights = value.update.result.dense(start, masks)
            if wanted.asked:
                _gather(value, weights, start, masks, lr if wanted.derived else 0.0, to)
            update = replace(value.update, result=masked(weights, masks))
        except BadMessage:
            pass
        yield Answer(answer.device, update, answer.down, answer.up)


def _gather(value: Result, weights: Tree, start: Tree, masks: Tree, lr: float, to: Gathered) -> None:
    """Add one device's importances, or raise before any of them counts; with ``lr`` those of kept weights are derived."""
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
    to.z, to.rest = tree.add(to.z, z), to.rest + value.rest
