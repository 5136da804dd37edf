"""PruneFL: one device prunes a dense model, then FedAvg trains under a mask that is rebuilt to gain most per second.

Jiang, Wang, Valls, Ko, Lee, Leung, Tassiulas, "Model Pruning Enables Efficient Federated Learning on Edge Devices", IEEE
TNNLS 34(12), 2023, arXiv 1909.12326. ``begin`` is the initial pruning at a selected client (`scout`), ``round`` is
further pruning: masked FedAvg, and every ``interval`` rounds the reconfiguration (`stages.pruning.per_time.reconfigured`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite, nan
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedbonsai import local, tree
from fedbonsai.core import Answer, Client, Fleet, Memory, Samples, task
from fedbonsai.errors import BadMessage, ConfigError, NotFinite, Unanswered
from fedbonsai.local import SGD
from fedbonsai.methods.registry import method
from fedbonsai.model import Arch, Model, skeleton
from fedbonsai.stages import held_masks
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.held_masks import HeldMasks, Sent, pack
from fedbonsai.stages.pruning.masks import Masks, density, masked, prunable
from fedbonsai.stages.pruning.per_time import halved, importances, reconfigured, settled
from fedbonsai.stages.pruning.time_model import Measured, Seconds, TimeModel, prototype, seconds
from fedbonsai.stages.sampling import cohort
from fedbonsai.stages.updates import Update, combine
from fedbonsai.tree import Tree, Weights, generator, seed_of
from fedbonsai.wire import message

KEPT = "importance"  # what a client accumulates from one reconfiguration to the next


@message("prunefl/scouting@1")
class Scouting:
    """Initial pruning at one device."""

    batches: int = 10
    """B: minibatches, drawn once and used in every iteration."""
    iterations: int = 1000
    """Most iterations, each of B steps."""
    every: int = 50
    """Iterations from one reconfiguration to the next."""
    gate: float = 1.5
    """The first comes when training accuracy reaches this many times 1 / classes; it is looked at in iterations 1, 11, …"""
    tolerance: float = 0.1
    """Stops when five changes of the density in a row are at most this, relatively."""
    fraction: float = 0.3
    """d: share of each layer's remaining weights that may go at a time."""
    regrow: bool = True
    """Whether pruned weights may come back; in the authors' code they cannot."""


@message("prunefl/pilot@1")
class Pilot:
    """The dense model, and how to prune it."""

    model: Model
    sgd: SGD
    how: Scouting
    seconds: Seconds
    stale: bool


@message("prunefl/scouted@1")
class Scouted:
    """Pruned and trained: ``densities`` after the reconfigurations in iterations ``at``, ``seconds`` by the time model."""

    weights: Mapping[str, Tensor]
    shelf: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    densities: tuple[float, ...]
    at: tuple[int, ...]
    seconds: float


@message("prunefl/train@1")
class Train:
    """A round: ``since`` is the last reconfiguration; ``asked`` for importances, of pruned weights only if ``derived``."""

    arch: Arch
    sent: Sent
    sgd: SGD
    since: int
    asked: bool
    accumulate: bool
    derived: bool


@message("prunefl/update@1")
class Result:
    """Weights under the mask; importances by name where asked, and the sum of those of what is never pruned."""

    update: Update
    importance: Packed | None = None
    rest: float = 0.0


@message("prunefl/state@1")
class State:
    """Model with exact zeros, masks and their holders, the shelf of pruned values, and figures.

    ``since`` is the round of the last reconfiguration, ``paper`` the bytes down and up of §2's formulas, ``scouted`` the
    modelled seconds of the beginning.
    """

    model: Model
    seed: int
    held: HeldMasks
    shelf: Mapping[str, Tensor]
    seconds: Seconds
    since: int = 0
    scouted: float = 0.0
    loss: float = nan
    dropped: int = 0
    paper: tuple[int, int] = (0, 0)


