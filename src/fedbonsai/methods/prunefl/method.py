"""PruneFL: one device prunes a dense model, then FedAvg trains under a mask that is rebuilt to gain most per second.

Jiang, Wang, Valls, Ko, Lee, Leung, Tassiulas, "Model Pruning Enables Efficient Federated Learning on Edge Devices", IEEE
TNNLS 34(12), 2023, arXiv 1909.12326. ``begin`` is the initial pruning at a selected client (`initial_prune`),
``round`` is further pruning (Algorithm 1): masked FedAvg, where a device's part is the task ``train`` of `client`, and every
``interval`` rounds the reconfiguration (`stages.pruning.per_time`) by the importances that devices measured (`aggregate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from math import nan
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedbonsai import tree
from fedbonsai.core import Client, Device, Fleet, forgetful
from fedbonsai.methods.prunefl import accounts, local_layers
from fedbonsai.methods.prunefl.accounts import Accounts
from fedbonsai.methods.prunefl.aggregate import aggregate, aggregate_in_secret
from fedbonsai.methods.prunefl.client import OwnTrain, Train, train
from fedbonsai.methods.prunefl.importance import Wanted
from fedbonsai.methods.prunefl.initial_prune import InitialPrune, InitialPruneConfig, first_answer
from fedbonsai.methods.prunefl.local_layers import NOTHING, Own
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.settings import COUNT, NOT_NEGATIVE, PART, SHARE, out_of_range, raise_all, when
from fedbonsai.stages.held_masks import HeldMasks
from fedbonsai.stages.needs import accuracy_needed
from fedbonsai.stages.personal import split
from fedbonsai.stages.pruning.figures import figures
from fedbonsai.stages.pruning.masks import masked
from fedbonsai.stages.pruning.per_time import halved, reconfigured
from fedbonsai.stages.pruning.time_model import Measured, Seconds, TimeModel
from fedbonsai.stages.pruning.under_masks import names_of
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.robust import MeanRule, Plain
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.secure.server import ordered
from fedbonsai.stages.secure.settings import OPEN, Secure, refused
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import Tree, seed_of
from fedbonsai.wire import OPTIONAL, message


@message("prunefl/state@1")
class State:
    """Model with exact zeros, masks and their holders, the shelf of pruned values, the time model, and figures.

    ``size`` is an image's, ``since`` the round of the last reconfiguration, ``densities`` those of the initial pruning.
    With personal weights, ``own`` names them, ``owners`` are who trained some and ``verdict`` how their models did last;
    those in ``model`` are what all began with. ``clipped`` is the share of values that a secure sum cut.
    """

    model: Model
    seed: int
    held: HeldMasks
    shelf: Mapping[str, Tensor]
    seconds: Seconds
    size: tuple[int, ...]
    accounts: Accounts = Accounts()
    densities: tuple[float, ...] = ()
    since: int = 0
    loss: float = nan
    dropped: int = 0
    own: Own | None = None
    owners: tuple[str, ...] = ()
    verdict: Mapping[str, float] = field(default_factory=dict[str, float])
    clipped: float = field(default=0.0, metadata=OPTIONAL)

    @property
    def shared(self) -> Tree:
        """The weights that travel."""
        local = self.own.names if self.own else ()
        return {name: value for name, value in self.model.weights.items() if name not in local}


@method("prunefl")
class PruneFL:
    """Initial pruning at one device, then FedAvg with a mask that adapts to importance per second."""

    lacks: ClassVar = {
        "privacy": "one device's data make the first mask, and sums of squared gradients that nobody clips the next ones"
    }

    optimizer: Optimizer = field(default_factory=lambda: SGD(lr=0.1, steps=5))
    """Local training; `steps` is E and must be set."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    mean: MeanRule = Plain()
    """How many updates become one: `plain`, or one that a few liars cannot turn."""
    interval: int = 50
    """Rounds from one reconfiguration to the next; the first is in round `interval`."""
    fraction: float = 0.3
    """d at round 0: share of each layer's remaining weights that may go in a reconfiguration."""
    fraction_half_life: float = 10_000
    """Rounds in which `fraction` halves; 0 keeps it."""
    lr_half_life: float = 0
    """Rounds in which the learning rate halves; 0 keeps it."""
    lr_every: int = 1
    """Rounds from one step of the learning rate to the next."""
    density: float = 1.0
    """Largest share of the prunable weights that is kept, once masks have shrunk to it; 1 leaves it to the time model."""
    importance: Literal["round", "interval"] = "round"
    """Of the round in which it is asked for, or accumulated on clients since the last reconfiguration."""
    regrowth: Literal["stale", "zero"] = "stale"
    """What weights that come back begin with: the value they went with, or zero."""
    never: tuple[str, ...] = ("shortcut",)
    """Weights whose names contain one of these are never pruned."""
    personal: tuple[str, ...] = ()
    """Layers that stay on the device and are never pruned: `head` (last linear layer), or patterns of names."""
    judge: int = 0
    """Rounds from one judging of each device's model, on its validation part, to the next; 0 never judges."""
    scouting: InitialPruneConfig = field(default_factory=InitialPruneConfig)
    """Initial pruning at one device."""
    time: TimeModel = field(default_factory=Measured)
    """Seconds of a round: `measured` with one's own coefficients, `table` with the authors', or `profile` of a device."""
    secure: Secure = OPEN
    """Sum updates and importances up in secret, so that the server sees none of them: `bits` and more (docs/secure.md)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        ranges = {"interval": COUNT, "lr_every": COUNT, "fraction": PART, "density": SHARE}
        ranges |= dict.fromkeys(("fraction_half_life", "lr_half_life", "judge"), NOT_NEGATIVE)
        idle = self.lr_every > 1 and not self.lr_half_life
        faults = when(
            (idle, f"lr_every = {self.lr_every} has no effect without lr_half_life: leave it out"),
            (
                self.optimizer.steps < 1,
                "optimizer.steps = 0: the time model and importances count local steps; set E, such as 5",
            ),
        )
        uses = {
            "scouting.iterations": (
                self.scouting.iterations > 0,
                "the initial pruning shows the server a model that one device trained alone; set it to 0",
            ),
            "judge": (self.judge > 0, "devices would tell figures of their own in the open; set it to 0"),
            "mean": (not self.mean.streams, "a robust mean looks at each change"),
        }
        raise_all(out_of_range(self, **ranges) + faults + refused(self.secure, uses) + self.secure.faults(self.cohort))

    def samples_before(self, people: Sequence[Client], server: Client, workers: int) -> float:
        """Samples that the initial pruning trains on at most, one after another."""
        how = self.scouting
        return how.iterations * min(how.batches * self.optimizer.batch, len(people[0].train))

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """Initial pruning at the first device that answers; without iterations all weights are kept, and nobody is asked.

        Raises:
            ConfigError: nothing can be pruned, or no personal weights have such names.
            Unanswered: no device answered with a model that fits.
        """
        self.secure.ready(fleet, self.cohort)
        if self.scouting.iterations and self.scouting.gate > 0:
            accuracy_needed(model, "scouting.gate", "waits for an accuracy above that of guessing; set it to 0")
        own = local_layers.drawn(model, self.personal, server.seed)
        names = names_of(model, self.never, own.names if own else ())
        times, stale = self.time.seconds(model, names, server.train.shape, self.optimizer), self.regrowth == "stale"
        if not self.scouting.iterations:
            whole = {name: torch.ones(model.weights[name].shape, dtype=torch.bool) for name in times.slopes}
            return State(model, server.seed, HeldMasks(whole), {}, times, server.train.shape, own=own)
        most = int(self.density * sum(model.weights[name].numel() for name in names))
        shared = model.replace(split(model.weights, own.names)[0]) if own else model
        device, found = first_answer(
            fleet, InitialPrune(shared, self.optimizer.at(0), self.scouting, times, stale, most), own
        )
        return State(
            model.replace({**model.weights, **found.weights}),
            server.seed,
            HeldMasks(found.masks).received([device.id]),
            found.shelf,
            times,
            server.train.shape,
            Accounts.began(found.weights, found.masks, times, found.seconds, stale),
            found.densities,
            own=own,
            owners=(device.id,) if own else (),
        )

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Masked FedAvg; in every ``interval``-th round, or the next one that has answers, the mask is rebuilt."""
        sgd = self.optimizer.but(lr=self.optimizer.lr * halved(t, self.lr_half_life, self.lr_every))
        wanted = self.wanted(t, state.since, sgd)
        weights, held, masks, own, arch = state.shared, state.held, state.held.masks, state.own, state.model.arch
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        new_to = sum(not held.holds(device) for device in devices)
        sent = held.send(weights, devices, seed_of(state.seed, "down", t, 0))
        requests = requests_for(sent, lambda part: Train(arch, part, sgd, wanted))
        if self.secure:
            order = ordered(self.secure, len(devices), seed_of(state.seed, "secure", t, 0))
            span = 1 + (t - state.since) * wanted.accumulate
            found, silent = aggregate_in_secret(fleet, requests, own or NOTHING, span, order, weights, masks)
        else:
            asked = requests_for(requests, lambda request: OwnTrain(request, own)) if own else requests
            answers = fleet.ask(train, asked)
            found = aggregate(answers, weights, masks, wanted, sgd.lr, fleet, self.mean)
            silent = answers.silent
        if found.combined is None:  # all had lost the masks that they get next time
            return replace(state, held=held.silent(map(Device, forgetful(silent))))
        combined, used = found.combined, found.combined.devices
        spent = state.accounts.after(weights, masks, state.seconds, len(devices), new_to, len(used), found.values)
        weights, shelf, since = masked(combined.mean, masks), state.shelf, state.since
        if wanted.asked:
            fraction, most = self.fraction * halved(t, self.fraction_half_life), int(self.density * tree.size(masks))
            since, stale = t, self.regrowth == "stale"
            weights, shelf, masks = reconfigured(
                weights, shelf, masks, found.importance, state.seconds, fraction, stale, found.rest, most
            )
        state = replace(
            state,
            model=state.model.replace({**state.model.weights, **weights}),
            held=held.received(used).silent(silent).renewed(masks),
            shelf=shelf,
            accounts=spent,
            since=since,
            loss=combined.loss,
            dropped=combined.dropped,
            owners=tuple(dict.fromkeys((*state.owners, *used))) if own else (),
            verdict={},
            clipped=combined.clipped,
        )
        if not self.judge or (t + 1) % self.judge:
            return state
        who = [device for device in fleet.devices if own is None or device.id in state.owners]
        sent = state.held.send(weights, who, seed_of(state.seed, "judge", t, 0))
        return replace(state, verdict=local_layers.evaluate(fleet, sent, arch, own or NOTHING))

    def wanted(self, t: int, since: int, sgd: Optimizer) -> Wanted:
        """What devices do with importances in round ``t``: a reconfiguration that failed is made up for."""
        accumulate = self.importance == "interval"
        asked = t // self.interval > since // self.interval
        return Wanted(asked, accumulate, sgd.plain and not accumulate and not self.secure, since)

    def model(self, state: State) -> Model:
        """The global model, exactly zero where it is pruned; personal weights are what all devices began with."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Loss, dropped updates, size and cost of the model (`figures`), modelled seconds, the paper's bytes, verdict.

        With a secure sum the share of values that it cut.
        """
        masks, buffers = state.held.masks, 2 + (self.importance == "interval") + self.optimizer.slots()
        return {
            "train_loss": state.loss,
            "dropped": state.dropped,
            **figures(state.model, masks, state.size, self.optimizer, buffers),
            **accounts.figures(state.accounts, state.seconds, masks, state.densities),
            **state.verdict,
            **({"clipped": state.clipped} if self.secure else {}),
        }
