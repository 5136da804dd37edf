"""Networks that are cut: SplitFed, local-loss split learning, and clusters of devices that train an ensemble.

C. Thapa et al., "SplitFed: When Federated Learning Meets Split Learning", AAAI 2022, arXiv 2004.12088 (`Split`).
D.-J. Han et al., local-loss split learning, 2021 (`LocalLoss`).
M. Li, X. He, J. Chen, "Federated Collaborative Learning with Sparse Gradients for Heterogeneous Data on
Resource-Constrained Devices", Entropy 2024, 26(12), 1099 (`Clusters`, sparse collaborative learning). The body of the
last article could not be read: see the card for what is from its abstract and what is our definition. Each ``round`` is
the algorithm of specs/collaborative §4 for one of its topologies: send, train, weigh by distance, step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import ClassVar, Literal

import torch

from fedbonsai import tree
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Device, Fleet
from fedbonsai.errors import ConfigError
from fedbonsai.methods.registry import method
from fedbonsai.methods.split import local_loss, relay, sequential
from fedbonsai.methods.split.clusters import ClusterConfig
from fedbonsai.methods.split.part import Part, renamed, sub
from fedbonsai.methods.split.rounds import (
    Descent,
    State,
    check_network,
    combined,
    only_momentum,
    resending,
    sgd_faults,
    stepped,
    uplink_faults,
)
from fedbonsai.model import Model
from fedbonsai.settings import COUNT, NOT_NEGATIVE, POSITIVE, out_of_range, raise_all, when
from fedbonsai.stages.broadcast import Downlink
from fedbonsai.stages.codec import Chain, parse
from fedbonsai.stages.needs import classes_needed
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.updates import ramped
from fedbonsai.stages.weighting import Weighting
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import Weights, cast, dtype_of, generator, part_of, seed_of

UPDATE = parse(["ef14", {"topk": 0.05}, {"signmag": 8}])
ROWS = parse([{"topk": {"fraction": 0.25, "scope": "row"}}, {"signmag": 8}])
EIGHT_BITS = parse([{"affine": {"bits": 8, "scope": "channel"}}])


def behind(model: Model) -> Weights:
    """Weights behind the cut, which is behind the stem."""
    return {name: value for name, value in model.weights.items() if not name.startswith("stem.")}


@method("split")
class Split:
    """SplitFed: the front on the device, the back on the server, batch by batch (T1 and T1' of specs/collaborative §1.2)."""

    lacks: ClassVar = {
        "privacy": "activations and gradients of single samples cross the cut, which no clipped sum covers",
        "liars": "no device trains a whole network, whose change a liar would replace",
    }

    optimizer: Optimizer = field(default_factory=SGD)
    """Training of both parts; momentum buffers are reset in every round."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    version: Literal[1, 2] = 1
    """1: a back for each client, averaged like the fronts. 2: one back that serves clients in random order."""
    activations: Chain = EIGHT_BITS
    """Codecs of the activations, to the server."""
    gradients: Chain = ROWS
    """Codecs of the cut gradients, to the device."""
    uplink: Chain = UPDATE
    """Codecs of the round's update."""
    ramp: int = 2
    """First rounds in which all values of an update are sent (rho = 1)."""
    downlink: Downlink = field(default_factory=Downlink)
    """Codecs of the way down."""
    weighting: Weighting = Weighting(beta=1.0)
    """How updates count: by samples and by distance."""
    rate: float = 1.0
    """eta_g: the server's step."""

    def __post_init__(self) -> None:
        """Refuse settings that have no effect or no meaning."""
        ranges = out_of_range(self, ramp=NOT_NEGATIVE, rate=POSITIVE)
        raise_all(ranges + sgd_faults(self.optimizer) + uplink_faults(self.uplink, self.ramp))

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The initial model.

        Raises:
            ConfigError: it cannot be cut, or draws at random (dropout).
        """
        check_network(model, server.train.blank(2), "split")
        return State(model, server.seed)

    @resending
    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Send fronts; batch by batch activations come up and cut gradients go down; average fronts and backs."""
        arch, stem, rest = state.model.arch, part_of(state.model.weights, "stem"), behind(state.model)
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        down = Descent.of(state.broadcasts, {"": stem}, self.downlink, state.seed, t)
        front, uplink = sub(arch, "front"), ramped(self.uplink, self.ramp, t)
        requests = requests_for(
            down.to("", devices),
            lambda sent: sequential.Front(front, sent, self.optimizer.at(t), self.activations, uplink, t),
        )
        back, shared = Part.fresh(sub(arch, "back"), rest), self.version == 2
        seed = seed_of(state.seed, "split", t, 0)
        result = sequential.train(fleet, requests, back, self.optimizer.at(t), self.gradients, seed, shared)
        mean = combined(result.answers, result.silent, down, fleet, self.weighting, bool(uplink.stages))
        down.note("", mean.devices, result.silent)
        learned = sequential.averaged(result.backs, mean.shares, shared)
        if not shared and self.rate != 1:
            learned = tree.add(rest, tree.subtract(learned, rest), self.rate)
        return stepped(state, stem, down, mean, self.rate, result.loss, learned)

    def model(self, state: State) -> Model:
        """The whole network."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, dropped updates, withheld share of the updates; with distances also the range of shares."""
        return state.figures


@method("local-loss")
class LocalLoss:
    """The front learns from a head of its own, the back from activations that only go up (T2 of specs/collaborative §1.2)."""

    lacks: ClassVar = {"privacy": "activations of single samples go up, which no clipped sum covers"}

    optimizer: Optimizer = field(default_factory=SGD)
    """Training of all parts; momentum buffers are reset in every round."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    every: int = 1
    """Rounds from one upload of activations to the next."""
    activations: Chain = EIGHT_BITS
    """Codecs of the activations."""
    uplink: Chain = UPDATE
    """Codecs of the round's update."""
    ramp: int = 2
    """First rounds in which all values of an update are sent (rho = 1)."""
    downlink: Downlink = field(default_factory=Downlink)
    """Codecs of the way down."""
    weighting: Weighting = Weighting(beta=1.0)
    """How updates count: by samples and by distance."""
    rate: float = 1.0
    """eta_g: the server's step."""

    def __post_init__(self) -> None:
        """Refuse settings that have no effect or no meaning."""
        raise_all(
            out_of_range(self, every=COUNT, ramp=NOT_NEGATIVE, rate=POSITIVE)
            + only_momentum(self.optimizer)
            + uplink_faults(self.uplink, self.ramp)
        )

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The initial model, and a head for the fronts.

        Raises:
            ConfigError: the model cannot be cut, or draws at random (dropout).
        """
        check_network(model, server.train.blank(2), "local-loss")
        drawn = Model.init(sub(model.arch, "auxiliary"), seed_of(server.seed, "heads", -1, 0))
        return State(model, server.seed, heads=cast(part_of(drawn.weights, "head"), dtype_of(model.weights)))

    @resending
    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Fronts and heads learn on the devices and are averaged; the back learns from what the fronts show."""
        arch, trained = state.model.arch, {**part_of(state.model.weights, "stem"), **state.heads}
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        down = Descent.of(state.broadcasts, {"": trained}, self.downlink, state.seed, t)
        auxiliary, uplink = sub(arch, "auxiliary"), ramped(self.uplink, self.ramp, t)
        requests = requests_for(
            down.to("", devices), lambda sent: local_loss.Train(auxiliary, sent, self.optimizer.at(t), uplink, t)
        )
        back, seed = Part.fresh(sub(arch, "back"), behind(state.model)), seed_of(state.seed, "local loss", t, 0)
        result = local_loss.train_parts(
            fleet, requests, back, self.optimizer.at(t), self.activations, seed, shown=t % self.every == 0
        )
        mean = combined(result.answers, result.silent, down, fleet, self.weighting, bool(uplink.stages))
        down.note("", mean.devices, result.silent)
        return stepped(state, trained, down, mean, self.rate, learned=result.backs[""])

    def model(self, state: State) -> Model:
        """The whole network, without the heads."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, dropped updates, withheld share of the updates; with distances also the range of shares."""
        return state.figures


def ensemble(model: Model, count: int, seed: int) -> Model:
    """Networks of one form that start differently, the first of them as the given model."""
    options = {**sub(model.arch, "ensemble").options, "count": count}
    drawn = Model.init(Arch("ensemble", options), seed_of(seed, "ensemble", -1, 0))
    types = {name: value.dtype for name, value in model.weights.items()}  # fronts.J.NAME and backs.J.NAME
    rest = {name: value.to(types[name.split(".", 2)[2]]) for name, value in drawn.weights.items()}
    first = renamed(part_of(model.weights, "stem"), "", "fronts.0") | renamed(behind(model), "", "backs.0")
    return drawn.replace({**rest, **first})


@method("clusters")
class Clusters:
    """Sparse collaborative learning: clusters of devices train an ensemble (T3 of specs/collaborative §1.2)."""

    lacks: ClassVar = {
        "privacy": "activations and gradients of single samples cross the cut, which no clipped sum covers",
        "liars": "no device trains a whole network, whose change a liar would replace",
    }

    optimizer: Optimizer = field(default_factory=SGD)
    """Training of all parts; momentum buffers are reset in every round."""
    cohort: int = 0
    """Clusters asked in a round; 0 means all."""
    size: int = 2
    """S: devices of a cluster and networks of the ensemble; the number of devices must be a multiple of it."""
    draw: Literal["fixed", "redrawn"] = "fixed"
    """Whether clusters stay, or are drawn anew in every round (then without error feedback, which needs an owner)."""
    activations: Chain = EIGHT_BITS
    """Codecs of the activations, from the owner to peers."""
    gradients: Chain = ROWS
    """Codecs of the cut gradients, from peers to the owner."""
    cotraining: float = 0.5
    """lambda: weight of the Jensen-Shannon term that makes the networks agree."""
    warmup: int = 40
    """Rounds over which lambda rises from 0."""
    same_view: bool = False
    """Whether all networks see the same random augmentation of an image."""
    uplink: Chain = UPDATE
    """Codecs of the round's update."""
    ramp: int = 2
    """First rounds in which all values of an update are sent (rho = 1)."""
    downlink: Downlink = field(default_factory=Downlink)
    """Codecs of the way down."""
    weighting: Weighting = Weighting(beta=1.0)
    """How updates count: by samples and by distance."""
    rate: float = 1.0
    """eta_g: the server's step."""

    def __post_init__(self) -> None:
        """Refuse settings that have no effect or no meaning."""
        raise_all(
            out_of_range(
                self, size=COUNT, cotraining=NOT_NEGATIVE, warmup=NOT_NEGATIVE, ramp=NOT_NEGATIVE, rate=POSITIVE
            )
            + sgd_faults(self.optimizer)
            + uplink_faults(self.uplink, self.ramp)
            + when(
                (
                    self.draw == "redrawn" and self.uplink.feedback is not None,
                    "redrawn clusters leave a residual without an owner: fix the clusters or drop the feedback stage",
                )
            )
        )

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """The initial ensemble.

        Raises:
            ConfigError: the model cannot be cut or draws at random (dropout), or the devices do not make whole clusters.
        """
        check_network(model, server.train.blank(2), "clusters")
        classes_needed(model, "clusters", "answers with the mean of its members' probabilities")
        if len(fleet.devices) % self.size:
            raise ConfigError(
                f"data.clients = {len(fleet.devices)}: do not make clusters of {self.size}; choose a multiple of it"
            )
        return State(ensemble(model, self.size, server.seed), server.seed)

    def groups(self, devices: Sequence[Device], seed: int, t: int) -> list[list[Device]]:
        """Clusters of a round: drawn once, or in every round; then as many of them as take part.

        Args:
            devices: all devices, a multiple of the clusters' size.
            seed: of the run.
            t: round.
        """
        draw = seed_of(seed, "clusters", t if self.draw == "redrawn" else 0, 0)
        order = torch.randperm(len(devices), generator=generator(draw)).tolist()
        found = [[devices[i] for i in order[k : k + self.size]] for k in range(0, len(order), self.size)]
        taking = {device.id for device in cohort([group[0] for group in found], self.cohort, seed, t)}
        return [group for group in found if group[0].id in taking]

    @resending
    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Send fronts and backs; in each cluster members own the data in turn; a cluster's update counts as one."""
        weights, names = state.model.weights, ["fronts", *(f"backs.{j}" for j in range(self.size))]
        parts = {name: part_of(weights, name) for name in names}
        down = Descent.of(state.broadcasts, parts, self.downlink, state.seed, t)
        options = {name: value for name, value in state.model.arch.options.items() if name != "count"}
        config = ClusterConfig(
            Arch("front", options),
            Arch("back", options),
            state.model.arch,
            self.size,
            self.optimizer.at(t),
            self.activations,
            self.gradients,
            ramped(self.uplink, self.ramp, t),
            self.cotraining * min(1.0, (t + 1) / self.warmup if self.warmup else 1.0),
            self.same_view,
            t,
        )
        clusters = self.groups(fleet.devices, state.seed, t)
        sent = {name: down.to(name, list(fleet.devices)) for name in names}
        result = relay.train(
            fleet, clusters, config, lambda device: sent["fronts"][device], lambda device, j: sent[f"backs.{j}"][device]
        )
        mean = combined(result.answers, result.silent, down, fleet, self.weighting, bool(config.uplink.stages))
        for id in result.members.keys() - mean.devices:  # a cluster counts as a whole, and so does what it kept
            for member in result.members[id]:
                fleet.reject(Device(member))
        for id in mean.devices:
            members = result.members[id]
            for j, member in enumerate(members):
                down.note(f"backs.{j}", (member,), result.silent)
            down.note("fronts", (members[0], members[-1]), result.silent)
        return stepped(state, weights, down, mean, self.rate, result.loss)

    def model(self, state: State) -> Model:
        """The ensemble, whose score is the mean of its members'."""
        return state.model

    def notes(self) -> Mapping[str, str]:
        """What a report must print beside any number of this method: whose accuracy it is."""
        whose = (
            f"{self.size} networks that answer together, each cut over the devices of a cluster; no device holds all"
        )
        return {"judged": whose}

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, dropped updates, withheld share of the updates; with distances also the range of shares."""
        return state.figures