@task("prunefl/scout")
def scout(request: Pilot, me: Client, memory: Memory) -> tuple[Scouted, Memory]:
    """Train on a few fixed batches and reconfigure until the density settles."""
    how, names, sgd = request.how, list(request.seconds.slopes), replace(request.sgd, proximal=0.0)
    net = skeleton(request.model, me.device, sgd.channels_last)
    data, cuts = drawn(me, sgd, how.batches)
    params = list(net.parameters.values())
    momentum = [torch.zeros_like(p) for p in params] if sgd.momentum else []
    summed = [torch.zeros_like(p) for p in params]  # of squared gradients: nothing is summed before the square here
    masks: Masks = {name: torch.ones_like(net.parameters[name], dtype=torch.bool, device="cpu") for name in names}
    shelf: Tree = {}
    places = {name: place for place, name in enumerate(net.parameters)}
    held = {places[name]: mask.to(me.device) for name, mask in masks.items()}
    densities, at, start, cost = list[float](), list[int](), 0, 0.0
    step = request.seconds.step(masks)
    with local.randomness(net, me):
        for i in range(1, how.iterations + 1):
            if not start and i % 10 == 1:
                start = i if reached(request.model.replace(net.snapshot()), data, how.gate, me.device) else 0
            net.module.train()
            for begin, end in cuts:
                x = data.x[begin:end]
                x = x.to(memory_format=torch.channels_last) if sgd.channels_last else x
                with local.autocast(sgd.precision, me.device):
                    loss = F.cross_entropy(net.module(x), data.y[begin:end])
                grads = list(torch.autograd.grad(loss, params))
                with torch.no_grad():
                    torch._foreach_addcmul_(summed, grads, grads)
                    local.descend(params, grads, sgd, momentum)
                    for place, keep in held.items():
                        params[place].mul_(keep)
            cost += step * len(cuts)
            if not start or (i - start) % how.every:
                continue
            weights = net.snapshot()
            z = {name: value.cpu() for name, value in zip(places, summed, strict=True)}
            rest = sum(float(value.double().sum()) for name, value in z.items() if name not in masks)
            z = z if how.regrow else masked(z, masks)
            weights, shelf, masks = reconfigured(
                weights, shelf, masks, z, request.seconds, how.fraction, request.stale, rest
            )
            step = request.seconds.step(masks)
            net.load(weights)
            torch._foreach_zero_(summed)
            held = {places[name]: mask.to(me.device) for name, mask in masks.items()}
            for place, keep in held.items() if momentum else ():
                momentum[place].mul_(keep)
            densities.append(density(masks))
            at.append(i)
            if settled(densities, how.tolerance):
                break
    weights = net.snapshot()
    if not tree.finite(weights):
        raise NotFinite("the scout's training gave values that are not finite; lower the learning rate")
    found = Scouted(weights, shelf, masks, tuple(densities), tuple(at), cost)
    return found, held_masks.hold(memory, masks, held_masks.FIRST)


def drawn(me: Client, sgd: SGD, count: int) -> tuple[Samples, list[tuple[int, int]]]:
    """A few minibatches of a client's samples, one after another, and where to cut them."""
    order, cuts = next(local.epochs(len(me.train), sgd, generator(me.seed)))
    return me.train[order[: cuts[:count][-1][1]]].to(me.device), cuts[:count]


def reached(model: Model, data: Samples, gate: float, device: str) -> bool:
    """Whether accuracy on the batches is ``gate`` times that of guessing."""
    classes = list(model.weights.values())[-1].shape[0]  # the classifier's bias has one value for each
    return local.evaluate(model, data, device).accuracy >= gate / classes


