"""How much each weight matters: the squared sum of a device's gradients over its local steps (PruneFL).

With plain SGD a kept weight's summed gradient is its change by the learning rate, so that importances of pruned weights
alone need to travel. What a device does with them is in `client`, what the server does in `aggregate`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedbonsai import training
from fedbonsai.core import Client
from fedbonsai.errors import NotFinite
from fedbonsai.model import Model
from fedbonsai.stages.secure.layout import Floats
from fedbonsai.training.batches import epochs
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.sparse import Rows
from fedbonsai.training.steps import Trained
from fedbonsai.tree import Tree, Weights, generator
from fedbonsai.wire import message


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


def processed(count: int, sgd: Optimizer) -> int:
    """n_k: samples that a device with ``count`` of them goes through in a round; E batches, not its whole data."""
    return sum(end - begin for _, cuts in epochs(count, sgd, generator(0)) for begin, end in cuts)


def trained(model: Model, masks: Tree, me: Client, sgd: Optimizer, wanted: Wanted) -> tuple[Trained, Weights]:
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


def clip_of(clip: float, lr: float, count: float) -> float:
    """The importance of a gradient that would move a weight by ``clip``, of so many samples: the largest that a code can tell."""
    return count * (clip / lr) ** 2


def counted(weights: Tree, masks: Tree) -> int:
    """How many weights are never pruned."""
    return sum(value.numel() for name, value in weights.items() if name not in masks and value.is_floating_point())


def squares(z: Tree, rest: float, others: int, most: float) -> Floats:
    """Importances as parts of the largest in [0, 1], in the order of ``z``; the last is the mean of what is never pruned.

    Args:
        z: importances by name.
        rest: of what is never pruned, together.
        others: how many weights that are.
        most: the largest (`clip_of`); what is beyond is cut to it.

    Raises:
        NotFinite: one is NaN or infinite; the client counts as silent.
    """
    values = np.concatenate([*(value.double().numpy().ravel() for value in z.values()), [rest / max(1, others)]]) / most
    if not np.isfinite(values).all():
        raise NotFinite("importances are not finite; lower the learning rate")
    return np.minimum(values, 1.0)


def of_squares(values: Floats, like: Tree, others: int, most: float) -> tuple[Weights, float]:
    """Inverse of `squares`, of a mean of devices': importances by name, and of what is never pruned.

    Args:
        values: the means; below zero nothing is.
        like: tensors of the same forms.
        others: how many weights are never pruned.
        most: the largest, of all devices together.
    """
    flat = torch.from_numpy(values * most).float()
    z = zip(like.items(), flat[:-1].split([value.numel() for value in like.values()]), strict=True)
    return {name: part.reshape(value.shape) for (name, value), part in z}, float(flat[-1]) * others
