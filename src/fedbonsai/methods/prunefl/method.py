"""PruneFL: one device prunes a dense model, then FedAvg trains under a mask that is rebuilt to gain most per second.

Jiang, Wang, Valls, Ko, Lee, Leung, Tassiulas, "Model Pruning Enables Efficient Federated Learning on Edge Devices", IEEE
TNNLS 34(12), 2023, arXiv 1909.12326. ``begin`` is the initial pruning at a selected client (`initial_prune`),
``round`` is further pruning: masked FedAvg, where a device's part is the task ``train`` of
`importance_round`, and every ``interval`` rounds the reconfiguration (`stages.pruning.per_time`) by the
importances that devices measured (`importance`). The server's state is that of `adaptive`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Literal

from fedbonsai import tree
from fedbonsai.core import Client, Fleet
from fedbonsai.methods.prunefl import local_layers
from fedbonsai.methods.prunefl.accounts import Accounts
from fedbonsai.methods.prunefl.adaptive import State
from fedbonsai.methods.prunefl.importance import Wanted, plain
from fedbonsai.methods.prunefl.importance_round import Training, train
from fedbonsai.methods.prunefl.initial_prune import Pilot, Scouting, explored
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.stages.held_masks import HeldMasks
from fedbonsai.stages.pruning.per_time import halved
from fedbonsai.stages.pruning.time_model import Measured, TimeModel
from fedbonsai.stages.pruning.under_masks import names_of
from fedbonsai.stages.requests import each
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.settings import COUNT, NOT_NEGATIVE, PART, SHARE, among, outside, refuse
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import Tree, seed_of


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
        ranges = {"interval": COUNT, "lr_every": COUNT, "fraction": PART, "density": SHARE}
        ranges |= dict.fromkeys(("fraction_half_life", "lr_half_life", "judge"), NOT_NEGATIVE)
        idle = self.lr_every > 1 and not self.lr_half_life
        faults = among(
            (idle, f"lr_every = {self.lr_every} has no effect without lr_half_life: leave it out"),
            (self.sgd.steps < 1, "sgd.steps = 0: the time model and importances count local steps; set E, such as 5"),
        )
        refuse(outside(self, **ranges) + faults)

    def samples_before(self, people: Sequence[Client], server: Client, workers: int) -> float:
        """Samples that the scout trains on at most, one after another."""
        how = self.scouting
        return how.iterations * min(how.batches * self.sgd.batch, len(people[0].train))

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """Initial pruning at the first device that answers.

        Raises:
            ConfigError: nothing can be pruned, or no personal weights have such names.
            Unanswered: no device answered with a model that fits.
        """
        own = local_layers.drawn(model, self.personal, server.seed)
        size, stale = server.train.size, self.regrowth == "stale"
        names = names_of(model, self.never, own.names if own else ())
        times = self.time.seconds(model, names, size, self.sgd)
        most = self.most({name: model.weights[name] for name in names})
        pilot = Pilot(local_layers.shared(model, own), self.sgd, self.scouting, times, stale, most)
        device, found = explored(fleet, pilot, own)
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
            owners=(device.id,) if own else (),
        )

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Masked FedAvg; in every ``interval``-th round, or the next one that has answers, the mask is rebuilt."""
        weights, held, masks = state.shared, state.held, state.held.masks
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        sgd = replace(self.sgd, lr=self.sgd.lr * halved(t, self.lr_half_life, self.lr_every))
        wanted = self.wanted(t, state.since, sgd)
        how = Training(state.model.arch, sgd, wanted, state.own)
        sent = held.send(weights, devices, seed_of(state.seed, "down", t, 0))
        answers = fleet.ask(train, each(sent, how.under))
        combined, gathered = how.averaged(answers, weights, masks, fleet)
        if combined is None:
            return state.unheard(answers.silent)
        new_to = sum(not held.holds(device) for device in devices)
        state = state.heard(
            combined, answers.silent, (len(devices), new_to, len(combined.devices), wanted.values(masks))
        )
        if wanted.asked:
            fraction = self.fraction * halved(t, self.fraction_half_life)
            state = state.rebuilt(gathered, t, fraction, self.regrowth == "stale", self.most(masks))
        due = self.judge and (t + 1) % self.judge == 0
        return state.judged(t, fleet) if due else replace(state, verdict={})

    def wanted(self, t: int, since: int, sgd: SGD) -> Wanted:
        """What devices do with importances in round ``t``: a reconfiguration that failed is made up for."""
        accumulate = self.importance == "interval"
        return Wanted(t // self.interval > since // self.interval, accumulate, plain(sgd) and not accumulate, since)

    def most(self, masks: Tree) -> int:
        """How many of the prunable weights may be kept."""
        return int(self.density * tree.size(masks))

    def model(self, state: State) -> Model:
        """The global model, exactly zero where it is pruned; personal weights are what all devices began with."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Loss, dropped updates, size and cost of the model (`figures`), modelled seconds, the paper's bytes, verdict."""
        return state.figures(self.sgd, 2 + (self.importance == "interval") + (self.sgd.momentum > 0))
