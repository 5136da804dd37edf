"""Baselines with one mask for all: SNIP, SynFlow, random and magnitude masks, iterative pruning, lottery tickets.

Lee et al., "SNIP", ICLR 2019; Tanaka et al., "Pruning Neural Networks without Any Data by Iteratively Conserving Synaptic
Flow", NeurIPS 2020; Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019; as the baselines of PruneFL and
FedTiny have them. ``round`` is FedAvg under the mask (`stages.pruning.under_masks`), and where the schedule says so a
pruning after it; ``begin`` is the pruning before any round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from math import nan
from typing import Literal

import torch
from torch import Tensor

from fedbonsai import training, tree
from fedbonsai.core import Client, Fleet
from fedbonsai.errors import ConfigError
from fedbonsai.methods.registry import method
from fedbonsai.methods.static_mask.private import privately_averaged
from fedbonsai.model import Model, cached_module
from fedbonsai.settings import SHARE, out_of_range, raise_all, when
from fedbonsai.stages.held_masks import HeldMasks
from fedbonsai.stages.needs import descent_needed
from fedbonsai.stages.privacy.accountant import Account
from fedbonsai.stages.privacy.round import check, release_rate
from fedbonsai.stages.privacy.round import figures as private_figures
from fedbonsai.stages.privacy.settings import Privacy
from fedbonsai.stages.pruning.criteria import (
    Budget,
    Criterion,
    Distribution,
    Gradient,
    Grounds,
    Magnitude,
    Schedule,
    Single,
    Structure,
    kept,
)
from fedbonsai.stages.pruning.figures import figures
from fedbonsai.stages.pruning.masks import Masks, masked
from fedbonsai.stages.pruning.under_masks import averaged, names_of
from fedbonsai.stages.robust import MeanRule, Plain
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.secure.noise import faults as of_noise
from fedbonsai.stages.secure.noise import shared_noise
from fedbonsai.stages.secure.settings import OPEN, Secure
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import seed_of
from fedbonsai.wire import OPTIONAL, message


@message("static-mask/state@1")
class State:
    """Model with exact zeros, masks and their holders, and figures.

    ``initial`` are the weights to go back to, as long as a pruning may come; ``done`` counts prunings, ``size`` is of an
    image, ``costs`` are of training under the masks, ``clipped`` is the share of values that a secure sum cut, ``account`` what
    private rounds have released.
    """

    model: Model
    seed: int
    held: HeldMasks
    initial: Mapping[str, Tensor]
    size: tuple[int, ...]
    costs: Mapping[str, float]
    done: int = 0
    loss: float = nan
    dropped: int = 0
    account: Account = field(default=Account(), metadata=OPTIONAL)
    clipped: float = field(default=0.0, metadata=OPTIONAL)


@method("static-mask")
class StaticMask:
    """FedAvg under one mask for all, made before training or by a schedule, and never regrown."""

    optimizer: Optimizer = field(default_factory=SGD)
    """Local training."""
    density: float = 0.1
    """Share of the weights that is kept in the end."""
    of: Literal["prunable", "all"] = "prunable"
    """Of which weights: those that may be pruned, or all, where what is never pruned lies inside the share."""
    criterion: Criterion = field(default_factory=Magnitude)
    """Which weights are kept: `magnitude`, `random`, `saliency` (SNIP), `synflow`, or those of another `run`."""
    distribution: Distribution = "global"
    """Over layers: the best of all, or in each layer a share of its own: `uniform`, `erk`."""
    structure: Structure = field(default_factory=Single)
    """What is kept together: `weights` one by one, `n-of-m` neighbours, or `blocks`; the last two uniformly and once."""
    schedule: Schedule = field(default_factory=Schedule)
    """When it is pruned, and how often."""
    rewind: Literal["none", "init", "random"] = "none"
    """After a pruning: train on, go back to the initial weights, or draw new ones."""
    never: tuple[str, ...] = ("shortcut",)
    """Weights whose names contain one of these are never pruned."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    mean: MeanRule = Plain()
    """How many updates become one: `plain`, or one that a few liars cannot turn."""
    privacy: Privacy = Privacy()
    """Differential privacy of each device's data, on kept weights: `clip`, `noise`, `delta` and more (docs/privacy.md)."""
    secure: Secure = OPEN
    """Sum updates up in secret, so that the server sees none of them: `bits` and more (docs/secure.md)."""

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning or no effect."""
        criterion, schedule, of_devices = self.criterion, self.schedule, self.criterion.source == "devices"
        early = criterion.own_density or criterion.source == "server"
        once = schedule.times == 1 and criterion.iterations == 1 and not criterion.own_density
        why = "criterion.data = 'devices' takes the gradient from the change of a round"
        faults = (descent_needed(self.optimizer, why) if of_devices else []) + when(
            (
                of_devices and (schedule.first < 0 or self.optimizer.lr <= 0),
                "criterion.data = 'devices' takes the gradient from a round: set schedule.first to 0 or more, optimizer.lr > 0",
            ),
            (
                self.structure.once and not (once and self.distribution == "uniform" and self.of == "prunable"),
                "structure other than 'weights' is pruned once and uniformly: set distribution = 'uniform', "
                "of = 'prunable', schedule.times = 1, criterion.iterations = 1 (for synflow too), no criterion 'run'",
            ),
            (
                early and schedule != Schedule(),
                "criterion 'run', and data = 'server', make their mask before the first round: leave schedule out",
            ),
            (
                self.rewind == "init" and schedule.first + (schedule.times - 1) * schedule.every < 0,
                "rewind = 'init' has no effect on a mask made before training: set schedule.first >= 0",
            ),
            (
                self.privacy.on and criterion.own_density,
                "criterion 'run': the mask is made of another run's data, which this run's account does not hold; take another "
                "criterion, or leave privacy out",
            ),
        )
        needs = {
            "privacy clips every change and needs their sum": self.privacy.on,
            "secure shows no single change": bool(self.secure),
        }
        faults += self.mean.beside(needs) + of_noise(self.privacy, self.secure)
        raise_all(out_of_range(self, density=SHARE) + faults + self.secure.faults(self.cohort))

    def samples_before(self, people: Sequence[Client], server: Client, workers: int) -> float:
        """Samples of the server's gradients."""
        return self.criterion.iterations * len(server.train) if self.criterion.source == "server" else 0.0

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """All-ones masks, and the pruning that comes before any round.

        Raises:
            ConfigError: nothing may be pruned, the server has no samples to take a gradient of, or privacy is wanted that the
                model cannot have.
        """
        if self.privacy.on:
            check(self.privacy, model, fleet, self.cohort)
            shared_noise(self.privacy, self.secure, self.cohort or len(fleet.devices))
        self.secure.ready(fleet, self.cohort)
        masks = {name: torch.ones_like(model.weights[name], dtype=torch.bool) for name in names_of(model, self.never)}
        if self.criterion.source == "server" and not len(server.train):
            raise ConfigError("criterion.data = 'server': the server has no samples; set data.server, or 'devices'")
        size = server.train.shape
        initial = model.weights if self.rewind == "init" else {}
        state = State(model, server.seed, HeldMasks(masks), initial, size, figures(model, masks, size, self.optimizer))

        def gradient(now: Model) -> tree.Weights:
            return training.gradient(now, server.train, server.device)

        return self.cut(state, model, gradient) if self.schedule.due(0, -1) else state

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """FedAvg under the masks; where the schedule says so, prune."""
        if self.privacy.on and not self.secure:
            combined, held, account = privately_averaged(
                self.privacy, state.model, state.held, self.optimizer, self.cohort, state.account, state.seed, t, fleet
            )
            state = replace(state, account=account)
        else:
            devices = cohort(fleet.devices, self.cohort, state.seed, t)
            noise = shared_noise(self.privacy, self.secure, len(devices))
            combined, held = averaged(
                state.model, state.held, self.optimizer, devices, state.seed, t, fleet, self.mean, self.secure, noise
            )
            if noise and combined is not None:
                rate = release_rate(self.privacy, self.cohort, len(fleet.devices))
                state = replace(state, account=state.account.with_release(rate, self.privacy.noise))
        if combined is None:
            return replace(state, held=held)  # all had lost the masks; they get them next time
        start, mean = state.model, state.model.replace(combined.mean)
        state = replace(
            state, model=mean, held=held, loss=combined.loss, dropped=combined.dropped, clipped=combined.clipped
        )
        if not self.schedule.due(state.done, t):
            return state

        def gradient(_: Model) -> tree.Weights:
            """The mean change of a round is so many steps along the mean gradient."""
            change = tree.subtract(start.weights, mean.weights)
            return {name: value / self.optimizer.lr for name, value in change.items()}

        # SNIP is of the weights from which the round began, and cuts those that it ended with
        return self.cut(state, start if self.criterion.source == "devices" else mean, gradient)

    def cut(self, state: State, scored: Model, gradient: Gradient) -> State:
        """Prune once, and rewind if wanted."""
        seed, held = seed_of(state.seed, "mask", state.done, 0), dict(state.held.masks)
        grounds, budget = (
            Grounds(scored, list(held), gradient, seed, state.size),
            self.budget(state.model, held, state.done),
        )
        masks = self.structure.prune(self.criterion, grounds, held, budget)
        done, weights = state.done + 1, state.model.weights
        if self.rewind == "init":
            weights = state.initial
        elif self.rewind == "random":
            weights = Model.init(state.model.arch, seed_of(state.seed, "model", -1, done)).weights
        model = state.model.replace(masked(weights, masks))
        return replace(
            state,
            model=model,
            held=state.held.renewed(masks),
            initial=state.initial if done < self.schedule.times else {},
            costs=figures(model, masks, state.size, self.optimizer),
            done=done,
        )

    def budget(self, model: Model, masks: Masks, done: int) -> Budget:
        """What the next pruning leaves.

        Raises:
            ConfigError: what is never pruned is more than the share.
        """
        prunable = sum(mask.numel() for mask in masks.values())
        everything = tree.size(cached_module(model).parameters) if self.of == "all" else prunable
        share = (self.density * everything - (everything - prunable)) / prunable
        if share <= 0:
            raise ConfigError(
                f"density = {self.density} of all {everything} weights: {everything - prunable} are never pruned; "
                "choose a larger density, or of = 'prunable'"
            )
        count = kept(self.schedule.density(done, share), prunable) + self.criterion.spare
        return Budget(min(prunable, count), self.distribution, self.density)

    def model(self, state: State) -> Model:
        """The global model, exactly zero where it is pruned."""
        return state.model

    def account(self, state: State) -> Account:
        """What private rounds have released."""
        return state.account

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss (not with privacy), dropped updates, weights kept, costs of training, values cut in secret."""
        if self.privacy.on:
            return {**private_figures(self.privacy, state.account, state.dropped), **state.costs}
        cut = {"clipped": state.clipped} if self.secure else {}
        return {"train_loss": state.loss, "dropped": state.dropped, **state.costs, **cut}