@task("prunefl/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Result, Memory]:
    """Local steps of the masked model; gradients are of all coordinates, pruned ones too."""
    start, masks, memory = held_masks.received(request.sent, request.arch, memory)
    summed: Weights = {}

    def add(grads: Mapping[str, Tensor]) -> None:
        for name, value in grads.items():
            if name in summed:
                summed[name].add_(value)
            else:
                summed[name] = value.clone()  # the gradient's own buffer changes with the step

    watch = add if request.asked or request.accumulate else None
    trained = local.train(Model(request.arch, start), me, request.sgd, mask=masks, hook=watch)
    examples = processed(trained, request.sgd)
    update = Update(pack(trained.weights, masks, me.seed), examples, trained.steps, trained.loss)
    if watch is None:
        return Result(update), memory
    z, rest = importances({name: value.cpu() for name, value in summed.items()}, masks, examples)
    before: dict[str, Any] = memory.get(KEPT, {})
    if request.accumulate and before.get("since") == request.since:
        z, rest = tree.add(z, before["z"]), rest + before["rest"]
    memory = {name: value for name, value in memory.items() if name != KEPT}
    if not request.asked:
        return Result(update), {**memory, KEPT: {"since": request.since, "z": z, "rest": rest}}
    pruned = {name: ~mask for name, mask in masks.items()} if request.derived else {}
    return Result(update, pack(z, pruned, me.seed), rest), memory


def processed(trained: local.Trained, sgd: SGD) -> int:
    """n_k: samples of a round; E batches, not the client's whole data."""
    return trained.steps * min(sgd.batch, trained.examples)


@dataclass
class Gathered:
    """Importances of a reconfiguration, as answers come."""

    z: Weights
    rest: float = 0.0


def opened(answers: Iterable[Answer[Result]], state: State, asked: Train, to: Gathered) -> Iterator[Answer[Update]]:
    """Updates unpacked under the masks; one that cannot be used goes on empty, so that `combine` drops it."""
    start, masks = state.model.weights, state.held.masks
    pruned = {name: ~mask for name, mask in masks.items()}
    for answer in answers:
        value = answer.value
        update = replace(value.update, result={})
        try:
            if not isinstance(value.update.result, Packed):
                raise BadMessage("expected packed weights")
            weights = value.update.result.dense(start, masks)
            if asked.asked:
                if value.importance is None or not (isfinite(value.rest) and value.rest >= 0):
                    raise BadMessage("importances are missing, or not finite")
                z = value.importance.dense({name: start[name] for name in masks}, pruned if asked.derived else {})
                if asked.derived:  # with plain SGD the change is -lr times the sum of the gradients
                    n, lr = value.update.examples, asked.sgd.lr
                    kept = {name: n * ((weights[name] - start[name]) / lr).square() for name in masks}
                    z = {name: torch.where(masks[name], kept[name], z[name]) for name in masks}
                if not (tree.finite(weights) and tree.finite(z)) or any(bool((part < 0).any()) for part in z.values()):
                    raise BadMessage("importances are negative, or not finite")
                to.z, to.rest = tree.add(to.z, z), to.rest + value.rest
            update = replace(value.update, result=masked(weights, masks))
        except BadMessage:
            pass
        yield Answer(answer.device, update, answer.down, answer.up)


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
    importance: Literal["round", "interval"] = "round"
    """Of the round in which it is asked for, or accumulated on clients since the last reconfiguration."""
    regrowth: Literal["stale", "zero"] = "stale"
    """What weights that come back begin with: the value they went with, or zero."""
    never: tuple[str, ...] = ("shortcut",)
    """Weights whose names contain one of these are never pruned."""
    scouting: Scouting = field(default_factory=Scouting)
    """Initial pruning at one device."""
    time: TimeModel = field(default_factory=Measured)
    """Seconds of a round: `measured` with one's own coefficients, or `table` with the authors'."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("interval", "lr_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least 1")
        if self.sgd.steps < 1:
            raise ValueError("sgd.steps = 0: PruneFL's time model and importances count local steps; set E, such as 5")
        for fraction in (self.fraction, self.scouting.fraction):
            if not 0 <= fraction < 1:
                raise ValueError(f"fraction = {fraction}: expected a share in [0, 1)")

    def begin(self, model: Model, fleet: Fleet, server: Client) -> State:
        """Initial pruning at the first device that answers.

        Raises:
            ConfigError: nothing can be pruned.
            Unanswered: no device answered with a model that fits.
        """
        names = [name for name in prunable(model) if not any(part in name for part in self.never)]
        if not names:
            raise ConfigError(f"model {model.arch.name!r} has no weights that may be pruned; see method.never")
        times = seconds(self.time, names, self.sgd.steps)
        pilot = Pilot(model, self.sgd, self.scouting, times, self.regrowth == "stale")
        for device in fleet.devices:
            answers = list(fleet.ask(scout, {device: pilot}, at_least=0))
            if not answers:
                continue  # a silent scout is replaced by the next device
            found = answers[0].value
            if fits(found, model.weights, names):
                held = HeldMasks(found.masks).heard([device.id])
                weights = masked(found.weights, found.masks)
                return State(model.replace(weights), server.seed, held, found.shelf, times, scouted=found.seconds)
            fleet.reject(device)
        raise Unanswered("no device could do the initial pruning")

    def round(self, state: State, t: int, fleet: Fleet) -> State:
        """Masked FedAvg; in every ``interval``-th round the server rebuilds the mask."""
        devices, weights, held = cohort(fleet.devices, self.cohort, state.seed, t), state.model.weights, state.held
        sgd = replace(self.sgd, lr=self.sgd.lr * halved(t, self.lr_half_life, self.lr_every))
        asked, accumulate = t > 0 and t % self.interval == 0, self.importance == "interval"
        plain = sgd.lr > 0 and not (sgd.momentum or sgd.weight_decay or sgd.proximal or sgd.clip)
        sent = held.send(weights, devices, seed_of(state.seed, "down", t, 0))
        made = {
            id(part): Train(state.model.arch, part, sgd, state.since, asked, accumulate, plain and not accumulate)
            for part in sent.values()
        }
        answers = fleet.ask(train, {device: made[id(part)] for device, part in sent.items()})
        gathered = Gathered({name: torch.zeros_like(weights[name]) for name in held.masks})
        combined = combine(opened(answers, state, next(iter(made.values())), gathered), weights, fleet)
        new_to = sum(not held.holds(device) for device in devices)
        state = replace(
            state,
            model=state.model.replace(masked(combined.mean, held.masks)),
            held=held.heard(combined.devices).silent(answers.silent),
            loss=combined.loss,
            dropped=combined.dropped,
            paper=prototype(weights, held.masks, len(devices), new_to, len(combined.devices), asked),
        )
        return self.rebuilt(state, gathered, t) if asked else state

    def rebuilt(self, state: State, gathered: Gathered, t: int) -> State:
        """The mask of most importance per second, and the weights under it."""
        fraction, stale = self.fraction * halved(t, self.fraction_half_life), self.regrowth == "stale"
        weights, shelf, masks = reconfigured(
            state.model.weights,
            state.shelf,
            state.held.masks,
            gathered.z,
            state.seconds,
            fraction,
            stale,
            gathered.rest,
        )
        model = state.model.replace(weights)
        return replace(state, model=model, held=state.held.renewed(masks), shelf=shelf, since=t)

    def model(self, state: State) -> Model:
        """The global model, exactly zero where it is pruned."""
        return state.model

    def metrics(self, state: State) -> Mapping[str, float]:
        """Loss, dropped updates, density, weights kept, modelled seconds (a round's, the scout's), and the paper's bytes."""
        masks = state.held.masks
        return {
            "train_loss": state.loss,
            "dropped": state.dropped,
            "density": density(masks),
            "kept": sum(int(mask.sum()) for mask in masks.values()),
            "modelled_seconds": state.seconds.round(masks),
            "scout_seconds": state.scouted,
            "paper_down": state.paper[0],
            "paper_up": state.paper[1],
        }


def fits(found: Scouted, weights: Tree, names: list[str]) -> bool:
    """Whether a scout's answer is of this network and finite."""
    return (
        {name: value.shape for name, value in found.weights.items()} == {n: v.shape for n, v in weights.items()}
        and {name: mask.shape for name, mask in found.masks.items()} == {n: weights[n].shape for n in names}
        and all(mask.dtype == torch.bool and bool(mask.any()) for mask in found.masks.values())
        and all(name in weights and value.shape == weights[name].shape for name, value in found.shelf.items())
        and tree.finite(found.weights)
        and tree.finite(found.shelf)
    )
