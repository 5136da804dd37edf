"""A front with a small head of its own on the device; the server's back learns from activations that only go up.

Topology T2 (specs/collaborative §1.2; Han et al. 2021: local-loss split learning). Nothing of the back ever
reaches a device: within a round the server sends the fronts, and later an empty question for the activations.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Answer, Client, Device, Fleet, Memory, task
from fedbonsai.errors import BadMessage, Forgotten
from fedbonsai.methods.split.part import Part, coded, decoded, renamed, sub
from fedbonsai.methods.split.sequential import Activations, Result, learn
from fedbonsai.model import Model
from fedbonsai.stages.broadcast import Sent, received
from fedbonsai.stages.codec import Chain
from fedbonsai.stages.updates import Update, Usable, update
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
    if not shown:
        return Result(answers, {"": back.weights}, float("nan"), trained.silent)
    total = count = 0.0

    def learned(answer: Answer[Activations]) -> bool:
        """The back's steps on what one device shows; those before a damaged batch stay."""
        nonlocal back, total, count
        value = answer.value
        whole = decoded(value.packed, value.shape, dtype_of(back.weights))
        if value.y.shape[:1] != value.shape[:1]:
            raise BadMessage(f"activations of {value.shape} with targets of {tuple(value.y.shape)}")
        for order, cuts in epochs(len(value.y), sgd, generator(seed_of(seed, answer.device.id, 0, 0))):
            for begin, end in cuts:
                pick = order[begin:end]
                part = coded(Chain(), whole[pick], 0)
                back, _, loss = learn(
                    back, Activations(part, (len(pick), *value.shape[1:]), value.y[pick], value.examples), sgd
                )
                total, count = total + loss * len(pick), count + len(pick)
        return True

    usable = Usable(fleet.ask(show, dict.fromkeys((a.device for a in answers), Show(activations)), 0), fleet, learned)
    seen = {answer.device for answer, _ in usable}
    for answer in answers:
        if answer.device not in seen:  # without activations its update does not count either, nor what it kept
            fleet.reject(answer.device)
    answers = [answer for answer in answers if answer.device in seen]
    return Result(answers, {"": back.weights}, total / max(1, count), {**trained.silent, **usable.silent})
