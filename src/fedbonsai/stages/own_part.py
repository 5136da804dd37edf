"""A personal part that never travels at all: each device draws its beginning from a seed, trains it and keeps it.

The parts are those of `stages.personal`, and so is the judging; there the server sends what a new device begins with, here
it sends a seed. A device that lost its part begins again, which nobody needs to be told.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from fedbonsai import local, tree
from fedbonsai.core import Client, Fleet, Memory, task
from fedbonsai.errors import NotFinite
from fedbonsai.local import Trained
from fedbonsai.model import Arch, Model
from fedbonsai.stages.held_masks import HeldMasks, Sent, received
from fedbonsai.stages.personal import PERSONAL, Judged, judged, merged, split
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


def kept(own: Own, trained: Trained, memory: Memory) -> tuple[Weights, Memory]:
    """The shared part of what was trained, and the memory with the personal one.

    Raises:
        NotFinite: a weight is NaN or infinite; the device counts as silent, its memory stays.
    """
    if not tree.finite(trained.weights):
        raise NotFinite(f"training gave values that are not finite (loss {trained.loss}); lower the learning rate")
    shared, personal = split(trained.weights, own.names)
    return shared, {**memory, PERSONAL: personal}


@message("own-part/judge@1")
class Judge:
    """Judge the personal model: the shared part under its masks, with the device's own."""

    arch: Arch
    sent: Sent
    own: Own


@task("own-part/judge")
def judge(request: Judge, me: Client, memory: Memory) -> tuple[Judged, Memory]:
    """Accuracy of a device's model on its validation part."""
    shared, _, memory = received(request.sent, request.arch, memory, request.own.names)
    if not len(me.valid):
        return Judged(0, 0.0, 0.0, 0.0), memory
    model = merged(request.arch, shared, held(request.own, request.arch, memory))
    found = local.evaluate(model, me.valid, me.device)
    return Judged(len(me.valid), found.accuracy, found.accuracy, found.loss), memory


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
    made = {id(part): Judge(model.arch, part, own) for part in sent.values()}
    found = judged(fleet, {device: made[id(part)] for device, part in sent.items()}, judge)
    figures = found.figures() if found is not None else {}
    return {name: value for name, value in figures.items() if name.startswith("personal_")}
