"""Sparse collaborative learning: position masks, quantized sparse gradients and updates, distance-based weights.

M. Li, X. He, J. Chen, "Federated Collaborative Learning with Sparse Gradients for Heterogeneous Data on
Resource-Constrained Devices", Entropy 2024, 26(12), 1099. The body of the article could not be read: see the card for
what is from its abstract and what is our definition. ``round`` is the algorithm of section 4 of our specification; where
the network is trained is the ``topology``, and all four share the way up, the weights and the way down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fedbonsai import tree
from fedbonsai.core import Client, Device, Fleet, forgetful
from fedbonsai.errors import ConfigError, Unanswered
from fedbonsai.local import SGD
from fedbonsai.methods.averaging import Train, train
from fedbonsai.methods.registry import method
from fedbonsai.model import Arch, Model, skeleton
from fedbonsai.stages.broadcast import Broadcast, Downlink, Sent, each, grouped
from fedbonsai.stages.choice import Choice, choice
from fedbonsai.stages.codec import EF21, Chain, parse
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.split import local_loss, relay, sequential
from fedbonsai.stages.split.clusters import How
from fedbonsai.stages.split.part import Part, renamed, sub
from fedbonsai.stages.updates import Combined, combine, moved
from fedbonsai.stages.weighting import Weighting
from fedbonsai.tree import Weights, generator, part_of, seed_of
from fedbonsai.wire import message

ROWS = parse([{"topk": {"fraction": 0.25, "scope": "row"}}, {"signmag": 8}])
EIGHT_BITS = parse([{"affine": {"bits": 8, "scope": "channel"}}])
# settings of local training that a cut network does not know
IDLE = (("proximal", 0.0), ("clip", 0.0), ("precision", "fp32"), ("channels_last", False), ("sparse", "off"))


class Topology(Choice):
    """Where the network is trained (section 1.2)."""


@choice("flat")
class Flat(Topology):
    """T0: every device trains the whole network."""


@choice("split")
class Split(Topology):
    """T1 and T1': the front on the device, the back on the server (SplitFed)."""

    version: Literal[1, 2] = 1
    """1: a back for each client, averaged like the fronts. 2: one back that serves clients in random order."""
    gradients: Chain = ROWS
    """Codecs of the cut gradients, to the device."""
    activations: Chain = EIGHT_BITS
    """Codecs of the activations, to the server."""


@choice("local-loss")
class LocalLoss(Topology):
    """T2: the front learns from a head of its own, the back from activations that only go up."""

    every: int = 1
    """Rounds from one upload of activations to the next."""
    activations: Chain = EIGHT_BITS
    """Codecs of the activations."""


@choice("clusters")
class Clusters(Topology):
    """T3: clusters of devices train an ensemble of as many networks; the owner of the data runs all fronts."""

    size: int = 2
    """S: devices of a cluster and networks of the ensemble; the number of devices must be a multiple of it."""
    draw: Literal["fixed", "redrawn"] = "fixed"
    """Whether clusters stay, or are drawn anew in every round (then without error feedback, which needs an owner)."""
    gradients: Chain = ROWS
    """Codecs of the cut gradients, from peers to the owner."""
    activations: Chain = EIGHT_BITS
    """Codecs of the activations, from the owner to peers."""
    cotraining: float = 0.5
    """lambda: weight of the Jensen-Shannon term that makes the networks agree."""
    warmup: int = 40
    """Rounds over which lambda rises from 0."""
    same_view: bool = False
    """Whether all networks see the same random augmentation of an image."""


@message("sparse/state@1")
class State:
    """The evaluated model, the heads of T2, what clients hold by part, and figures of the last round."""

    model: Model
    seed: int
    heads: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    broadcasts: Mapping[str, Broadcast] = field(default_factory=dict[str, Broadcast])
    figures: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass
class Descent:
    """The way down in one round: what goes to whom, part by part, and from where clients start."""

    held: dict[str, Broadcast]
    common: dict[str, Sent]
    start: Weights

    def to(self, part: str, devices: list[Device]) -> dict[Device, Sent]:
        """One message for each device."""
        return grouped(self.held[part], devices, self.common[part])


