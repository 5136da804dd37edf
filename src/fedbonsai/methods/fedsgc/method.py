"""FedSGC: dynamic sparse training in which devices drop what moves against the global model and grow what moves with it.

Tian, Liu, Li, Cheung, Wang, "Gradient-Congruity Guided Federated Sparse Training", 2024 (arXiv 2405.01189). ``round`` is FedAvg
under the mask; in readjusting rounds the task ``readjust`` trades weights, and the server averages and cuts back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from math import nan
from statistics import median
from typing import ClassVar

import torch
from torch import Tensor

from fedbonsai import tree
from fedbonsai.core import Client, Device, Fleet, forgetful
from fedbonsai.methods.fedsgc.client import SIGNS, Readjust, readjust, signs
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.settings import PROBABILITY, SHARE, TWO, out_of_range, raise_all
from fedbonsai.stages.held_masks import HeldMasks
from fedbonsai.stages.pruning.figures import figures
from fedbonsai.stages.pruning.masks import masked
from fedbonsai.stages.pruning.readjust import Readjustment, changed, cut_back, start_masks
from fedbonsai.stages.pruning.trading import epochs_of_trade, under_own_masks
from fedbonsai.stages.pruning.under_masks import averaged
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.robust import Ballot, MeanRule, Plain
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.updates import Usable
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import Tree, seed_of
from fedbonsai.wire import message


@message("fedsgc/state@1")
class State:
    """Model with exact zeros, signs of its last step, masks and their holders, costs, and figures of the last round."""

    model: Model
    seed: int
    direction: Mapping[str, Tensor]
    held: HeldMasks
    size: tuple[int, ...]
    costs: Mapping[str, float]
    loss: float = nan
    dropped: int = 0
    traded: int = 0


@method("fedsgc")
class FedSGC:
    """Sparse FedAvg with masks that clients readjust by gradient congruity."""

    lacks: ClassVar = {
        "privacy": "devices choose by their own gradients which weights regrow, and vote with whole masks, beside any "
        "clipped sum"
    }

    optimizer: Optimizer = field(default_factory=lambda: SGD(epochs=2))
    """Local training by epochs."""
    density: float = 0.1
    """Share of the prunable weights that is kept, spread over layers by Erdős-Rényi-Kernel."""
    readjustment: Readjustment = field(default_factory=Readjustment)
    """When masks are readjusted, and by how much."""
    opposed: float = 0.5
    """Of the weights that go, the share that moved on the device against the global direction (lambda)."""
    agreed: float = 0.5
    """Of the weights that come, the share whose gradient leads along the global direction (beta)."""
    after: int = 1
    """Of `optimizer.epochs` in a readjusting round, those that come after it."""
    batch: int = 64
    """Samples of the batch whose gradient decides what grows."""
    never: tuple[str, ...] = ("shortcut",)
    """Weights whose names contain one of these are never pruned."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    mean: MeanRule = Plain()
    """How many updates become one: `plain`, or one that a few liars cannot turn."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        raise_all(
            out_of_range(self, density=SHARE, opposed=PROBABILITY, agreed=PROBABILITY, batch=TWO)
            + epochs_of_trade(self.optimizer, self.after)
        )

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The largest initial weights, spread over layers by Erdős-Rényi-Kernel, at rest.

        Raises:
            ConfigError: too few weights for the layers.
        """
        masks, size = start_masks(model, self.density, self.never), server.train.shape
        start = model.replace(masked(model.weights, masks))
        still = {name: torch.zeros_like(start.weights[name]) for name in masks}
        costs = figures(model, masks, size, self.optimizer)
        return State(start, server.seed, still, HeldMasks(masks), size, costs)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """FedAvg under the masks, or a round that readjusts them."""
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        if fraction := self.readjustment.fraction(t):
            return self.readjusting(state, t, fleet, devices, fraction)
        combined, held = averaged(state.model, state.held, self.optimizer, devices, state.seed, t, fleet, self.mean)
        if combined is None:
            return replace(state, held=held)  # all had lost the masks; they get them next time
        model = state.model.replace(combined.mean)
        state = replace(state, direction=step(state, model), model=model, held=held)
        return replace(state, loss=combined.loss, dropped=combined.dropped, traded=0)

    def readjusting(self, state: State, t: int, fleet: Fleet, devices: list[Device], fraction: float) -> State:
        """Average over the masks of all, and cut each layer back to its count."""
        weights, masks = state.model.weights, state.held.masks
        sent = state.held.send(weights, devices, seed_of(state.seed, "down", t, 0))
        arch, how, direction = state.model.arch, self.optimizer, SIGNS.pack(state.direction, 0)
        shares = fraction, self.opposed, self.agreed
        asked = requests_for(sent, lambda part: Readjust(arch, part, direction, how, *shares, self.after, self.batch))
        answers = fleet.ask(readjust, asked, at_least=0)
        mean, loss, heard = tree.Mean(), 0.0, list[str]()
        ballot, losses = Ballot(self.mean, weights), list[float]()
        usable = Usable(
            answers, fleet, lambda answer: under_own_masks(answer.value.update, answer.value.masks, weights, masks)
        )
        for answer, (found, _) in usable:
            if self.mean.streams:
                mean.add(found, answer.value.update.examples)
            else:
                ballot.add(answer.device, tree.subtract(found, weights))
            losses.append(answer.value.update.loss)
            loss += answer.value.update.examples * answer.value.update.loss
            heard.append(answer.device.id)
        held = state.held.received(heard).silent(answers.silent)
        if not heard:
            if forgetful(answers.silent):
                return replace(state, held=held)  # they get the masks next time
            raise usable.none()
        if self.mean.streams:
            weighed, loss = mean.result(), loss / mean.weight
        else:
            elected = ballot.close(fleet)
            usable.refused |= elected.refused
            weighed, loss = elected.weights, median(losses)
        kept, new = cut_back(weighed, masks)
        model = state.model.replace(kept)
        return replace(
            state,
            model=model,
            direction=step(state, model),
            held=held.renewed(new),
            costs=figures(model, new, state.size, how),
            loss=loss,
            dropped=usable.dropped,
            traded=changed(masks, new) // 2,
        )

    def model(self, state: State) -> Model:
        """The global model, exactly zero where it is pruned."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, dropped updates, weights traded, weights kept, and what training under the masks costs."""
        return {"train_loss": state.loss, "dropped": state.dropped, "traded": state.traded, **state.costs}


def step(state: State, model: Model) -> Tree:
    """D = sign(w_t - w_{t-1}) of the weights that may be pruned."""
    return signs({name: model.weights[name] - state.model.weights[name] for name in state.held.masks})
