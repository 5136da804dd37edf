"""LotteryFL: every client finds a ticket of its own, and shares only what its ticket keeps.

Li, Sun, Wang, Duan, Li, Chen, Li, "LotteryFL: Empower Edge Intelligence with Personalized and Communication-Efficient
Federated Learning", SEC 2021. ``round`` sends each client the global model under its own mask; the task ``train`` prunes,
rewinds and trains; a coordinate is averaged over the clients that keep it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from math import nan
from typing import ClassVar

import torch
from torch import Tensor

from fedbonsai import training, tree
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Device, Fleet, Memory, forgetful, task
from fedbonsai.errors import Forgotten
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.stages.held_masks import HeldMasks, Sent, hold, received
from fedbonsai.stages.needs import accuracy_needed
from fedbonsai.stages.pruning.figures import figures
from fedbonsai.stages.pruning.masks import Masks, density, keep_top, masked
from fedbonsai.stages.pruning.readjust import MaskedMean, changed
from fedbonsai.stages.pruning.under_masks import names_of, packed, unpacked
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.updates import MOST, Update, Usable
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import Tree, seed_of
from fedbonsai.wire import message

INITIAL = "initial"  # the weights that a client goes back to, in its memory


@message("lotteryfl/rule@1")
class Rule:
    """When a client prunes, and how much."""

    threshold: float = 0.5
    """Accuracy on the client's own samples that the masked global model must exceed."""
    target: float = 0.1
    """Share of the weights above which a client still prunes; the last pruning may end below it."""
    rate: float = 0.2
    """Share of each layer's remaining weights that goes at a time."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not (0 <= self.threshold <= 1 and 0 <= self.target <= 1 and 0 < self.rate < 1):
            raise ValueError(
                f"threshold = {self.threshold}, target = {self.target}, rate = {self.rate}: expected shares of 1"
            )


@message("lotteryfl/train@1")
class Train:
    """The global model under the client's mask, and the rule.

    For a client that is ``new`` also the initial weights, if the model that comes is no longer that.
    """

    arch: Arch
    sent: Sent
    sgd: Optimizer
    rule: Rule
    new: bool
    initial: Mapping[str, Tensor] | None


@message("lotteryfl/trained@1")
class Trained:
    """Weights under the client's mask, which comes along if it is new, and the accuracy before training."""

    update: Update
    masks: Mapping[str, Tensor] | None
    accuracy: float


@message("lotteryfl/state@1")
class State:
    """Global model, initial weights, each device's mask, size of an image, and figures of the last round."""

    model: Model
    seed: int
    initial: Mapping[str, Tensor]
    devices: Mapping[str, HeldMasks]
    size: tuple[int, ...]
    moved: bool = False
    costs: Mapping[str, float] = field(default_factory=dict[str, float])
    loss: float = nan
    accuracy: float = nan
    dropped: int = 0


