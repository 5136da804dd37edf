"""Online learning of the model's size: PruneFL's baseline after Han, Wang and Leung.

P. Han, S. Wang, K. K. Leung, "Adaptive Gradient Sparsification for Efficient Federated Learning: An Online Learning
Approach", ICDCS 2020, as Jiang et al. (PruneFL) adapt it. ``round`` is FedAvg under a mask of k weights; then the server
compares losses on a few samples that devices sent, and moves k (`rounds`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from math import nan
from statistics import median
from typing import ClassVar

import torch
from torch import Tensor

from fedbonsai import training, tree
from fedbonsai.arch import Arch
from fedbonsai.core import Answer, Client, Fleet, Memory, Samples, task
from fedbonsai.methods.online.rounds import Search, seconds_of
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.stages.held_masks import HeldMasks, Sent, received
from fedbonsai.stages.needs import classes_needed
from fedbonsai.stages.pruning.criteria import best
from fedbonsai.stages.pruning.figures import figures
from fedbonsai.stages.pruning.masks import Masks, masked
from fedbonsai.stages.pruning.per_time import full
from fedbonsai.stages.pruning.scores import magnitude
from fedbonsai.stages.pruning.time_model import Measured, Seconds, TimeModel
from fedbonsai.stages.pruning.under_masks import names_of, packed, unpacked
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.robust import MeanRule, Plain
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.updates import Update, combine_if_any
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import Tree, Weights, generator, seed_of
from fedbonsai.wire import message


@message("online/train@1")
class Train:
    """Values under masks, how to train them, and how many samples to send along."""

    arch: Arch
    sent: Sent
    sgd: Optimizer
    samples: int


@message("online/trained@1")
class Trained:
    """Weights under the masks, and images and labels on which the server compares losses."""

    update: Update
    x: Tensor
    y: Tensor


@message("online/state@1")
class State:
    """Model with the values that pruned weights had, masks, the search, the time model, and figures."""

    model: Model
    seed: int
    held: HeldMasks
    search: Search
    seconds: Seconds
    size: tuple[int, ...]
    classes: int
    costs: Mapping[str, float]
    loss: float = nan
    dropped: int = 0


@task("online/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Trained, Memory]:
    """Train under the masks; a few samples, drawn anew each time, go along."""
    start, masks, memory = received(request.sent, request.arch, memory)
    trained = training.train(Model(request.arch, start), me, request.sgd, mask=masks)
    order = torch.randperm(len(me.train), generator=generator(seed_of(me.seed, "samples", 0, 0)))
    shown = me.train[order[: request.samples]]
    return Trained(packed(trained, masks, me.seed), shown.x, shown.y), memory


@method("online")
class Online:
    """FedAvg under a magnitude mask whose size is found online, by loss per second."""

    lacks: ClassVar = {"privacy": "devices send samples of their own"}

    optimizer: Optimizer = field(default_factory=lambda: SGD(lr=0.1, steps=5))
    """Local training; `steps` is E and must be set."""
    warmup: int = 10
    """First round after which the size moves."""
    samples: int = 5
    """Samples that each device sends to the server from then on, in every round."""
    least: float = 0.002
    """Share of the weights below which the size never falls."""
    time: TimeModel = field(default_factory=Measured)
    """Seconds of a round: `measured` by oneself, a `table` of PruneFL's authors, or by a device's `profile`."""
    never: tuple[str, ...] = ("shortcut",)
    """Weights whose names contain one of these are never pruned."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    mean: MeanRule = Plain()
    """How many updates become one: `plain`, or one that a few liars cannot turn."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.optimizer.steps < 1:
            raise ValueError("optimizer.steps = 0: the time model counts local steps; set E, such as 5")
        if self.warmup < 0 or self.samples < 1 or not 0 < self.least < 1:
            raise ValueError(
                f"warmup = {self.warmup}, samples = {self.samples}, least = {self.least}: expected at least 0, 1, a share"
            )

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The whole model.

        Raises:
            ConfigError: something other than classes is learned.
        """
        classes_needed(model, "online", "collects labelled samples of devices")
        names = names_of(model, self.never)
        sizes = {name: model.weights[name].numel() for name in names}
        search = Search.begin(sum(sizes.values()), len(names), self.least)
        masks = sized(model.weights, names, search.k)
        size = server.train.shape
        times = self.time.seconds(model, names, size, self.optimizer)
        classes = list(model.weights.values())[-1].shape[0]  # the classifier's bias has one value for each
        held = HeldMasks(masks)
        return State(
            model, server.seed, held, search, times, size, classes, figures(model, masks, size, self.optimizer)
        )

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Masked FedAvg; after the first rounds compare losses, move the size, and prune to it."""
        devices, masks = cohort(fleet.devices, self.cohort, state.seed, t), dict(state.held.masks)
        start = masked(state.model.weights, masks)
        sent = state.held.send(start, devices, seed_of(state.seed, "down", t, 0))
        wanted = self.samples if t >= self.warmup else 0
        answers = fleet.ask(
            train, requests_for(sent, lambda part: Train(state.model.arch, part, self.optimizer, wanted))
        )
        shown: dict[str, Samples] = {}
        combined = combine_if_any(answers, opened(answers, state, wanted, shown), start, fleet, rule=self.mean)
        if combined is None:
            return replace(state, held=state.held.silent(answers.silent))  # all had lost the masks
        before, now = state.model.replace(start), state.model.replace(masked(combined.mean, masks))
        model = state.model.replace(full(combined.mean, state.model.weights, masks))
        held = state.held.received(combined.devices).silent(answers.silent)
        state = replace(state, model=model, held=held, loss=combined.loss, dropped=combined.dropped)
        if not wanted:
            return state
        parts = [shown[id] for id in combined.devices]
        if self.mean.streams:
            parts = [Samples(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))]
        return self.moved(state, t, before, now, parts)

    def moved(self, state: State, t: int, before: Model, now: Model, parts: Sequence[Samples]) -> State:
        """The next size, and the mask of it; a loss is the median of those on the parts."""
        names, search = list(state.held.masks), state.search
        sizes = {name: mask.numel() for name, mask in state.held.masks.items()}
        smaller = sized(state.model.weights, names, search.probe)
        tried = state.model.replace(masked(state.model.weights, smaller))
        losses = [median(training.evaluate(model, part).loss for part in parts) for model in (before, now, tried)]
        spent = seconds_of(state.seconds, sizes, search.k), seconds_of(state.seconds, sizes, search.probe)
        found = search.after(t, losses[0], losses[1], losses[2], spent, seed_of(state.seed, "online", t, 0))
        masks = sized(state.model.weights, names, found.k)
        under = state.model.replace(masked(state.model.weights, masks))
        return replace(
            state,
            search=found,
            held=state.held.renewed(masks),
            costs=figures(under, masks, state.size, self.optimizer) if found.k != search.k else state.costs,
        )

    def model(self, state: State) -> Model:
        """The global model, exactly zero where it is pruned."""
        return state.model.replace(masked(state.model.weights, state.held.masks))

    def metrics(self, state: State) -> Mapping[str, float]:
        """Loss, dropped updates, the size and what it costs, the size that is tried, modelled seconds of a round."""
        return {
            "train_loss": state.loss,
            "dropped": state.dropped,
            **state.costs,
            "probe": state.search.probe,
            "modelled_seconds": state.seconds.round(state.held.masks),
        }


def sized(weights: Tree, names: list[str], k: int) -> Masks:
    """The ``k`` largest weights, pruned ones with the values they had, at the same rate in each layer."""
    values = {name: weights[name] for name in names}
    ones = {name: torch.ones_like(value, dtype=torch.bool) for name, value in values.items()}
    return best(magnitude(values), ones, k, "uniform")


def opened(
    answers: Iterable[Answer[Trained]], state: State, wanted: int, shown: dict[str, Samples]
) -> Iterator[Answer[Update]]:
    """Answers as weights; their samples go to ``shown``. One that is damaged comes as no weights, which is dropped."""
    for answer in answers:
        value = answer.value
        fits = (
            (value.x.dtype, value.y.dtype) == (torch.float32, torch.int64)
            and tuple(value.x.shape[1:]) == state.size
            and value.x.shape[0] == value.y.numel() <= wanted
            and bool(torch.isfinite(value.x).all())
            and (not wanted or (value.y.numel() > 0 and 0 <= int(value.y.min()) <= int(value.y.max()) < state.classes))
        )
        weights: Weights = unpacked(value.update, state.model.weights, state.held.masks) if fits else {}
        shown[answer.device.id] = Samples(value.x, value.y)
        yield answer.of(replace(value.update, result=weights if tree.finite(weights) else {}))
