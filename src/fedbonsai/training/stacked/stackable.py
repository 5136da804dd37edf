"""Whether an order can be trained in a stack, found by a trial of two steps, and else the reason."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from math import isfinite

import torch

from fedbonsai.arch import keeping
from fedbonsai.errors import said
from fedbonsai.training.evaluate import answered, weight_of
from fedbonsai.training.gradients import gradient
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD, Adam, AdamW
from fedbonsai.training.stacked.fit import fit_together
from fedbonsai.training.stacked.network import stacked_net
from fedbonsai.training.stacked.orders import Order, Scan, Scanned
from fedbonsai.training.stacked.scan import scan_together
from fedbonsai.tree import Tree

_found: OrderedDict[object, str] = OrderedDict()

WHOLE = "the network has weights that are whole numbers"


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
        return WHOLE
    arch, weights, *_, own = order.kind
    return _once((arch, weights, order.kind[5], order.me.device, own), lambda: _tried(order))


def scan_refusal(scan: Scan) -> str:
    """Why a scan is done alone; empty where it can be stacked."""
    if any(not value.is_floating_point() for value in scan.model.weights.values()):
        return WHOLE
    return _once(scan.kind, lambda: _scan_tried(scan))


def _once(key: object, trial: Callable[[], str]) -> str:
    if key not in _found:
        _found[key] = trial()
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
            alone = [
                train(one.model, one.me, sgd, one.mask, loss=one.loss, shift=one.shift, frozen=one.frozen)
                for one in small
            ]
    except Exception as error:  # whatever torch.func, or a network of one's own, says
        return f"torch.func refuses it: {said(error, 200)}"
    if not all(_near(a.weights, b.weights, one.model.weights) for a, b, one in zip(ended, alone, small, strict=True)):
        return "in a stack it gives other numbers"
    return ""


def _scan_tried(scan: Scan) -> str:
    """The same of a scan, with a few samples of two clients."""
    small = [replace(scan, samples=scan.samples[:count]) for count in (5, 4)]
    try:
        with keeping():
            if not stacked_net((scan.kind[:2], scan.device), scan.model, scan.device, scan.training).folds:
                return "of its layers the passes of several clients are no faster together"
            found = scan_together(small)
            near = all(_like(ours, one) for ours, one in zip(found, small, strict=True))
    except Exception as error:  # as above
        return f"torch.func refuses it: {said(error, 200)}"
    return "" if near else "in a stack it gives other numbers"


def _like(ours: Scanned, scan: Scan) -> bool:
    """Whether a scan gave what it gives alone."""
    model, weight = scan.model, weight_of(scan.model.arch.objective, scan.samples.y, scan.batch) or 1.0
    if scan.slopes:
        alone = gradient(model, scan.samples, scan.device, scan.batch, scan.training)
        nothing = {name: torch.zeros_like(value) for name, value in alone.items()}
        return _near({name: value / weight for name, value in ours.slopes.items()}, alone, nothing)
    loss, answers = answered(model, scan.samples, scan.device, scan.batch)
    same = ours.answers is not None and ours.answers.shape == answers.shape
    return same and (abs(ours.loss / weight - loss) <= 1e-3 * max(1.0, abs(loss)) or not isfinite(loss))


def _near(ours: Tree, theirs: Tree, start: Tree) -> bool:
    """Whether two ends differ by less than a hundredth of the way, all weights together."""
    apart = moved = 0.0
    for name, value in theirs.items():
        apart += float((ours[name].double() - value.double()).square().sum())
        moved += float((value.double() - start[name].double()).square().sum())
    return apart <= 1e-4 * moved or not torch.tensor(moved).isfinite()
