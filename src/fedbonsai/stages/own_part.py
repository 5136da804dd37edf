"""A personal part that never travels at all: each device draws its beginning from a seed, trains it and keeps it.

The parts are those of `stages.personal`, and so is the judging; there the server sends what a new device begins with, here
it sends a seed. A device that lost its part begins again, which nobody needs to be told.
"""

from __future__ import annotations

from typing import Any, cast

from fedbonsai import tree
from fedbonsai.core import Device, Fleet, Memory
from fedbonsai.errors import NotFinite
from fedbonsai.local import Trained
from fedbonsai.model import Arch, Model
from fedbonsai.stages.personal import PERSONAL, Judge, judged, split
from fedbonsai.stages.pruning.derived_masks import Derived, Rule
from fedbonsai.tree import Tree, Weights
from fedbonsai.wire import message


@message("own-part/rule@1")
class Own:
    """Names of the personal weights, and the seed from which they are drawn at first."""

    names: tuple[str, ...]
    seed: int


def held(own: Own, arch: Arch, memory: Memory) -> Weights:
    """A device's personal part: what it keeps, or a new one."""
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


def verdict(fleet: Fleet, arch: Arch, shared: Tree, who: tuple[str, ...]) -> dict[str, float]:
    """Accuracy of the personal models of devices that have one, on their validation parts; nothing where none has.

    Args:
        fleet: the clients.
        arch: of the model.
        shared: weights as they are, exactly zero where they are pruned.
        who: ids of the devices that trained a personal part.
    """
    request = Judge(arch, shared, None, Rule(), Derived())
    send: dict[Device, Any] = {device: request for device in fleet.devices if device.id in who}
    found = judged(fleet, send) if send else None
    figures = found.figures() if found is not None else {}
    return {name: value for name, value in figures.items() if name.startswith("personal_")}
