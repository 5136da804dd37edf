"""A device that changes its masks in the middle of a round: train, trade weights by the gradient of one batch, train on.

What FedDST and FedSGC share: the task's body, and reading an answer whose masks are the device's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedbonsai import training, tree
from fedbonsai.core import Client
from fedbonsai.model import Model
from fedbonsai.stages.pruning.masks import Masks
from fedbonsai.stages.pruning.under_masks import unpacked
from fedbonsai.stages.updates import MOST, Update
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import Tree, Weights, seed_of

Trade = Callable[[Tree, Tree], tuple[Weights, Masks]]  # trained weights, gradients -> weights and masks to go on with


def trained_with_trade(
    model: Model, masks: Tree, me: Client, sgd: Optimizer, after: int, batch: int, trade: Trade
) -> tuple[training.Trained, Masks]:
    """Local training with a change of the masks in it.

    Args:
        model: exactly zero where it is pruned.
        masks: under which it was sent.
        me: whose samples and seed.
        sgd: local training, by epochs.
        after: of its epochs, those that come after the trade.
        batch: samples of the batch whose gradient, at pruned places too, the trade sees.
        trade: what it does.

    Returns:
        The trained weights, with steps and mean loss of both parts, and their masks.
    """
    before = sgd.but(epochs=sgd.epochs - after)
    trained = training.train(model, me, before, mask=masks)
    once = replace(me, seed=seed_of(me.seed, "growth", 0, 0))
    samples = next(training.batches(once, SGD(batch=batch)))
    slopes = training.gradient(model.replace(trained.weights), samples, me.device, batch, training=True)
    weights, new = trade(trained.weights, slopes)
    then = replace(me, seed=seed_of(me.seed, "after", 0, 0))
    last = training.train(model.replace(weights), then, sgd.but(epochs=after), mask=new)
    mean = (before.epochs * trained.loss + after * last.loss) / sgd.epochs
    return replace(last, steps=trained.steps + last.steps, loss=mean), new


def epochs_of_trade(optimizer: Optimizer, after: int) -> list[str]:
    """A fault where local training has no part before and after a trade; empty where it has."""
    if not optimizer.steps and 0 < after < optimizer.epochs:
        return []
    return [
        f"after = {after}, optimizer.epochs = {optimizer.epochs}, optimizer.steps = {optimizer.steps}: a readjusting round "
        "trains before and after; set optimizer.epochs to 2 or more, after below it, and no steps"
    ]


def under_own_masks(
    update: Update, own: Mapping[str, Tensor] | None, like: Tree, old: Tree
) -> tuple[Tree, Tree] | None:
    """Weights and masks of an answer, unless they are damaged, not finite, or the masks keep more or less than those that came.

    Args:
        update: values under the device's masks.
        own: these masks; None where they are still those that came.
        like: weights of the model.
        old: the masks that came.
    """
    masks = own or old
    fits = masks.keys() == old.keys() and all(
        mask.dtype == torch.bool and mask.shape == old[name].shape and int(mask.sum()) == int(old[name].sum())
        for name, mask in masks.items()
    )
    weights = unpacked(update, like, masks) if fits and 0 < update.examples < MOST else {}
    return (weights, masks) if weights and tree.finite(weights) else None
