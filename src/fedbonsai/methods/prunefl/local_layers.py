"""A personal part that never travels at all: each device draws its beginning from a seed, trains it and keeps it.

The parts are those of `stages.personal`, and so is the judging; there the server sends what a new device begins with, here
it sends a seed. A device that lost its part begins again, which nobody needs to be told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import cast

from fedbonsai import training
from fedbonsai.core import Client, Fleet, Memory, task
from fedbonsai.model import Arch, Model
from fedbonsai.stages.held_masks import HeldMasks, Sent, received
from fedbonsai.stages.personal import PERSONAL, Judged, judged, merged, personal_names, split
from fedbonsai.stages.pruning.masks import Masks
from fedbonsai.stages.requests import each
from fedbonsai.training.steps import Trained
from fedbonsai.tree import Weights
from fedbonsai.wire import message


@message("own-part/rule@1")
class Own:
    """Names of the personal weights, and the seed from which they are drawn at first."""

    names: tuple[str, ...]
    seed: int


NOTHING = Own((), 0)


def held(own: Own, arch: Arch, memory: Memory) -> Weights:
    """A device's personal part: what it keeps, or a new one."""
    if not own.names:
        return {}
    found = cast("Weights | None", memory.get(PERSONAL))
    return dict(found) if found is not None else split(Model.init(arch, own.seed).weights, own.names)[1]


def drawn(model: Model, patterns: Iterable[str], seed: int) -> Own | None:
    """The personal part of a model by names or their patterns (`personal.personal_names`); None without any.

    Args:
        model: of which it is a part, drawn anew from the seed of the model itself where that is known.
        patterns: of names.
        seed: otherwise.

    Raises:
        ConfigError: a pattern that no weight has.
    """
    names = personal_names(model, patterns)
    return Own(names, model.drawn if model.drawn >= 0 else seed) if names else None


def shared(model: Model, own: Own | None) -> Model:
    """The part that travels; the very model where nothing is personal."""
    return model if own is None else model.replace(split(model.weights, own.names)[0])


def started(own: Own, sent: Sent, arch: Arch, memory: Memory) -> tuple[Model, Masks, Memory]:
    """The whole model that a device trains, the masks of its shared part, and the memory that holds them.

    Raises:
        Forgotten: the masks that came before are not held here.
    """
    values, masks, memory = received(sent, arch, memory, own.names)
    return merged(arch, values, held(own, arch, memory)), masks, memory


def kept(own: Own, trained: Trained, memory: Memory) -> tuple[Trained, Memory]:
    """What was trained without the personal part, and the memory with it.

    Raises:
        NotFinite: a weight is NaN or infinite; the device counts as silent, its memory stays.
    """
    if not own.names:
        return trained, memory
    sent, personal = split(trained.finite().weights, own.names)
    return replace(trained, weights=sent), {**memory, PERSONAL: personal}


@message("own-part/judge@1")
class Judge:
    """Judge the personal model: the shared part under its masks, with the device's own."""

    arch: Arch
    sent: Sent
    own: Own


@task("own-part/judge")
def judge(request: Judge, me: Client, memory: Memory) -> tuple[Judged, Memory]:
    """How a device's model does on its validation part."""
    model, _, memory = started(request.own, request.sent, request.arch, memory)
    if not len(me.valid):
        return Judged(0, 0.0, 0.0, 0.0), memory
    found = training.evaluate(model, me.valid, me.device)
    return Judged(len(me.valid), found.value, found.value, found.loss), memory


def verdict(
    fleet: Fleet, model: Model, own: Own, masks: HeldMasks, who: Collection[str], seed: int
) -> dict[str, float]:
    """How devices' models do on their validation parts; nothing where no device that answers has any.

    Args:
        fleet: the clients.
        model: whose shared part is sent, exactly zero where it is pruned.
        own: what is not.
        masks: which the devices hold.
        who: ids of the devices, such as those that trained a personal part.
        seed: of this exchange.
    """
    devices = [device for device in fleet.devices if device.id in who]
    sent = masks.send(split(model.weights, own.names)[0], devices, seed)
    found = judged(fleet, each(sent, lambda part: Judge(model.arch, part, own)), judge)
    figures = found.figures() if found is not None else {}
    return {name: value for name, value in figures.items() if name.startswith("personal_")}
