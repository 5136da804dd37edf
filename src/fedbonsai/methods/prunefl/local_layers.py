"""Layers that never travel at all: each device draws their beginning from a seed, trains them and keeps them.

The parts are those of `stages.personal`, and so is the judging; there the server sends what a new device begins with, here
it sends a seed. A device that lost its part begins again, which nobody needs to be told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import cast

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Device, Fleet, Memory, task
from fedbonsai.model import Model
from fedbonsai.stages.held_masks import Sent, received
from fedbonsai.stages.personal import PERSONAL, Evaluated, evaluated, merged, personal_names, split
from fedbonsai.stages.requests import requests_for
from fedbonsai.training.steps import Trained
from fedbonsai.tree import Tree, Weights
from fedbonsai.wire import message


@message("own-part/rule@1")
class Own:
    """Names of the personal weights, and the seed from which they are drawn at first."""

    names: tuple[str, ...]
    seed: int


NOTHING = Own((), 0)


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


def whole(own: Own, arch: Arch, shared: Tree, memory: Memory) -> Model:
    """A device's model: the shared part with its own, which it keeps, or draws if it is new."""
    mine: Weights = {}
    if own.names:
        found = cast("Weights | None", memory.get(PERSONAL))
        mine = found if found is not None else split(Model.init(arch, own.seed).weights, own.names)[1]
    return merged(arch, shared, mine)


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
class Evaluate:
    """Evaluate the personal model: the shared part under its masks, with the device's own."""

    arch: Arch
    sent: Sent
    own: Own


@task("own-part/judge")
def evaluate_whole(request: Evaluate, me: Client, memory: Memory) -> tuple[Evaluated, Memory]:
    """How a device's model does on its validation part."""
    shared, _, memory = received(request.sent, request.arch, memory, request.own.names)
    model = whole(request.own, request.arch, shared, memory)
    if not len(me.valid):
        return Evaluated(0, 0.0, 0.0, 0.0), memory
    found = training.evaluate(model, me.valid, me.device)
    return Evaluated(len(me.valid), found.value, found.value, found.loss), memory


def evaluate(fleet: Fleet, sent: Mapping[Device, Sent], arch: Arch, own: Own) -> dict[str, float]:
    """How devices' models do on their validation parts; nothing where no device that answers has any.

    Args:
        fleet: the clients.
        sent: the shared part under its masks, for each device that is asked.
        arch: of the whole model.
        own: what is not shared.
    """
    found = evaluated(fleet, requests_for(sent, lambda part: Evaluate(arch, part, own)), evaluate_whole)
    figures = found.figures() if found is not None else {}
    return {name: value for name, value in figures.items() if name.startswith("personal_")}
