"""Sparse collaborative learning: position masks, quantized sparse gradients and updates, distance-based weights.

M. Li, X. He, J. Chen, "Federated Collaborative Learning with Sparse Gradients for Heterogeneous Data on
Resource-Constrained Devices", Entropy 2024, 26(12), 1099. The body of the article could not be read: see the card for
what is from its abstract and what is our definition. ``round`` is the algorithm of specs/collaborative §4; where
the network is trained is the ``topology``, and all four share the way up, the weights and the way down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from typing import Any

from torch import Tensor

from fedbonsai import tree
from fedbonsai.core import Client, Device, Fleet, forgetful
from fedbonsai.errors import ConfigError, Unanswered
from fedbonsai.methods.averaging.method import Train, train
from fedbonsai.methods.registry import method
from fedbonsai.methods.sparse_collaborative import local_loss, relay, sequential
from fedbonsai.methods.sparse_collaborative.clusters import How
from fedbonsai.methods.sparse_collaborative.descent import Descent
from fedbonsai.methods.sparse_collaborative.topology import Clusters, Flat, LocalLoss, Split, Topology, faults, groups
from fedbonsai.model import Arch, Model
from fedbonsai.stages.broadcast import Broadcast, Downlink
from fedbonsai.stages.codec import EF21, Chain, Sparsifier, TopK, parse
from fedbonsai.stages.part import Part, cuttable, renamed, sub
from fedbonsai.stages.requests import each
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.settings import NOT_NEGATIVE, POSITIVE, among, outside, refuse
from fedbonsai.stages.updates import Combined, combine, moved
from fedbonsai.stages.weighting import Weighting
from fedbonsai.training.gradients import draws
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import cast, dtype_of, part_of, seed_of
from fedbonsai.wire import message


@message("sparse/state@1")
class State:
    """The evaluated model, the heads of T2, what clients hold by part, and figures of the last round."""

    model: Model
    seed: int
    heads: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    broadcasts: Mapping[str, Broadcast] = field(default_factory=dict[str, Broadcast])
    figures: Mapping[str, float] = field(default_factory=dict[str, float])


@method("sparse-collaborative")
class SparseCollaborative:
    """Sparse gradients, distance-based weights, models split over devices (specs/collaborative §4)."""

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
        ef21 = isinstance(self.uplink.feedback, EF21)
        refuse(
            outside(self, ramp=NOT_NEGATIVE, rate=POSITIVE)
            + faults(self.topology, self.sgd, self.uplink)
            + among(
                (ef21, "ef21 sends changes of an estimate, which distances cannot weigh: use ef14, or averaging"),
                (
                    bool(self.ramp) and "sparsifier" not in self.uplink.parts,
                    f"ramp = {self.ramp} has no effect without a sparsifier in uplink: set it to 0",
                ),
            )
        )

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """Initial weights; the networks of an ensemble start differently, the first of them as the given model.

        Raises:
            ConfigError: the devices do not make whole clusters, or a cut network draws at random (dropout).
        """
        where: Any = self.topology
        kind = dtype_of(model.weights)
        if not isinstance(where, Flat):
            cuttable(model, server.train.x.shape[1:], f"topology {where.choice_name}")
        if not isinstance(where, Flat) and draws(model, server.train.x.shape[1:]):
            raise ConfigError(
                f"model.name = {model.arch.name!r} draws random numbers in training (dropout): a part that is computed "
                "twice would draw twice; set it to 0 in model.options, or use topology flat"
            )
        if isinstance(where, LocalLoss):
            drawn = Model.init(sub(model.arch, "auxiliary"), seed_of(server.seed, "heads", -1, 0))
            return State(model, server.seed, heads=cast(part_of(drawn.weights, "head"), kind))
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
            types = {name: value.dtype for name, value in model.weights.items()}  # fronts.J.NAME and backs.J.NAME
            rest = {name: value.to(types[name.split(".", 2)[2]]) for name, value in drawn.weights.items()}
            return State(drawn.replace({**rest, **first}), server.seed)
        drawn = {"": Broadcast.of(model, self.downlink)} if isinstance(where, Flat) and self.downlink.delta else {}
        return State(model, server.seed, broadcasts=drawn)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Send, train where the topology says, weigh by distance, step."""
        phase: Mapping[type[Topology], Callable[[State, int, Fleet], State]]
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
        down = Descent.of(state.broadcasts, {"": weights}, self.downlink, state.seed, t)
        requests = each(down.to("", devices), lambda sent: Train(state.model.arch, sent, self.sgd, self._up(t), t))
        answers = fleet.ask(train, requests)
        combined = combine(answers, down.start, fleet, self.weighting)
        down.note("", combined.devices, answers.silent)
        return self._stepped(state, t, weights, down, combined)

    def _split(self, state: State, t: int, fleet: Fleet) -> State:
        where: Any = self.topology
        arch, weights = state.model.arch, part_of(state.model.weights, "stem")
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        down = Descent.of(state.broadcasts, {"": weights}, self.downlink, state.seed, t)
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
        down.note("", combined.devices, result.silent)
        learned = sequential.averaged(result.backs, combined.shares, shared)
        if not shared and self.rate != 1:
            learned = tree.add(behind, tree.subtract(learned, behind), self.rate)
        return self._stepped(state, t, weights, down, combined, learned)

    def _local_loss(self, state: State, t: int, fleet: Fleet) -> State:
        where: Any = self.topology
        arch = state.model.arch
        weights = {**part_of(state.model.weights, "stem"), **state.heads}
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        down = Descent.of(state.broadcasts, {"": weights}, self.downlink, state.seed, t)
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
        down.note("", combined.devices, result.silent)
        return self._stepped(state, t, weights, down, combined, result.back.weights)

    def _clusters(self, state: State, t: int, fleet: Fleet) -> State:
        where: Any = self.topology
        weights = state.model.weights
        names = ["fronts", *(f"backs.{j}" for j in range(where.size))]
        parts = {name: part_of(weights, name) for name in names}
        down = Descent.of(state.broadcasts, parts, self.downlink, state.seed, t)
        clusters = groups(fleet.devices, where, self.cohort, state.seed, t)
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
            fleet, clusters, how, lambda device: sent["fronts"][device], lambda device, j: sent[f"backs.{j}"][device]
        )
        combined = replace(self._combined(result, down, fleet), loss=result.loss)
        for id in result.members.keys() - combined.devices:  # a cluster counts as a whole, and so does what it kept
            for member in result.members[id]:
                fleet.reject(Device(member))
        for id in combined.devices:
            members = result.members[id]
            for j, member in enumerate(members):
                down.note(f"backs.{j}", (member,), result.silent)
            down.note("fronts", (members[0], members[-1]), result.silent)
        return self._stepped(state, t, weights, down, combined)

    # --- what they share -------------------------------------------------------------------------------------------

    def _combined(self, result: Any, down: Descent, fleet: Fleet) -> Combined:
        """Mean of what a conversation gave."""
        try:
            return combine(result.answers, down.start, fleet, self.weighting)
        except Unanswered as error:
            raise Unanswered(str(error), forgetful(result.silent)) from None

    def _up(self, t: int) -> Chain:
        """The uplink of a round: all values while the ramp lasts (rho = 1), and small tensors whole as ever."""
        sparsifier = self.uplink.parts.get("sparsifier")
        if t >= self.ramp or not isinstance(sparsifier, Sparsifier):
            return self.uplink
        if "values" not in self.uplink.parts:
            return Chain()  # nothing is lost any more, so there is nothing to feed back
        everything = TopK(fraction=1.0, min_numel=sparsifier.min_numel)
        stages = (everything if stage is sparsifier else stage for stage in self.uplink.stages)
        return Chain(tuple(stage for stage in stages if stage.family != "positions"))

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
        new = moved(weights, weights if down.exact else down.start, combined, self.rate)
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
        return replace(state, model=model, heads=heads, broadcasts=down.kept, figures=figures)

    def model(self, state: State) -> Model:
        """The whole network; in T3 the ensemble, whose score is the mean of its members'."""
        return state.model

    def notes(self) -> Mapping[str, str]:
        """What a report must print beside any number of this method: whose accuracy it is."""
        where: Any = self.topology
        if not isinstance(where, Clusters):
            return {}
        return {
            "judged": f"{where.size} networks that answer together, each cut over the devices of a cluster; no device holds all"
        }

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss, dropped updates, withheld share of the updates; with distances also the range of shares."""
        return state.figures
