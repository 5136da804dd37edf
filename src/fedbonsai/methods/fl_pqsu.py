"""FL-PQSU: prune once on the server, send 8-bit codes both ways, upload only what the loss says is worth it.

Xu, Fang, Ding, Zou and Xiong, "Accelerating Federated Learning for IoT in Big Data Analytics With Pruning, Quantization
and Selective Updating", IEEE Access 9, 2021. ``begin`` is SERVER-INIT, ``round`` one turn of the server's loop, the task
``train`` the client's: train, gate, pack. The server keeps each client's newest upload, packed, for rounds it skips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from math import nan
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbonsai import local, tree
from fedbonsai.core import Answers, Client, Fleet, Memory, forgetful, task
from fedbonsai.errors import BadMessage, ConfigError, Forgotten, NotFinite, Unanswered
from fedbonsai.local import SGD
from fedbonsai.methods.registry import method
from fedbonsai.model import Arch, Model
from fedbonsai.stages.broadcast import Broadcast, Coded, Downlink, Sent, grouped, received
from fedbonsai.stages.codec import EF21, Chain, Packed, apply, parse
from fedbonsai.stages.codec.feedback import fed_back
from fedbonsai.stages.pruning import count, gates, scores
from fedbonsai.stages.pruning.filters import All, Keep, Shapes, Target, forms_of, narrowed, prune, select, units, widths
from fedbonsai.stages.pruning.gates import Agreement, Evidence, Gate, Lazy, Loss, Seen
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.updates import FEEDBACK
from fedbonsai.tree import Tree, Weights, seed_of
from fedbonsai.wire import message


@message("fl-pqsu/train@1")
class Train:
    """Model, how to train it, whether to upload it, and how to pack it; nothing sent: go on from your own."""

    arch: Arch
    shapes: Shapes
    sent: Sent | None
    sgd: SGD
    uplink: Chain
    changes: bool
    own: bool
    gate: Gate
    moved: float
    t: int


@message("fl-pqsu/upload@1")
class Upload:
    """New weights, or their change, packed."""

    packed: Packed
    examples: int
    loss: float


@message("fl-pqsu/skip@1")
class Skip:
    """Nothing new: the mark alone."""


@message("fl-pqsu/state@1")
class State:
    """Pruned model, newest upload of each client, who goes on from a model of its own, and figures."""

    model: Model
    seed: int
    parameters: int
    macs: int
    broadcast: Broadcast
    cache: Mapping[str, Upload] = field(default_factory=dict[str, Upload])
    own: tuple[str, ...] = ()
    steps: tuple[float, ...] = ()  # squared norms of the model's last steps, latest first (LAQ)
    loss: float = nan
    uploads: int = 0
    skipped: int = 0
    dropped: int = 0


@task("fl-pqsu/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Upload | Skip, Memory]:
    """The client's part: dequantize, train in fp32, gate, pack."""
    like = forms_of(request.arch, request.shapes)
    start, memory = _start(request, like, memory)
    last_batch = [torch.tensor(nan)]

    def objective(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(net(x), y)
        last_batch[0] = loss.detach()
        return loss

    trained = local.train(Model(request.arch, start), me, request.sgd, loss=objective)
    if not tree.finite(trained.weights):
        raise NotFinite(f"training gave values that are not finite (loss {trained.loss}); lower the learning rate")
    change = tree.subtract(trained.weights, start)
    goal = change if request.changes else trained.weights
    feedback = request.uplink.feedback is not None
    packed, held = apply(request.uplink, goal, memory.get(FEEDBACK, {}), me.seed, request.t if feedback else None)
    last: Packed | None = memory.get("last")
    before: Tree | None = memory.get("before")
    error = 0.0
    if isinstance(request.gate, Lazy):
        error = tree.norm(held["residual"]) ** 2 if feedback else gates.squared(goal, packed.dense(like))
    found = Evidence(
        _statistic(request.gate, request.arch, trained, float(last_batch[0]), me),
        lambda: gates.draw(me.seed),
        lambda: gates.squared(packed.dense(like), last.dense(like) if last is not None else {}),
        lambda: error + memory.get("error", 0.0),
        request.moved,
        lambda: gates.agreement(change, tree.subtract(start, before)) if before is not None else None,
    )
    uploads, seen = gates.decide(request.gate, found, memory.get("seen", Seen()))
    memory = {**memory, "seen": seen}
    if isinstance(request.gate, Agreement):
        memory["before"] = start
    if not uploads:  # the residual stays: what this round learned is learned again from the next model
        return Skip(), {**memory, "own": packed} if request.own else memory
    memory = {key: value for key, value in memory.items() if key != "own"}
    if feedback:
        memory[FEEDBACK] = held
    if isinstance(request.gate, Lazy):
        memory |= {"last": packed, "error": error}
    return Upload(packed, trained.examples, trained.loss), memory


def _start(request: Train, like: Tree, memory: Memory) -> tuple[Weights, Memory]:
    if request.sent is None:
        if "own" not in memory:
            raise Forgotten("nothing was sent, and there is no model of its own here to go on from")
        return memory["own"].dense(like), memory
    if isinstance(request.sent, Coded):  # a pruned network has other forms than its builder's
        return request.sent.packed.dense(like), memory
    return received(request.sent, request.arch, memory)


def _statistic(gate: Gate, arch: Arch, trained: local.Trained, last: float, me: Client) -> float:
    how: Any = gate
    kind = how.statistic if isinstance(gate, Loss) else "mean"
    if kind == "valid":
        return local.evaluate(Model(arch, trained.weights), me.valid, me.device).loss
    return last if kind == "last" else trained.loss


@method("fl-pqsu")
class FlPqsu:
    """Pruning, quantization and selective updating."""

    sgd: SGD = field(default_factory=SGD)
    """Training on the clients and on the server's own samples; momentum starts at zero in every round."""
    pretrain: int = 20
    """Epochs on the server's samples (`data.server`) before pruning; 0 for none."""
    keep: Keep = field(default_factory=Target)
    """How many filters and neurons of each layer stay: `all`, `widths`, `ratio` or `target`."""
    score: Literal["l1", "taylor"] = "l1"
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
        faults = [
            text
            for text, wrong in (
                ("uplink: ef21 keeps estimates of its own beside the cache; use ef14", isinstance(self.uplink.feedback, EF21)),
                ("uplink: feedback is for changes; set changes = true", bool(self.uplink.feedback) and not self.changes),
                ("uplink: weights cannot be sparse; set changes = true", "sparsifier" in self.uplink.parts and not self.changes),
                ("gate lazy compares changes kept at both ends: set changes = true and skippers = 'cache'",
                 isinstance(self.gate, Lazy) and not (self.changes and self.skippers == "cache")),
                ("after_skip = 'own' is for weights sent whole: set changes = false and downlink.delta = false",
                 self.after_skip == "own" and (self.changes or self.downlink.delta)),
                (f"pretrain = {self.pretrain}, finetune = {self.finetune}: expected epochs >= 0",
                 min(self.pretrain, self.finetune) < 0),
            )
            if wrong
        ]  # fmt: skip
        if faults:
            raise ValueError("; ".join(faults))

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """Pre-train, prune once, fine-tune.

        Raises:
            ConfigError: the server has no samples to do this with.
        """
        if not len(server.train) and (self.pretrain or self.finetune or self.score == "taylor"):
            raise ConfigError("fl-pqsu trains on samples of the server: set data.server, or pretrain and finetune to 0")
        channels, height, width = server.train.x.shape[1:]
        size = (channels, height, width)
        model = self._taught(model, server, self.pretrain, "pretrain")
        if not isinstance(self.keep, All):
            groups, values = units(model, size), model.weights
            if self.score == "taylor":
                slopes = local.gradient(model, server.train, server.device)
                values = scores.taylor({name: model.weights[name] for name in slopes}, slopes)
            model = prune(model, groups, select(values, groups, widths(self.keep, model, groups, size)))
        model = self._taught(model, server, self.finetune, "finetune")
        return State(
            model, server.seed, count.parameters(model), count.macs(model, size), Broadcast.of(model, self.downlink)
        )

    def _taught(self, model: Model, server: Client, epochs: int, name: str) -> Model:
        if not epochs:
            return model
        sgd = replace(self.sgd, epochs=epochs, steps=0, proximal=0.0)
        return model.replace(local.train(model, replace(server, seed=seed_of(server.seed, name, -1, 0)), sgd).weights)

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Broadcast, collect what passes the gates, average the newest uploads."""
        weights, stale = state.model.weights, self.skippers == "cache"
        devices = cohort(fleet.devices, self.cohort, state.seed, t)
        held, common, _ = state.broadcast.advance(weights, self.downlink, seed_of(state.seed, "down", t, 0))
        base = Train(
            state.model.arch, narrowed(state.model), None, self.sgd, self.uplink, self.changes,
            self.after_skip == "own", self.gate, gates.moved(self.gate, state.steps), t,
        )  # fmt: skip
        sent = grouped(held, devices, common)
        made = {id(part): replace(base, sent=part) for part in sent.values()}
        send = {device: base if device.id in state.own else made[id(part)] for device, part in sent.items()}
        answers = fleet.ask(train, send)
        try:
            fresh, skipped, dropped = _collected(answers, weights, fleet)
        except Unanswered as error:
            if not error.forgot:
                raise
            own = tuple(id for id in state.own if id not in error.forgot)
            return replace(state, broadcast=state.broadcast.forgotten(error.forgot), own=own)
        forgot = forgetful(answers.silent)
        if self.downlink.delta:
            held = held.heard([*fresh, *skipped]).forgotten(forgot)
        own = {id for id in state.own if id not in fresh and id not in forgot} | set(skipped)
        cache = {**state.cache, **fresh} if stale else fresh
        new = self._averaged(weights, cache, [*fresh, *skipped] if self.changes else list(cache), fresh, fleet)
        steps = gates.stepped(self.gate, state.steps, new, weights)
        total = sum(upload.examples for upload in fresh.values())
        return replace(
            state,
            model=state.model.replace(new),
            broadcast=held,
            cache=cache if stale else {},
            own=tuple(sorted(own)) if self.after_skip == "own" else (),
            steps=steps,
            loss=sum(u.examples * u.loss for u in fresh.values()) / total if total else state.loss,
            uploads=len(fresh),
            skipped=len(skipped),
            dropped=dropped,
        )

    def _averaged(
        self, weights: Tree, cache: Mapping[str, Upload], who: list[str], fresh: Mapping[str, Upload], fleet: Fleet
    ) -> Weights:
        """Mean of newest uploads in the fleet's order, decoded one at a time; the same weights if there are none."""
        mean, within = tree.Mean(), set(fed_back(self.uplink, weights))
        for id in (device.id for device in fleet.devices):
            if id not in who or id not in cache:
                continue
            found: Tree = cache[id].packed.dense(weights)
            if self.changes and id not in fresh:  # statistics of normalisation do not move on twice by one change
                found = {n: value if n in within else torch.zeros_like(value) for n, value in found.items()}
            mean.add(found, cache[id].examples if self.weigh == "examples" else 1)
        if not mean.weight:
            return dict(weights)
        return tree.add(weights, mean.result()) if self.changes else mean.result()

    def model(self, state: State) -> Model:
        """The global model, pruned."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Mean training loss of the latest uploads; uploads, skips and drops; cost of the pruned network."""
        return {
            "train_loss": state.loss,
            "uploads": state.uploads,
            "skipped": state.skipped,
            "dropped": state.dropped,
            "parameters": state.parameters,
            "macs": state.macs,
        }


def _collected(answers: Answers[Upload | Skip], like: Tree, fleet: Fleet) -> tuple[dict[str, Upload], list[str], int]:
    """New uploads by device, who skipped, and how many were dropped: damaged, not finite, of another form.

    Raises:
        Unanswered: nobody uploaded or skipped.
    """
    fresh: dict[str, Upload] = {}
    skipped: list[str] = []
    dropped = 0
    for answer in answers:
        if isinstance(answer.value, Skip):
            skipped.append(answer.device.id)
        elif _usable(answer.value, like):
            fresh[answer.device.id] = answer.value
        else:
            fleet.reject(answer.device)
            dropped += 1
    if not fresh and not skipped:
        raise Unanswered(f"no upload could be used ({dropped} dropped)", forgetful(answers.silent))
    return fresh, skipped, dropped


def _usable(upload: Upload, like: Tree) -> bool:
    try:
        return upload.examples > 0 and tree.finite(upload.packed.dense(like))
    except BadMessage:
        return False
