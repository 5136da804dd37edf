"""Whether an order can be trained in a stack, found by a trial of two steps, and else the reason."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import torch

from fedbonsai.arch import keeping
from fedbonsai.errors import said
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD, Adam, AdamW
from fedbonsai.training.stacked.fit import fit_together
from fedbonsai.training.stacked.orders import Order
from fedbonsai.tree import Tree

_found: OrderedDict[object, str] = OrderedDict()


def refusal(order: Order) -> str:
    """Why an order is trained alone; empty where it can be stacked."""
    sgd = order.sgd
    if type(sgd) not in (SGD, Adam, AdamW):
        return f"optimiser {sgd.choice_name!r} may look at all weights at once"
    if sgd.precision != "fp32" or sgd.channels_last:
        return "stacks compute in fp32 and in the usual layout"
    if sgd.sparse != "off" and order.mask and order.me.device == "cpu":
        return "sparse steps multiply each client's kept weights alone"
    if any(not value.is_floating_point() for value in order.model.weights.values()):
        return "the network has weights that are whole numbers"
    key = order.kind[0], order.kind[1], order.kind[5], order.me.device
    if key not in _found:
        _found[key] = _tried(order)
        while len(_found) > 64:
            _found.popitem(last=False)
    return _found[key]


def _tried(order: Order) -> str:
    """What goes wrong when two clients make two steps in a stack, one with a sample less; empty where nothing does."""
    sgd = order.sgd.but(epochs=1, steps=2)
    parts = [order.me.train[: max(2, 2 * sgd.batch)], order.me.train[: max(2, 2 * sgd.batch - 1)]]
    small = [replace(order, me=replace(order.me, train=part), sgd=sgd, hook=None) for part in parts]
    try:
        with keeping():
            ended = fit_together(small)
            alone = [train(one.model, one.me, sgd, one.mask, shift=one.shift, frozen=one.frozen) for one in small]
    except Exception as error:  # whatever torch.func, or a network of one's own, says
        return f"torch.func refuses it: {said(error, 200)}"
    if not all(_near(a.weights, b.weights, one.model.weights) for a, b, one in zip(ended, alone, small, strict=True)):
        return "in a stack it gives other numbers"
    return ""


def _near(ours: Tree, theirs: Tree, start: Tree) -> bool:
    """Whether two ends differ by less than a hundredth of the way, all weights together."""
    apart = moved = 0.0
    for name, value in theirs.items():
        apart += float((ours[name].double() - value.double()).square().sum())
        moved += float((value.double() - start[name].double()).square().sum())
    return apart <= 1e-4 * moved or not torch.tensor(moved).isfinite()
