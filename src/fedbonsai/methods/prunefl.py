"""PruneFL: one device prunes a dense model, then FedAvg trains under a mask that is rebuilt to gain most per second.

Jiang, Wang, Valls, Ko, Lee, Leung, Tassiulas, "Model Pruning Enables Efficient Federated Learning on Edge Devices", IEEE
TNNLS 34(12), 2023, arXiv 1909.12326. ``begin`` is the initial pruning at a selected client (`stages.pruning.scout`),
``round`` is further pruning: masked FedAvg, and every ``interval`` rounds the reconfiguration
(`stages.pruning.per_time.reconfigured`) by the importances that devices measured (`stages.pruning.importance`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from math import nan
from typing import Literal

from torch import Tensor

from fedbonsai import tree
from fedbonsai.core import Client, Device, Fleet, Memory, forgetful, task
from fedbonsai.errors import ConfigError, Unanswered
from fedbonsai.local import SGD
from fedbonsai.methods.registry import method
from fedbonsai.model import Arch, Model
from fedbonsai.stages import own_part
from fedbonsai.stages.held_masks import HeldMasks, Sent, received
from fedbonsai.stages.own_part import NOTHING, Own
from fedbonsai.stages.personal import merged, personal_names, split
from fedbonsai.stages.pruning.accounts import Accounts
from fedbonsai.stages.pruning.figures import figures
from fedbonsai.stages.pruning.importance import Gathered, Result, Wanted, measured, opened, plain, trained
from fedbonsai.stages.pruning.masks import masked, prunable
from fedbonsai.stages.pruning.per_time import halved, reconfigured
from fedbonsai.stages.pruning.profiled import time_of
from fedbonsai.stages.pruning.scout import Pilot, Scouting, explored
from fedbonsai.stages.pruning.time_model import Measured, Seconds, TimeModel
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.updates import combine
from fedbonsai.tree import Tree, Weights, seed_of
from fedbonsai.wire import message


@message("prunefl/train@1")
class Train:
    """A round: the model under its masks, how to train it, and what to do with importances."""

    arch: Arch
    sent: Sent
    sgd: SGD
    wanted: Wanted


@message("prunefl/own-train@1")
class OwnTrain:
    """A round whose model is the shared part; the personal one is on the device."""

    train: Train
    own: Own


@message("prunefl/state@1")
class State:
    """Model with exact zeros, masks and their holders, the shelf of pruned values, the time model, and figures.

    ``size`` is an image's, ``since`` the round of the last reconfiguration, ``densities`` those of the initial pruning.
    With personal weights, ``own`` names them, ``owners`` are who trained some and ``verdict`` how their models did last;
    those in ``model`` are what all began with.
    """

    model: Model
    seed: int
    held: HeldMasks
    shelf: Mapping[str, Tensor]
    seconds: Seconds
    size: tuple[int, int, int]
    accounts: Accounts = Accounts()
    densities: tuple[float, ...] = ()
    since: int = 0
    loss: float = nan
    dropped: int = 0
    own: Own | None = None
    owners: tuple[str, ...] = ()
    verdict: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def shared(self) -> Weights:
        """The weights that travel."""
        return split(self.model.weights, self.own.names if self.own is not None else ())[0]

    def moved(self, shared: Tree) -> State:
        """With other shared weights."""
        return replace(self, model=self.model.replace({**self.model.weights, **shared}))


@task("prunefl/train")
def train(request: Train | OwnTrain, me: Client, memory: Memory) -> tuple[Result, Memory]:
    """Local steps of the masked model, with the personal part if there is one; gradients are of all coordinates."""
    own = None
    if isinstance(request, OwnTrain):
        request, own = request.train, request.own
    start, masks, memory = received(request.sent, request.arch, memory, own.names if own is not None else ())
    if own is not None:
        start = merged(request.arch, start, own_part.held(own, request.arch, memory)).weights
    found, summed = trained(Model(request.arch, start), masks, me, request.sgd, request.wanted)
    if own is not None:
        shared, memory = own_part.kept(own, found, memory)
        found = replace(found, weights=shared)
    return measured(found, summed, masks, request.sgd, request.wanted, me, memory)


@method("prunefl")
class PruneFL:
    """Initial pruning at one device, then FedAvg with a mask that adapts to importance per second."""

    sgd: SGD = field(default_factory=lambda: SGD(lr=0.1, steps=5))
    """Local training; `steps` is E and must be set."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
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
    scouting: Scouting = field(default_factory=Scouting)
    """Initial pruning at one device."""
    time: TimeModel = field(default_factory=Measured)
    """Seconds of a round: `measured` with one's own coefficients, `table` with the authors', or `profile` of a device."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("interval", "lr_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least 1")
        for name in ("fraction_half_life", "lr_half_life"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: expected rounds, or 0 to keep the value")
        if self.judge < 0:
            raise ValueError(f"judge = {self.judge}: expected rounds >= 0, 0 never judges")
        if self.lr_every > 1 and not self.lr_half_life:
            raise ValueError(f"lr_every = {self.lr_every} has no effect without lr_half_life: leave it out")
        if self.sgd.steps < 1:
            raise ValueError("sgd.steps = 0: PruneFL's time model and importances count local steps; set E, such as 5")
        if not 0 <= self.fraction < 1:
            raise ValueError(f"fraction = {self.fraction}: expected a share in [0, 1)")
        if not 0 < self.density <= 1:
            raise ValueError(f"density = {self.density}: expected a share in (0, 1]")

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """Initial pruning at the first device that answers.

        Raises:
            ConfigError: nothing can be pruned, or no personal weights have such names.
            Unanswered: no device answered with a model that fits.
        """
        personal = personal_names(model, self.personal)
        own = Own(personal, model.drawn if model.drawn >= 0 else server.seed) if personal else None
        names = [
            name for name in prunable(model) if name not in personal and not any(part in name for part in self.never)
        ]
        if not names:
            raise ConfigError(
                f"personal = {list(self.personal)}, never = {list(self.never)}: model {model.arch.name!r} has no shared "
                "weights that may be pruned; share more, or see method.never"
            )
        channels, height, width = server.train.x.shape[1:]
        size = (channels, height, width)
        times = time_of(self.time, model, names, size, self.sgd)
        stale = self.regrowth == "stale"
        most = self.most({name: model.weights[name] for name in names})
        shared = model if own is None else model.replace(split(model.weights, personal)[0])
        device, found = explored(fleet, Pilot(shared, self.sgd, self.scouting, times, stale, most), own)
        return State(
            model.replace({**model.weights, **found.weights}),
            server.seed,
            HeldMasks(found.masks).heard([device.id]),
            found.shelf,
            times,
            size,
            Accounts.began(found.weights, found.masks, times, found.seconds, stale),
            found.densities,
            own=own,
            owners=(device.id,) if own is not None else (),
        )

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Masked FedAvg; in every ``interval``-th round, or the next one that has answers, the mask is rebuilt."""
        weights, held, masks = state.shared, state.held, state.held.masks
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        sgd = replace(self.sgd, lr=self.sgd.lr * halved(t, self.lr_half_life, self.lr_every))
        wanted = self.wanted(t, state.since, sgd)
        sent = held.send(weights, devices, seed_of(state.seed, "down", t, 0))
        made: dict[int, Train | OwnTrain] = {
            id(part): Train(state.model.arch, part, sgd, wanted) for part in sent.values()
        }
        if state.own is not None:
            made = {key: OwnTrain(part, state.own) for key, part in made.items() if isinstance(part, Train)}
        answers = fleet.ask(train, {device: made[id(part)] for device, part in sent.items()})
        gathered = Gathered.zero(weights, masks)
        try:
            combined = combine(opened(answers, weights, masks, wanted, sgd.lr, gathered), weights, fleet)
        except Unanswered as error:
            if not (forgot := error.forgot or forgetful(answers.silent)):
                raise
            return replace(state, held=held.silent(map(Device, forgot)))  # they get the masks next time
        values = sum(int((~mask).sum()) if wanted.derived else mask.numel() for mask in masks.values())
        new_to = sum(not held.holds(device) for device in devices)
        state = replace(
            state.moved(masked(combined.mean, masks)),
            held=held.heard(combined.devices).silent(answers.silent),
            loss=combined.loss,
            dropped=combined.dropped,
            accounts=state.accounts.after(
                weights,
                masks,
                state.seconds,
                len(devices),
                new_to,
                len(combined.devices),
                values if wanted.asked else None,
            ),
        )
        state = self.rebuilt(state, gathered, t) if wanted.asked else state
        own = state.own
        if own is not None:
            state = replace(state, owners=tuple(dict.fromkeys((*state.owners, *combined.devices))))
        if not self.judge:
            return state
        if (t + 1) % self.judge:
            return replace(state, verdict={})
        seed = seed_of(state.seed, "judge", t, 0)
        who = [device.id for device in fleet.devices] if own is None else state.owners
        verdict = own_part.verdict(fleet, state.model, own or NOTHING, state.held, who, seed)
        return replace(state, verdict=verdict)

    def wanted(self, t: int, since: int, sgd: SGD) -> Wanted:
        """What devices do with importances in round ``t``: a reconfiguration that failed is made up for."""
        accumulate = self.importance == "interval"
        return Wanted(t // self.interval > since // self.interval, accumulate, plain(sgd) and not accumulate, since)

    def most(self, masks: Tree) -> int:
        """How many of the prunable weights may be kept."""
        return int(self.density * tree.size(masks))

    def rebuilt(self, state: State, gathered: Gathered, t: int) -> State:
        """The mask of most importance per second, and the weights under it."""
        weights, shelf, masks = reconfigured(
            state.shared,
            state.shelf,
            state.held.masks,
            gathered.z,
            state.seconds,
            self.fraction * halved(t, self.fraction_half_life),
            self.regrowth == "stale",
            gathered.rest,
            self.most(state.held.masks),
        )
        return replace(state.moved(weights), held=state.held.renewed(masks), shelf=shelf, since=t)

    def model(self, state: State) -> Model:
        """The global model, exactly zero where it is pruned; personal weights are what all devices began with."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Loss, dropped updates, size and cost of the model (`figures`), modelled seconds, the paper's bytes, verdict."""
        masks, accounts, found = state.held.masks, state.accounts, state.densities
        return {
            "train_loss": state.loss,
            "dropped": state.dropped,
            **figures(
                state.model, masks, state.size, self.sgd, 2 + (self.importance == "interval") + (self.sgd.momentum > 0)
            ),
            "modelled_seconds": state.seconds.round(masks),
            "conventional_seconds": state.seconds.conventional(masks),
            "scout_seconds": accounts.scouted,
            "scout_density": found[-1] if found else 1.0,
            "scout_growths": sum(now > before for before, now in zip((1.0, *found), found, strict=False)),
            "scout_reconfigurations": len(found),
            "paper_seconds": accounts.seconds,
            "whole_seconds": accounts.whole,
            "paper_down": accounts.bytes[0],
            "paper_up": accounts.bytes[1],
            **state.verdict,
        }