@task("lotteryfl/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Trained, Memory]:
    """If the masked global model is good enough here: prune it and go back to the initial weights; then train."""
    start, masks, memory = received(request.sent, request.arch, memory)
    if request.new:
        memory = {**memory, INITIAL: dict(start if request.initial is None else request.initial)}
    elif INITIAL not in memory:
        raise Forgotten("the initial weights are not held here")
    judges = me.valid if len(me.valid) else me.train
    accuracy = training.evaluate(Model(request.arch, start), judges, me.device).accuracy
    new = None
    if accuracy > request.rule.threshold and density(masks) > request.rule.target:
        new = smaller(start, masks, request.rule.rate)
        memory = hold(memory, new, request.sent.version + 1)
        start, masks = masked(memory[INITIAL], new), new
    trained = training.train(Model(request.arch, start), me, request.sgd, mask=masks)
    return Trained(packed(trained, masks, me.seed), new, accuracy), memory


def smaller(weights: Tree, masks: Tree, rate: float) -> Masks:
    """Masks without the floor(rate a) smallest of each layer's a remaining weights, at least one where two are left."""
    found: Masks = {}
    for name, mask in masks.items():
        active = int(mask.sum())
        gone = min(max(1, int(rate * active)), active - 1)
        found[name] = keep_top(torch.where(mask, weights[name].abs().double(), -torch.inf), active - gone)
    return found


@method("lotteryfl")
class LotteryFL:
    """FedAvg of personal tickets."""

    lacks: ClassVar = {"privacy": "a device prunes by its own validation accuracy, and its mask shows in what it sends"}

    optimizer: Optimizer = field(default_factory=SGD)
    """Local training."""
    rule: Rule = field(default_factory=Rule)
    """When a client prunes, and how much."""
    never: tuple[str, ...] = ("shortcut",)
    """Weights whose names contain one of these are never pruned."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The dense initial model, which is everybody's ticket.

        Raises:
            ConfigError: the objective has no accuracy.
        """
        accuracy_needed(model, "method lotteryfl", "prunes a device's ticket once its accuracy is above a threshold")
        masks = {name: torch.ones_like(model.weights[name], dtype=torch.bool) for name in names_of(model, self.never)}
        devices = {device.id: HeldMasks(masks) for device in fleet.devices}
        return State(model, server.seed, model.weights, devices, server.train.shape)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Ask each device under its mask; average each coordinate over those that keep it."""
        weights, held = state.model.weights, dict(state.devices)
        send: dict[Device, Train] = {}
        for device in cohort(fleet.devices, self.cohort, state.seed, t):
            sent = held[device.id].send(weights, [device], seed_of(state.seed, "down", t, 0))[device]
            new = not held[device.id].holds(device)
            initial = state.initial if new and state.moved else None
            send[device] = Train(state.model.arch, sent, self.optimizer, self.rule, new, initial)
        answers = fleet.ask(train, send, at_least=0)
        mean, loss, accuracy, largest = MaskedMean(), 0.0, 0.0, Masks()
        usable = Usable(answers, fleet, lambda answer: opened(answer.value, weights, held[answer.device.id].masks))
        for answer, (found, masks) in usable:
            value = answer.value
            held[answer.device.id] = held[answer.device.id].renewed(masks).received([answer.device.id])
            mean.add(found, masks, value.update.examples)
            loss += value.update.examples * value.update.loss
            accuracy += value.update.examples * value.accuracy
            if not largest or density(masks) > density(largest):
                largest = masks
        for device in answers.silent:
            held[device.id] = held[device.id].silent([device])
        if not mean.weight:
            if forgetful(answers.silent):
                return replace(state, devices=held)  # they get everything next time
            raise usable.none()
        return replace(
            state,
            model=state.model.replace(mean.result(weights)),
            devices=held,
            moved=True,
            costs=figures(state.model, largest, state.size, self.optimizer),
            loss=loss / mean.weight,
            accuracy=accuracy / mean.weight,
            dropped=usable.dropped,
        )

    def model(self, state: State) -> Model:
        """The global model, under nobody's mask."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss and dropped updates.

        ``density`` is the mean over all devices, ``local_accuracy`` that of their tickets before training; the other
        costs are of the largest ticket that took part.
        """
        densities = [density(held.masks) for held in state.devices.values()]
        figures = {"train_loss": state.loss, "dropped": state.dropped, "local_accuracy": state.accuracy}
        return {**figures, **state.costs, "density": sum(densities) / len(densities)}


def opened(value: Trained, like: Tree, old: Tree) -> tuple[Tree, Masks] | None:
    """Weights and masks, unless they are damaged, not finite, or the masks are no part of those that came."""
    update, masks = value.update, dict(value.masks or old)
    fits = masks.keys() == old.keys() and all(
        mask.dtype == torch.bool and mask.shape == old[name].shape and not bool((mask & ~old[name]).any())
        for name, mask in masks.items()
    )
    fits = fits and (value.masks is None or changed(old, masks) > 0) and 0 <= value.accuracy <= 1
    weights = unpacked(update, like, masks) if fits and 0 < update.examples < MOST else {}
    return (weights, masks) if weights and tree.finite(weights) else None
