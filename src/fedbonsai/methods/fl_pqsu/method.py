"""FL-PQSU: prune once on the server, send 8-bit codes both ways, upload only what the loss says is worth it.

Xu, Fang, Ding, Zou and Xiong, "Accelerating Federated Learning for IoT in Big Data Analytics With Pruning, Quantization
and Selective Updating", IEEE Access 9, 2021. ``begin`` is SERVER-INIT, ``round`` one turn of the server's loop, the task
``train`` of `client` the client's: train, gate, pack. The server keeps each client's newest upload, packed,
for rounds it skips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import ClassVar, Literal

from fedbonsai.core import Client, Fleet
from fedbonsai.errors import Unanswered
from fedbonsai.methods.fl_pqsu.client import Train, Upload, train
from fedbonsai.methods.fl_pqsu.newest import Tally, aggregate, receive
from fedbonsai.methods.fl_pqsu.one_shot import Score, pretrain, prune_once
from fedbonsai.methods.fl_pqsu.selective_settings import faults
from fedbonsai.methods.registry import method
from fedbonsai.model import Model
from fedbonsai.settings import NOT_NEGATIVE, out_of_range, raise_all, when
from fedbonsai.stages.broadcast import Broadcast, Downlink, Sent, grouped
from fedbonsai.stages.codec import Chain, parse
from fedbonsai.stages.needs import all_trained_needed
from fedbonsai.stages.pruning.count import Cost
from fedbonsai.stages.pruning.filters import Keep, Target
from fedbonsai.stages.pruning.gates import Gate, Loss
from fedbonsai.stages.pruning.units import narrowed
from fedbonsai.stages.requests import requests_for
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.selective import Rule
from fedbonsai.training.optimizers import SGD, Optimizer
from fedbonsai.tree import seed_of
from fedbonsai.wire import message


@message("fl-pqsu/state@1")
class State:
    """Pruned model and what it costs, newest upload of each client, who goes on from a model of its own, and figures."""

    model: Model
    seed: int
    cost: Cost
    broadcast: Broadcast
    cache: Mapping[str, Upload] = field(default_factory=dict[str, Upload])
    own: tuple[str, ...] = ()
    steps: tuple[float, ...] = ()  # squared norms of the model's last steps, latest first (LAQ)
    tally: Tally = field(default_factory=Tally)

    def needing_full(self, forgot: tuple[str, ...], models: int) -> State:
        """Note who had lost what they held, after a round of which nothing else came: they get everything next time."""
        own = tuple(id for id in self.own if id not in forgot)
        return replace(self, broadcast=self.broadcast.needs_full(forgot), own=own, tally=self.tally.no_updates(models))


@method("fl-pqsu")
class FlPqsu:
    """Pruning, quantization and selective updating."""

    lacks: ClassVar = {
        "privacy": "a device's loss decides whether it sends, and the newest upload of one that does not counts again "
        "and again"
    }

    optimizer: Optimizer = field(default_factory=SGD)
    """Training on the clients and on the server's own samples; momentum starts at zero in every round."""
    pretrain: int = 20
    """Epochs on the server's samples (`data.server`) before pruning; 0 for none."""
    keep: Keep = field(default_factory=Target)
    """How many filters and neurons of each layer stay: `all`, `widths`, `ratio` or `target`."""
    score: Score = "l1"
    """What makes a unit worth keeping: norm of its weights, or (w g)^2 on the server's samples."""
    finetune: int = 0
    """Epochs on the server's samples after pruning."""
    cohort: int = 0
    """Devices asked in a round; 0 means all."""
    uplink: Chain = parse(["ef14", {"affine": {"bits": 8, "scope": "channel"}}])
    """Codecs of the way up."""
    changes: bool = True
    """Whether changes of the weights go up, or the weights themselves."""
    downlink: Downlink = field(default_factory=Downlink)
    """Codecs of the way down."""
    gate: Gate = field(default_factory=Loss)
    """When a client uploads: `open`, `loss`, `lazy`, `agreement` or `chance`."""
    skippers: Literal["cache", "drop"] = "cache"
    """A client that skips counts with its last upload, or not at all."""
    after_skip: Literal["global", "own"] = "global"
    """What a client trains from after it skipped."""
    weigh: Literal["equal", "examples"] = "equal"
    """How clients count."""

    def __post_init__(self) -> None:
        """Refuse settings that have no effect or no meaning."""
        own, delta = self.after_skip == "own", self.downlink.delta
        found = faults(self.uplink, self.gate, self.changes, self.skippers == "cache", own, delta)
        idle = self.score != "l1" and not self.keep.prunes
        found += when((idle, f"score = {self.score!r} has no effect with keep = 'all': leave it out"))
        raise_all(found + out_of_range(self, pretrain=NOT_NEGATIVE, finetune=NOT_NEGATIVE))

    def samples_before(self, people: Sequence[Client], server: Client, workers: int) -> float:
        """Count the samples that the server trains on."""
        return (self.pretrain + self.finetune + (self.score == "taylor")) * len(server.train)

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """Pre-train, prune once, fine-tune.

        Raises:
            ConfigError: the server has no samples to do this with, or a part of the network is not trained.
        """
        if self.keep.prunes:
            all_trained_needed(model, "fl-pqsu", "prunes whole filters, and with them the inputs of other layers")
        size = server.train.shape
        model = pretrain(model, server, self.optimizer, self.pretrain, "pretrain")
        model = prune_once(model, self.keep, self.score, server, size)
        model = pretrain(model, server, self.optimizer, self.finetune, "finetune")
        return State(model, server.seed, Cost.of(model, size, self.optimizer), Broadcast.of(model, self.downlink))

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Broadcast, collect what passes the gates, average the newest uploads."""
        model, shapes = state.model, narrowed(state.model)
        weights, devices = model.weights, cohort(fleet.devices, self.cohort, state.seed, t)
        own, cached = self.after_skip == "own", self.skippers == "cache"
        held, common, _ = state.broadcast.advance(weights, self.downlink, seed_of(state.seed, "down", t, 0))
        rule = Rule(self.uplink, self.changes, own, self.gate, self.gate.threshold(state.steps), t)

        def request(sent: Sent | None) -> Train:
            return Train(model.arch, shapes, sent, self.optimizer, rule)

        send = requests_for(grouped(held, devices, common, self.downlink), request)
        send |= dict.fromkeys((device for device in devices if device.id in state.own), request(None))
        models = sum(asked.sent is not None for asked in send.values())
        try:
            found = receive(fleet.ask(train, send), weights, fleet, self.changes)
        except Unanswered as error:
            if not error.forgot:
                raise
            return state.needing_full(error.forgot, models)
        cache = {**state.cache, **found.fresh} if cached else found.fresh
        who = [*found.fresh, *found.skipped]
        counted = who if self.changes else cache  # a change is of this round's model, weights are of any
        order = [device.id for device in fleet.devices if device.id in counted]
        new = aggregate(weights, cache, found.fresh, order, self.changes, self.weigh == "examples")
        tally = state.tally.counted(models, found)
        gone = {*found.fresh, *found.forgot}
        return replace(
            state,
            model=model.replace(new),
            broadcast=held.received(who).needs_full(found.forgot) if self.downlink.delta else held,
            cache=cache if cached else {},
            own=tuple(sorted({*state.own, *found.skipped} - gone)) if own else (),
            steps=self.gate.stepped(state.steps, new, weights),
            tally=tally,
        )

    def model(self, state: State) -> Model:
        """Return the global model, pruned."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Tell loss, uploads, skips and drops, the share of skips, the network's cost, and bytes so far as a paper counts."""
        return state.tally.figures(state.model, self.uplink, self.downlink.chain) | state.cost.figures()
