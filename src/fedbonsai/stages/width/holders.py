"""The mean of networks of several sizes: each value over the devices that hold it; what nobody held stays as it was."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from fedbonsai import tree
from fedbonsai.core import Answer, Answers, Device, Fleet
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model, cached_module
from fedbonsai.objectives import Classification
from fedbonsai.stages.pruning.count import Size
from fedbonsai.stages.pruning.masks import Masks
from fedbonsai.stages.pruning.readjust import MaskedMean
from fedbonsai.stages.pruning.units import example
from fedbonsai.stages.robust import Ballot, MeanRule
from fedbonsai.stages.static_norm import learned
from fedbonsai.stages.updates import MOST, PLAIN, Usable
from fedbonsai.stages.width.slices import Slice
from fedbonsai.stages.width.submodel import Trained
from fedbonsai.tree import Tree, Weights
from fedbonsai.wire import message

Weigh = Literal["equal", "examples"]


@message("width/output@1")
class Output:
    """Tensors with a row for each class, and how many classes there are; none where all rows count alike."""

    names: tuple[str, ...] = ()
    classes: int = 0


ALL = Output()


def output_of(model: Model, size: Size) -> Output:
    """The last layer, whose rows count for a device that has the class; none where no classes are learned.

    Raises:
        ConfigError: the last layer has not one output for each class.
    """
    if not isinstance(model.arch.objective, Classification):
        return Output()
    net = cached_module(model)
    path = list(net.parameters)[-1].rpartition(".")[0]
    names = tuple(name for name in net.parameters if name.rpartition(".")[0] == path)
    with torch.inference_mode():
        classes = net.module.eval()(example(model, size, 1)).shape[-1]
    if any(len(model.weights[name]) != classes for name in names):
        raise ConfigError(
            f"method.masked = true: the last layer of {model.arch.name!r}, {path!r}, has "
            f"{len(model.weights[names[0]])} outputs for {classes} classes; set masked = false"
        )
    return Output(names, classes)


@dataclass(frozen=True)
class Averaged:
    """What came of a round: weights in the shapes of the whole, mean loss by samples, dropped answers.

    ``held`` is the mean share of the whole's values that a device held.
    """

    weights: Weights
    loss: float
    dropped: int
    held: float


def averaged(
    answers: Answers[Trained],
    slices: Mapping[Device, Slice],
    weights: Tree,
    fleet: Fleet,
    weigh: Weigh,
    output: Output = ALL,
    rule: MeanRule = PLAIN,
) -> Averaged:
    """Put each answer where its values are in the whole, and average.

    Args:
        answers: of the devices.
        slices: what each was sent.
        weights: of the whole, before.
        fleet: that was asked.
        weigh: whether devices count alike, or by samples.
        output: whose rows count for devices that have the class.
        rule: how many updates become one; of all but the plain one the loss is the median of the devices'.

    Raises:
        Unanswered: no answer could be used.
    """
    mean, loss, examples, held = MaskedMean(), 0.0, 0, list[float]()
    ballot, losses = Ballot(rule, weights), list[float]()
    total = tree.size(learned(weights))
    usable = Usable(answers, fleet, lambda each: opened(each, slices[each.device], weights, output))
    for each, (whole, masks) in usable:
        update = each.value.update
        if rule.streams:
            mean.add(whole, masks, update.examples if weigh == "examples" else 1)
        else:
            ballot.add(each.device, tree.subtract(whole, weights), masks)
        loss, examples = loss + update.examples * update.loss, examples + update.examples
        losses.append(update.loss)
        held.append(tree.size(learned(slices[each.device].model.weights)) / total)
    if not held:
        raise usable.none()
    share = sum(held) / len(held)
    if rule.streams:
        return Averaged({**weights, **mean.result(weights)}, loss / examples, usable.dropped, share)
    elected = ballot.close(fleet)
    usable.refused |= elected.refused
    return Averaged(elected.weights, statistics.median(losses), usable.dropped, share)


def weighed_by(weigh: Weigh, rule: MeanRule) -> list[str]:
    """A fault where devices shall count by samples under a rule that lets all count alike; set weigh = 'equal'."""
    return rule.beside({"weigh = 'examples' counts devices by samples": weigh == "examples"})


def opened(each: Answer[Trained], part: Slice, weights: Tree, output: Output) -> tuple[Weights, Masks] | None:
    """Values in the shapes of the whole and where they count, unless they are damaged or not finite."""
    update, labels = each.value.update, each.value.labels
    like, found = learned(part.model.weights), update.result
    if not isinstance(found, Mapping) or not 0 < update.examples < MOST:
        return None
    if {n: (v.shape, v.dtype) for n, v in found.items()} != {n: (v.shape, v.dtype) for n, v in like.items()}:
        return None
    there = bool(labels) == bool(output.classes) and list(labels) == sorted(set(labels) & set(range(output.classes)))
    if not there or not tree.finite(found):
        return None
    whole, masks = part.scattered({name: found[name] for name in like}, weights)
    for name in output.names:
        has = torch.zeros(output.classes, dtype=torch.bool)
        has[list(labels)] = True
        rows = has.reshape(-1, *[1] * (weights[name].ndim - 1)).expand(weights[name].shape)
        masks[name] = masks[name] & rows if name in masks else rows
    return whole, masks
