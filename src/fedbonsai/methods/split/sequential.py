"""A front on the device, a back on the server, batch by batch (SplitFed: Thapa et al., AAAI 2022, arXiv 2004.12088).

Topologies T1 and T1' (specs/collaborative §1.2): version 1 has a back for each client, version 2 a single one
that serves the clients in random order. Labels go to the server in the clear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedbonsai import tree
from fedbonsai.arch import Arch
from fedbonsai.core import Answer, Client, Device, Fleet, Memory, Silence, task
from fedbonsai.errors import BadMessage, Forgotten, NotFinite
from fedbonsai.methods.split.part import Part, batch, coded, decoded
from fedbonsai.stages.broadcast import Sent, Whole, received
from fedbonsai.stages.codec import Chain, Packed
from fedbonsai.stages.updates import Update, Usable, update
from fedbonsai.training.gradients import gradients
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.steps import Trained
from fedbonsai.tree import Tree, Weights, dtype_of, generator, seed_of
from fedbonsai.wire import message

HERE = "split"  # what a client keeps between the batches of a round


@message("split/front@1")
class Front:
    """The front of this round, and how to train it."""

    arch: Arch
    sent: Sent
    sgd: Optimizer
    activations: Chain
    uplink: Chain
    t: int


@message("split/gradient@1")
class CutGradient:
    """Gradient of the loss by the activations that were sent last."""

    packed: Packed


@message("split/activations@1")
class Activations:
    """What the front makes of a batch, and the labels; ``shape`` is that of the activations."""

    packed: Packed
    shape: tuple[int, ...]
    y: Tensor
    examples: int  # of the client


@task("split/step")
def step(request: Front | CutGradient, me: Client, memory: Memory) -> tuple[Activations | Update, Memory]:
    """Learn from the batch before, and send the activations of the next one; behind the last, the packed update."""
    if isinstance(request, Front):
        start, memory = received(request.sent, request.arch, memory)
        own: dict[str, Any] = {
            "part": Part.fresh(request.arch, start),
            "start": start,
            "how": replace(request, sent=Whole({})),  # without the weights
            "seed": me.seed,
            "number": 0,
        }
    else:
        if HERE not in memory:
            raise Forgotten("a gradient came, but no round is in progress here")
        own = dict(memory[HERE])
        how: Front = own["how"]
        last = batch(me, own["seed"], how.sgd, own["number"])
        assert last is not None
        shape = own["part"].output(last.x, me.device).shape
        gradient = decoded(request.packed, tuple(shape), dtype_of(own["part"].weights))
        own["part"] = own["part"].pulled(last.x, gradient, how.sgd, me.device)
        own["number"] += 1
    how = own["how"]
    following = batch(me, own["seed"], how.sgd, own["number"])
    if following is not None:
        sent = own["part"].output(following.x, me.device).cpu()
        packed = coded(how.activations, sent, me.seed)
        return Activations(packed, tuple(sent.shape), following.y.cpu(), len(me.train)), {**memory, HERE: own}
    memory = {name: value for name, value in memory.items() if name != HERE}
    trained = Trained(dict(own["part"].weights), len(me.train), own["number"], 0.0)
    return update(trained, own["start"], how.uplink, memory, me, how.t)


@dataclass(frozen=True)
class Result:
    """What a round of split training gave: the devices' answers, the backs, the mean loss, and who fell silent."""

    answers: list[Answer[Update]]
    backs: Mapping[str, Tree]  # by device; where one serves all, under ""
    loss: float
    silent: Mapping[Device, Silence]


def train(
    fleet: Fleet,
    fronts: Mapping[Device, Front],
    back: Part,
    sgd: Optimizer,
    gradients: Chain,
    seed: int,
    shared: bool,
) -> Result:
    """Train fronts with the backs at the server, until every device has sent its update.

    Args:
        fleet: the clients.
        fronts: first message for each device.
        back: of this round.
        sgd: of the backs.
        gradients: codecs of the cut gradients.
        seed: of the round.
        shared: one back for all (version 2), else one for each client (version 1).
    """
    backs = {"" if shared else device.id: back for device in fronts}
    answers: list[Answer[Update]] = []
    silent: dict[Device, Silence] = {}
    total = count = 0.0
    asked: dict[Device, Front | CutGradient] = dict(fronts)
    number = 0

    def learned(answer: Answer[Activations | Update]) -> CutGradient | Update:
        """An update as it is; for activations the gradient by them, once the back has learned from them."""
        nonlocal total, count
        value, key = answer.value, "" if shared else answer.device.id
        if isinstance(value, Update):
            return value
        backs[key], gradient, loss = learn(backs[key], value, sgd)
        packed = coded(gradients, gradient, seed_of(seed, answer.device.id, 0, number))
        total, count = total + loss * len(value.y), count + len(value.y)
        return CutGradient(packed)

    while asked:
        if shared:  # clients in random order, anew for every batch
            turn = torch.randperm(len(asked), generator=generator(seed_of(seed, "order", 0, number))).tolist()
            devices = list(asked)
            asked = {devices[place]: asked[devices[place]] for place in turn}
        usable = Usable(fleet.ask(step, asked, 0), fleet, learned)
        asked = {}
        for answer, value in usable:
            if isinstance(value, Update):
                answers.append(answer.of(value))
            else:
                asked[answer.device] = value
        silent |= usable.silent
        number += 1
    finished = {answer.device for answer in answers}
    for device in fronts:
        if device not in finished:  # it fell silent on the way: what it kept of this round does not count
            fleet.reject(device)
    places = {device: place for place, device in enumerate(fronts)}
    answers.sort(key=lambda answer: places[answer.device])
    return Result(answers, {key: part.weights for key, part in backs.items()}, total / max(1.0, count), silent)


def learn(back: Part, got: Activations, sgd: Optimizer) -> tuple[Part, Tensor, float]:
    """One step of a back on activations: the back, the gradient by the activations, the loss.

    Raises:
        BadMessage: activations and labels do not fit each other or the back.
    """
    if got.y.shape[:1] != got.shape[:1]:
        raise BadMessage(f"activations of {got.shape} with targets of {tuple(got.y.shape)}")
    cut = decoded(got.packed, got.shape, dtype_of(back.weights)).requires_grad_()
    net = back.net("cpu")
    try:
        loss = back.arch.objective.loss(net.module(cut), got.y)
    except (RuntimeError, IndexError, ValueError) as error:
        raise BadMessage(f"activations do not fit the network behind the cut: {error}") from None
    gradient, *grads = gradients(loss, [cut, *net.parameters.values()])
    if not bool(torch.isfinite(loss)):
        raise NotFinite("the loss behind the cut is not finite")
    return back.stepped(net, grads, sgd), gradient, float(loss.detach())


def averaged(backs: Mapping[str, Tree], shares: Mapping[str, float], shared: bool) -> Weights:
    """The back after a round: the only one, or the mean of the clients' by the same shares as their fronts."""
    if shared:
        return dict(backs[""])
    mean = tree.Mean()
    for device, share in shares.items():
        mean.add(backs[device], share)
    return mean.result()
