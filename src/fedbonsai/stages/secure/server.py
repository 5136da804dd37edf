"""The server's half of a secure sum, as a method calls it in the place of one ask."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np

from fedbonsai.core import Answer, Device, Fleet, Silence, Task
from fedbonsai.errors import ConfigError, Unanswered
from fedbonsai.identity import SIGNATURE
from fedbonsai.stages.secure import keys
from fedbonsai.stages.secure.codes import form_of
from fedbonsai.stages.secure.conversation import Conversation, Talk, fewest
from fedbonsai.stages.secure.device import CHECK, SESSION
from fedbonsai.stages.secure.fixed import LOSS, Codes, Frame, Words, add, frame
from fedbonsai.stages.secure.keys import PUBLIC
from fedbonsai.stages.secure.layout import Floats, Layout
from fedbonsai.stages.secure.messages import NONE, Keys, Noise, Open, Order
from fedbonsai.stages.secure.settings import Secure
from fedbonsai.stages.updates import Combined
from fedbonsai.tree import Tree, Weights


@dataclass(frozen=True)
class Sums:
    """What the server learns of a session.

    Attributes:
        weight: what all updates weigh together; 1 each where all count alike.
        loss: mean, by weight.
        cut: values that were cut.
        learned: sums of codes.
        measured: sums of the finer codes of running statistics.
        wanted: sums of codes of what was asked for beside.
        devices: how many are in the sums.
        stayed: those that answered to the end.
        silent: the others.
        dropped: answers that could not be used.
    """

    weight: int
    loss: float
    cut: int
    learned: Codes
    measured: Codes
    wanted: Codes
    devices: int
    stayed: tuple[str, ...]
    silent: Mapping[Device, Silence]
    dropped: int


@dataclass(frozen=True)
class Summed:
    """What came of a secure sum of updates: the mean change, that of what else was wanted, and who was silent in any step."""

    combined: Combined
    silent: Mapping[Device, Silence]
    wanted: Floats


def ordered(how: Secure, devices: int, seed: int, noise: Noise = NONE) -> Order:
    """The order of a new session.

    Args:
        how: the settings.
        devices: that are asked.
        seed: of this round, the same for all devices.
        noise: that devices add.
    """
    return Order(os.urandom(SESSION), how, devices, seed, noise)


def summed(
    fleet: Fleet,
    task: Task[Any, Any],
    requests: Mapping[Device, Any],
    order: Order,
    start: Tree,
    places: Layout,
    wanted: int = 0,
    finer: bool = False,
) -> Summed:
    """Ask devices to train, and learn the mean of their updates alone: with noise, their noisy sum over all who were asked.

    Args:
        fleet: the clients.
        task: which trains, codes the update (`device.coded`) and calls `device.commit`.
        requests: of that task, which carry the order.
        order: of this session.
        start: weights from which devices train.
        places: coordinates that are summed up.
        wanted: values that each device adds to them.
        finer: whether these have finer codes.

    Raises:
        Unanswered: too few devices stayed for their masks to be taken away; nothing is known of any update then.
        ConfigError: codes of clipped updates are so coarse that they would all be zero.
    """
    how, noise = order.how, order.noise
    form = frame(*form_of(order, *places.counts(start), wanted, finer))
    if noise and form.fields[1].count > how.largest**2:
        raise ConfigError(
            f"secure.bits = {how.bits}: an update of {form.fields[1].count} coordinates that is as long as the clip has codes "
            f"below 1, which are cut off to nothing; expected {math.isqrt(form.fields[1].count).bit_length() + 5} bits or more"
        )
    found = sums(fleet, task, requests, order, form)
    _, parameters, statistics, others = form.fields
    scale = (how.examples or 1) / found.weight
    step = noise.clip / how.largest / order.devices if noise else parameters.step * scale
    mean = places.scatter(
        found.learned.astype(np.float64) * step,
        found.measured.astype(np.float64) * (statistics.step * scale),
        start,
    )
    cut = found.cut / max(1, found.devices * (parameters.count + statistics.count))
    combined = Combined(
        not_below_zero(mean, start),
        False,
        found.weight,
        nan if noise else found.loss,
        found.dropped,
        found.stayed,
        clipped=cut,
    )
    return Summed(
        combined, found.silent, found.wanted.astype(np.float64) * (others.step * scale) if wanted else np.empty(0)
    )


def sums(fleet: Fleet, task: Task[Any, Any], requests: Mapping[Device, Any], order: Order, form: Frame) -> Sums:
    """Ask devices for codes, and learn their sums alone.

    Args:
        fleet: the clients.
        task: which calls `device.commit`.
        requests: of that task, which carry the order.
        order: of this session.
        form: of the codes.

    Raises:
        Unanswered: too few devices stayed, or what came is no sum.
    """
    talk = Talk(fleet)
    if order.how.masked:
        told = dict(talk.ask(task, requests, _keys))
        talk.enough(len(told), fewest(order))
        masked = Conversation(talk, order, form, told, requests)
        masked.run()
        total, alive, stayed = masked.total, masked.alive, masked.stayed
    else:
        total, alive = form.zeros(), list[str]()
        for id, words in talk.ask(task, requests, lambda answer: _opened(answer.value, form)):
            add(total, words)
            alive.append(id)
        talk.enough(len(alive), fewest(order))
        stayed = alive
    wide, learned, measured, wanted = form.signed(total)
    weight, loss, cut = (int(number) for number in wide)
    most = (order.how.examples or 1) * len(requests)
    if not 0 < weight <= most:
        raise Unanswered(f"the updates weigh {weight} together, expected 1 to {most}: a device lied")
    return Sums(
        weight,
        loss / LOSS / weight,
        cut,
        learned,
        measured,
        wanted,
        len(alive),
        tuple(stayed),
        talk.silent,
        talk.dropped,
    )


def not_below_zero(mean: Weights, start: Tree) -> Weights:
    """Changes after which no running variance is below zero, which rounding alone could bring about."""
    return {
        name: value.maximum(-start[name]) if name.endswith("running_var") else value for name, value in mean.items()
    }


def _opened(value: object, form: Frame) -> list[Words] | None:
    return form.unpack(value.payload) if isinstance(value, Open) else None


def _keys(answer: Answer[Any]) -> Keys | None:
    value = answer.value
    if not isinstance(value, Keys):
        return None
    sizes = ((value.mask, PUBLIC), (value.box, PUBLIC), (value.check, CHECK), (value.signature, SIGNATURE))
    fits = all(len(part) == size for part, size in sizes) and keys.usable(value.mask) and keys.usable(value.box)
    return value if fits else None
