"""Initial pruning at one device, which trains on a few fixed batches and reconfigures until the density settles (PruneFL).

`first_answer` is the server's side, a conversation with one device after another until one answers; `initial_prune` is the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite

import torch
from torch import Tensor

from fedbonsai import training, tree, work
from fedbonsai.core import Client, Device, Fleet, Memory, Samples, task
from fedbonsai.errors import NotFinite, Unanswered
from fedbonsai.methods.prunefl import local_layers
from fedbonsai.methods.prunefl.local_layers import NOTHING, Own
from fedbonsai.model import Model, cached_module
from fedbonsai.settings import COUNT, NOT_NEGATIVE, PART, out_of_range, raise_all
from fedbonsai.stages import held_masks
from fedbonsai.stages.personal import PERSONAL, split
from fedbonsai.stages.pruning.masks import Masks, density, masked
from fedbonsai.stages.pruning.per_time import reconfigured, settled
from fedbonsai.stages.pruning.time_model import Seconds
from fedbonsai.stages.updates import Usable
from fedbonsai.telling import each
from fedbonsai.training.optimizers import Moving, Optimizer
from fedbonsai.training.steps import autocast, prepare
from fedbonsai.tree import Tree, generator, seeded
from fedbonsai.wire import message

LOOK = 10  # iterations from one look at the gate to the next


@message("prunefl/scouting@1")
class InitialPruneConfig:
    """Initial pruning at one device."""

    batches: int = 10
    """B: minibatches, drawn once and used in every iteration."""
    iterations: int = 1000
    """Most iterations, each of B steps; 0: no device prunes alone, all begin with the dense model."""
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

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        counts = dict.fromkeys(("batches", "every"), COUNT)
        least = dict.fromkeys(("iterations", "gate", "tolerance"), NOT_NEGATIVE)
        raise_all(out_of_range(self, **counts, **least, fraction=PART))


@message("prunefl/pilot@1")
class InitialPrune:
    """The dense model, and how to prune it; what ``seconds`` names may be pruned, and ``most`` of it may be kept."""

    model: Model
    sgd: Optimizer
    how: InitialPruneConfig
    seconds: Seconds
    stale: bool
    most: int


@message("prunefl/own-pilot@1")
class OwnInitialPrune:
    """A request whose model is the shared part alone; the device draws its local layers and keeps them."""

    pilot: InitialPrune
    own: Own


@message("prunefl/scouted@1")
class InitiallyPruned:
    """Pruned and trained: ``densities`` after the reconfigurations in iterations ``at``, ``seconds`` by the time model."""

    weights: Mapping[str, Tensor]
    shelf: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    densities: tuple[float, ...]
    at: tuple[int, ...]
    seconds: float


def first_answer(fleet: Fleet, request: InitialPrune, own: Own | None = None) -> tuple[Device, InitiallyPruned]:
    """The first device that answers with a model that fits, and its answer, with names in the model's order.

    Args:
        fleet: the clients.
        request: what is asked of it; with ``own`` its model is the shared part.
        own: the local layers, if there are any.

    Raises:
        Unanswered: there is none; the text has every device's reason.
    """
    reasons: list[str] = []
    sent = request if own is None else OwnInitialPrune(request, own)
    for device in fleet.devices:
        answers = fleet.ask(initial_prune, {device: sent}, at_least=0)
        usable = Usable(answers, fleet, lambda answer: accepted(answer.value, request))
        for _, found in list(usable):
            return device, found
        reasons += [f"{silent.id}: {why.reason}" for silent, why in usable.silent.items()]
    raise Unanswered(f"no device could do the initial pruning ({'; '.join(reasons[:5]) or 'there is none'})")


def accepted(found: InitiallyPruned, request: InitialPrune) -> InitiallyPruned | None:
    """An answer in the server's order, exactly zero where nothing is kept; None if it is not of this network, or not finite."""
    like = request.model.weights
    prunable = {name: like[name] for name in request.seconds.slopes}
    fits = (
        _forms(found.weights) == _forms(like)
        and _forms(found.masks) == {name: (value.shape, torch.bool) for name, value in prunable.items()}
        and _forms(found.shelf) == (_forms(prunable) if found.shelf else {})
        and all(bool(mask.any()) for mask in found.masks.values())
        and tree.finite(found.weights)
        and tree.finite(found.shelf)
        and isfinite(found.seconds)
    )
    if not fits:
        return None
    masks = {name: found.masks[name] for name in prunable}
    shelf = {name: found.shelf[name] for name in masks} if request.stale and found.shelf else {}
    return replace(found, weights=masked({name: found.weights[name] for name in like}, masks), masks=masks, shelf=shelf)


def _forms(weights: Tree) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in weights.items()}


