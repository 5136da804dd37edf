"""A front with a small head of its own on the device; the server's back learns from activations that only go up.

Topology T2 (specs/collaborative §1.2; Han et al. 2021: local-loss split learning). Nothing of the back ever
reaches a device: within a round the server sends the fronts, and later an empty question for the activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Answer, Client, Device, Fleet, Memory, Silence, task
from fedbonsai.errors import BadMessage, Forgotten, NotFinite
from fedbonsai.methods.split.part import Part, coded, decoded, renamed, sub
from fedbonsai.methods.split.sequential import Activations, learn
from fedbonsai.model import Model
from fedbonsai.stages.broadcast import Sent, received
from fedbonsai.stages.codec import Chain
from fedbonsai.stages.updates import Update, update
from fedbonsai.training.batches import epochs
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import dtype_of, generator, seed_of
from fedbonsai.wire import message

FRONT = "local-loss/front"  # what a client keeps until it is asked for its activations


@message("local-loss/train@1")
class Train:
    """Front and head of this round, and how to train them."""

    arch: Arch
    sent: Sent
    sgd: Optimizer
    uplink: Chain
    t: int


@message("local-loss/show@1")
class Show:
    """Send the activations of all samples; nothing of the back is in this question."""

    activations: Chain


@task("local-loss/train")
def train(request: Train, me: Client, memory: Memory) -> tuple[Update, Memory]:
    """Train front and head on the local loss."""
    start, memory = received(request.sent, request.arch, memory)
    trained = training.train(Model(request.arch, start), me, request.sgd)
    answer, memory = update(trained, start, request.uplink, memory, me, request.t)
    front = Part.fresh(
        sub(Arch(str(request.arch.options["of"]), request.arch.options["options"]), "front"),
        renamed(trained.weights, "stem", "stem"),
    )
    return answer, {**memory, FRONT: front}


@task("local-loss/show")
def show(request: Show, me: Client, memory: Memory) -> tuple[Activations, Memory]:
    """Activations and labels of all training samples, by the front as it was trained in this round."""
    front = memory.get(FRONT)
    if front is None:
        raise Forgotten("no front was trained here in this round")
    net = front.net(me.device)
    net.module.eval()
    with torch.no_grad():
        x = me.train.x
        found: Tensor = net.module(x.to(me.device)).cpu()
    front.report(x, forward=len(x))
    kept = {name: value for name, value in memory.items() if name != FRONT}
    packed = coded(request.activations, found, me.seed)
    return Activations(packed, tuple(found.shape), me.train.y, len(me.train)), kept


@dataclass(frozen=True)
class Result:
    """What a round gave."""

    answers: list[Answer[Update]]
    back: Part
    loss: float
    silent: dict[Device, Silence] = field(default_factory=dict[Device, Silence])


def train_parts(
    fleet: Fleet,
    requests: Mapping[Device, Train],
    back: Part,
    sgd: Optimizer,
    activations: Chain,
    seed: int,
    shown: bool,
) -> Result:
    """Fronts and heads learn on the devices; then, if ``shown``, the back learns from their activations, device by device.

    Args:
        fleet: the clients.
        requests: first message for each device.
        back: of the server.
        sgd: of the back.
        activations: codecs of the activations.
        seed: of the round.
        shown: whether activations are sent in this round.
    """
    trained = fleet.ask(train, requests, 0)
    answers = list(trained)
    silent, total, count = dict(trained.silent), 0.0, 0
    if not shown:
        return Result(answers, back, float("nan"), silent)
    question = Show(activations)
    seen = fleet.ask(show, {answer.device: question for answer in answers}, 0)
    came: set[Device] = set()
    for answer in seen:
        came.add(answer.device)
        value = answer.value
        try:
            whole = decoded(value.packed, value.shape, dtype_of(back.weights))
            if value.y.shape[:1] != value.shape[:1]:
                raise BadMessage(f"activations of {value.shape} with targets of {tuple(value.y.shape)}")
            for order, cuts in epochs(len(value.y), sgd, generator(seed_of(seed, answer.device.id, 0, 0))):
                for begin, end in cuts:
                    pick = order[begin:end]
                    part = coded(Chain(), whole[pick], 0)
                    got = Activations(part, (len(pick), *value.shape[1:]), value.y[pick], value.examples)
                    back, _, loss = learn(back, got, sgd)
                    total, count = total + loss * len(pick), count + len(pick)
        except (BadMessage, NotFinite) as error:
            silent[answer.device] = Silence(answer.device, str(error))
    silent |= {
        answer.device: Silence(answer.device, "no activations") for answer in answers if answer.device not in came
    }
    silent |= seen.silent
    for device in silent.keys() & {answer.device for answer in answers}:
        fleet.reject(device)  # its activations are missing, so its update does not count either, nor what it kept
    answers = [answer for answer in answers if answer.device not in silent]
    return Result(answers, back, total / max(1, count), silent)