@method("sparse-collaborative")
class SparseCollaborative:
    """Sparse gradients, distance-based weights, models split over devices (section 4 of the specification)."""

    topology: Topology = field(default_factory=Clusters)
    """Where the network is trained: `flat`, `split`, `local-loss` or `clusters`."""
    sgd: SGD = field(default_factory=SGD)
    """Training of all parts; momentum buffers are reset in every round."""
    cohort: int = 0
    """Devices (or clusters) asked in a round; 0 means all."""
    uplink: Chain = parse(["ef14", {"topk": 0.05}, {"signmag": 8}])
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
        where: Any = self.topology
        faults: list[str] = []
        if isinstance(self.uplink.feedback, EF21):
            faults.append("ef21 sends changes of an estimate, which distances cannot weigh: use ef14, or averaging")
        if not isinstance(where, Flat | LocalLoss):
            faults += [
                f"sgd.{name} = {getattr(self.sgd, name)} has no effect on a cut network: leave it out"
                for name, idle in IDLE
                if getattr(self.sgd, name) != idle
            ]
        if isinstance(where, Clusters) and where.draw == "redrawn" and self.uplink.feedback is not None:
            faults.append(
                "redrawn clusters leave a residual without an owner: fix the clusters or drop the feedback stage"
            )
        if isinstance(where, Clusters) and where.size < 1:
            faults.append(f"topology.size = {where.size}: expected at least 1")
        if isinstance(where, LocalLoss) and where.every < 1:
            faults.append(f"topology.every = {where.every}: expected at least 1")
        if self.ramp and "sparsifier" not in self.uplink.parts:
            faults.append(f"ramp = {self.ramp} has no effect without a sparsifier in uplink: set it to 0")
        if faults:
            raise ValueError("; ".join(faults))
        self._up(0)  # the ramp's chain must have a meaning too

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """Initial weights; the networks of an ensemble start differently, the first of them as the given model.

        Raises:
            ConfigError: the devices do not make whole clusters, or a cut network draws at random (dropout).
        """
        where: Any = self.topology
        kind = next(iter(model.weights.values())).dtype
        if not isinstance(where, Flat) and skeleton(model).random:
            raise ConfigError(
                f"model.name = {model.arch.name!r} has dropout: a part that is computed twice would draw twice; "
                "set it to 0 in model.options, or use topology flat"
            )
        if isinstance(where, LocalLoss):
            drawn = Model.init(sub(model.arch, "auxiliary"), seed_of(server.seed, "heads", -1, 0))
            return State(model, server.seed, heads={n: v.to(kind) for n, v in part_of(drawn.weights, "head").items()})
        if isinstance(where, Clusters):
            if len(fleet.devices) % where.size:
                count = len(fleet.devices)
                raise ConfigError(
                    f"data.clients = {count}: do not make clusters of {where.size}; choose a multiple of it"
                )
            options = {**sub(model.arch, "ensemble").options, "count": where.size}
            drawn = Model.init(Arch("ensemble", options), seed_of(server.seed, "ensemble", -1, 0))
            first = renamed(part_of(model.weights, "stem"), "", "fronts.0") | {
                name: value for name, value in renamed(model.weights, "", "backs.0").items() if ".stem." not in name
            }
            rest = {name: value.to(kind) for name, value in drawn.weights.items()}
            return State(drawn.replace({**rest, **first}), server.seed)
        drawn = {"": Broadcast.of(model, self.downlink)} if isinstance(where, Flat) and self.downlink.delta else {}
        return State(model, server.seed, broadcasts=drawn)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Send, train where the topology says, weigh by distance, step."""
        phase = {Flat: self._flat, Split: self._split, LocalLoss: self._local_loss, Clusters: self._clusters}
        try:
            return phase[type(self.topology)](state, t, fleet)
        except Unanswered as error:
            if not error.forgot:
                raise
            mended = {name: held.forgotten(error.forgot) for name, held in state.broadcasts.items()}
            return replace(state, broadcasts=mended)  # they get everything next time

    # --- the four topologies ---------------------------------------------------------------------------------------

    def _flat(self, state: State, t: int, fleet: Fleet) -> State:
        weights, devices = state.model.weights, cohort(fleet.devices, self.cohort, state.seed, t)
        down = self._down(state, {"": weights}, t)
        requests = each(down.to("", devices), lambda sent: Train(state.model.arch, sent, self.sgd, self._up(t), t))
        answers = fleet.ask(train, requests)
        combined = combine(answers, down.start, fleet, self.weighting)
        self._note(down, "", combined.devices, answers.silent)
        return self._stepped(state, t, weights, down, combined)

    def _split(self, state: State, t: int, fleet: Fleet) -> State:
        where: Any = self.topology
        arch, weights = state.model.arch, part_of(state.model.weights, "stem")
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        down = self._down(state, {"": weights}, t)
        front = sub(arch, "front")
        requests = each(
            down.to("", devices),
            lambda sent: sequential.Front(front, sent, self.sgd, where.activations, self._up(t), t),
        )
        behind = {name: value for name, value in state.model.weights.items() if name not in weights}
        back = Part.fresh(sub(arch, "back"), behind)
        shared, seed = where.version == 2, seed_of(state.seed, "split", t, 0)
        result = sequential.train(fleet, requests, back, self.sgd, where.gradients, seed, shared)
        combined = replace(self._combined(result, down, fleet), loss=result.loss)
        self._note(down, "", combined.devices, result.silent)
        learned = sequential.averaged(result.backs, combined.shares, shared)
        if not shared and self.rate != 1:
            learned = tree.add(behind, tree.subtract(learned, behind), self.rate)
        return self._stepped(state, t, weights, down, combined, learned)

    def _local_loss(self, state: State, t: int, fleet: Fleet) -> State:
        where: Any = self.topology
        arch = state.model.arch
        weights = {**part_of(state.model.weights, "stem"), **state.heads}
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        down = self._down(state, {"": weights}, t)
        requests = each(
            down.to("", devices),
            lambda sent: local_loss.Train(sub(arch, "auxiliary"), sent, self.sgd, self._up(t), t),
        )
        behind = {n: v for n, v in state.model.weights.items() if not n.startswith("stem.")}
        result = local_loss.round_(
            fleet,
            requests,
            Part.fresh(sub(arch, "back"), behind),
            self.sgd,
            where.activations,
            seed_of(state.seed, "local loss", t, 0),
            t % where.every == 0,
        )
        combined = self._combined(result, down, fleet)
        self._note(down, "", combined.devices, result.silent)
        return self._stepped(state, t, weights, down, combined, result.back.weights)

    def _clusters(self, state: State, t: int, fleet: Fleet) -> State:
        where: Any = self.topology
        weights = state.model.weights
        names = ["fronts", *(f"backs.{j}" for j in range(where.size))]
        down = self._down(state, {name: part_of(weights, name) for name in names}, t)
        groups = self._groups(fleet, state.seed, t)
        options = dict(state.model.arch.options)
        del options["count"]
        weight = where.cotraining * min(1.0, (t + 1) / where.warmup if where.warmup else 1.0)
        how = How(
            Arch("front", options),
            Arch("back", options),
            state.model.arch,
            where.size,
            self.sgd,
            where.activations,
            where.gradients,
            self._up(t),
            weight,
            where.same_view,
            t,
        )
        sent = {name: down.to(name, list(fleet.devices)) for name in names}
        result = relay.train(
            fleet, groups, how, lambda device: sent["fronts"][device], lambda device, j: sent[f"backs.{j}"][device]
        )
        combined = replace(self._combined(result, down, fleet), loss=result.loss)
        for id in result.members.keys() - combined.devices:  # a cluster counts as a whole, and so does what it kept
            for member in result.members[id]:
                fleet.reject(Device(member))
        for id in combined.devices:
            members = result.members[id]
            for j, member in enumerate(members):
                self._note(down, f"backs.{j}", (member,), result.silent)
            self._note(down, "fronts", (members[0], members[-1]), result.silent)
        return self._stepped(state, t, weights, down, combined)

    # --- what they share -------------------------------------------------------------------------------------------

    def _combined(self, result: Any, down: Descent, fleet: Fleet) -> Combined:
        """Mean of what a conversation gave."""
        try:
            return combine(result.answers, down.start, fleet, self.weighting)
        except Unanswered as error:
            raise Unanswered(str(error), forgetful(result.silent)) from None

    def _up(self, t: int) -> Chain:
        """The uplink of a round: all values while the ramp lasts."""
        if t >= self.ramp:
            return self.uplink
        left = [s for family, s in self.uplink.parts.items() if family not in ("sparsifier", "positions")]
        for stages in (left, [s for s in left if s.family != "feedback"]):
            try:
                return Chain(tuple(stages)) if "values" in self.uplink.parts else Chain()
            except ValueError:  # nothing is lost any more, so there is nothing to feed back
                continue
        return Chain()

    def _down(self, state: State, parts: Mapping[str, Weights | Mapping[str, Tensor]], t: int) -> Descent:
        down = Descent({}, {}, {})
        for number, (name, weights) in enumerate(parts.items()):
            before = state.broadcasts.get(name, Broadcast())
            seed = seed_of(state.seed, "down", t, number)
            down.held[name], down.common[name], start = before.advance(weights, self.downlink, seed)
            down.start |= start
        return down

    def _note(self, down: Descent, part: str, ids: tuple[str, ...], silent: Mapping[Device, Any]) -> None:
        if self.downlink.delta:
            down.held[part] = down.held[part].heard(ids).forgotten(forgetful(silent))

    def _groups(self, fleet: Fleet, seed: int, t: int) -> list[list[Device]]:
        """Clusters: drawn once, or in every round; then as many of them as take part."""
        where: Any = self.topology
        draw = seed_of(seed, "clusters", t if where.draw == "redrawn" else 0, 0)
        order = torch.randperm(len(fleet.devices), generator=generator(draw)).tolist()
        groups = [[fleet.devices[i] for i in order[k : k + where.size]] for k in range(0, len(order), where.size)]
        taking = {device.id for device in cohort([group[0] for group in groups], self.cohort, seed, t)}
        return [group for group in groups if group[0].id in taking]

    def _stepped(
        self,
        state: State,
        t: int,
        weights: Mapping[str, Tensor],
        down: Descent,
        combined: Combined,
        learned: Mapping[str, Tensor] | None = None,
    ) -> State:
        """The state after a round: what clients sent moves the weights, what the server learned itself replaces its part."""
        exact = not self.downlink.delta and not self.downlink.chain.stages
        new = moved(weights, weights if exact else down.start, combined, self.rate)
        heads = {name: value for name, value in new.items() if name in state.heads}
        fresh = {**{n: v for n, v in new.items() if n not in heads}, **(learned or {})}
        figures = {"train_loss": combined.loss, "dropped": float(combined.dropped), "withheld": combined.withheld}
        if combined.distances:
            figures |= {
                "share_min": min(combined.shares.values()),
                "share_max": max(combined.shares.values()),
                "distance_mean": sum(combined.distances.values()) / len(combined.distances),
            }
        model = state.model.replace({name: fresh[name] for name in state.model.weights})
        return replace(
            state, model=model, heads=heads, broadcasts=down.held if self.downlink.delta else {}, figures=figures
        )

    def model(self, state: State) -> Model:
        """The whole network; in T3 the ensemble, whose score is the mean of its members'."""
        return state.model

    def notes(self) -> Mapping[str, str]:
        """What a report must print beside any number of this method: whose accuracy it is."""
        where = self.topology
        if not isinstance(where, Clusters):
            return {}
        return {
            "judged": f"{where.size} networks that answer together, each cut over the devices of a cluster; no device holds all"
        }

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, dropped updates, withheld share of the updates; with distances also the range of shares."""
        return state.figures