@task("prunefl/scout")
def initial_prune(
    request: InitialPrune | OwnInitialPrune, me: Client, memory: Memory
) -> tuple[InitiallyPruned, Memory]:
    """Train on a few fixed batches and reconfigure until the density settles; local layers are trained too, and stay."""
    own, request = (request.own, request.pilot) if isinstance(request, OwnInitialPrune) else (NOTHING, request)
    if own.names:
        model = request.model
        request = replace(request, model=local_layers.whole(own, model.arch, model.weights, memory))
    found = prune(request, me)
    if own.names:
        shared, mine = split(found.weights, own.names)
        found, memory = replace(found, weights=shared), {**memory, PERSONAL: mine}
    return found, held_masks.hold(memory, found.masks, held_masks.FIRST)


def prune(request: InitialPrune, me: Client) -> InitiallyPruned:
    """Initial pruning on one device's samples."""
    how, sgd = request.how, request.sgd.but(proximal=0.0)
    batches = minibatches(me, sgd, how.batches)
    net = cached_module(request.model, me.device, sgd.channels_last)
    params = list(net.parameters.values())
    moving, objective = Moving(params, sgd.slots()), request.model.arch.objective
    summed = [torch.zeros_like(p) for p in params]  # of squared gradients: nothing is summed before the square here
    masks: Masks = {n: torch.ones(request.model.weights[n].shape, dtype=torch.bool) for n in request.seconds.slopes}
    shelf: Tree = {}
    densities, at, start, i, done, cost = list[float](), list[int](), 0, 0, 0, 0.0

    def learned(since: int) -> Tree:
        """The weights, if they are finite; what was computed since an iteration is reported first."""
        count = (i - since) * len(batches)
        work.report(
            request.model,
            batches[0].shape,
            backward=(i - since) * sum(map(len, batches)),
            passes=count,
            steps=count,
            batch=max(map(len, batches)),
            held=work.size_of(summed, *moving.slots, masks.values(), (batch.x for batch in batches)),
            masks=masks,
        )
        if not tree.finite(weights := net.snapshot()):
            raise NotFinite("initial pruning gave values that are not finite; lower the learning rate")
        return weights

    with seeded(me.seed, me.device, net.foreign):
        for i in each("initial pruning", range(1, how.iterations + 1)):
            if not start and i % LOOK == 1:
                start = i if reached(request.model.replace(net.snapshot()), batches, how.gate, me.device) else 0
            net.module.train()
            held = [(net.parameters[name], mask.to(me.device)) for name, mask in masks.items()]
            for batch in batches:
                with autocast(sgd.precision, me.device):
                    loss = objective.loss(net.module(batch.x), batch.y)
                grads = training.gradients(loss, params)
                with torch.no_grad():
                    torch._foreach_addcmul_(summed, grads, grads)
                    moving.move(sgd, grads, sgd.lr)
                    for parameter, keep in held:
                        parameter.mul_(keep)
            cost += request.seconds.step(masks) * len(batches)
            if not start or (i - start) % how.every:
                continue
            now, done = learned(done), i
            z = {name: value.cpu() for name, value in zip(net.parameters, summed, strict=True)}
            rest = sum(float(value.double().sum()) for name, value in z.items() if name not in masks)
            z, old = (z if how.regrow else masked(z, masks)), masks
            weights, shelf, masks = reconfigured(
                now, shelf, old, z, request.seconds, how.fraction, request.stale, rest, request.most
            )
            net.load(weights)
            torch._foreach_zero_(summed)
            for slot in moving.slots:
                for name, value in zip(net.parameters, slot, strict=True):  # what comes back starts at rest
                    if name in masks:
                        value.mul_((old[name] & masks[name]).to(me.device))
            densities.append(density(masks))
            at.append(i)
            if settled(densities, how.tolerance):
                break
    return InitiallyPruned(learned(done), shelf, masks, tuple(densities), tuple(at), cost)


def minibatches(me: Client, sgd: Optimizer, count: int) -> list[Samples]:
    """The first minibatches of one pass over a client's samples; fewer where it has fewer.

    Raises:
        ConfigError: it has none.
    """
    prepare(me)
    order, cuts = next(training.epochs(len(me.train), sgd.but(steps=0, epochs=1), generator(me.seed)))
    layout = torch.channels_last if sgd.channels_last else torch.contiguous_format
    whole = me.train[order[: cuts[:count][-1][1]]].to(me.device)
    return [Samples(whole.x[a:b].to(memory_format=layout), whole.y[a:b]) for a, b in cuts[:count]]


def reached(model: Model, batches: list[Samples], gate: float, device: str) -> bool:
    """Whether accuracy on the batches is ``gate`` times that of guessing."""
    if gate <= 0:
        return True
    data = Samples(torch.cat([part.x for part in batches]), torch.cat([part.y for part in batches]))
    accuracy = training.evaluate(model, data, device).accuracy
    with torch.inference_mode():
        answers = cached_module(model, device).module.eval()(data.x[:2]).shape[-1]
    return accuracy >= gate / max(2, answers)
