"""Who holds which part of a network: its units and each device's ratio, found once before the rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fedbonsai.core import Client, Device, Fleet
from fedbonsai.model import Model
from fedbonsai.stages.needs import all_trained_needed
from fedbonsai.stages.pruning.units import Units, prune, units
from fedbonsai.stages.width.capacity import Capacity, ratio_of
from fedbonsai.stages.width.slices import Slice, cut, window
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.wire import message
from fedbonsai.work import Episode

Choose = Callable[[Sequence[Units], float], list[Tensor]]  # indices of the units of a ratio, of each group


@message("width/division@1")
class Division:
    """Units of the global network, and the ratio of each device."""

    groups: tuple[Units, ...]
    ratios: Mapping[str, float]

    def ratio(self, device: Device) -> float:
        """The device's ratio."""
        return ratio_of(self.ratios, device)

    def slices(self, model: Model, devices: Sequence[Device], choose: Choose = window) -> dict[Device, Slice]:
        """Each device's part; devices of one ratio have the same object."""
        made: dict[float, Slice] = {}
        for ratio in map(self.ratio, devices):
            if ratio not in made:
                made[ratio] = cut(model, self.groups, choose(self.groups, ratio), ratio)
        return {device: made[self.ratio(device)] for device in devices}


def divided(model: Model, capacity: Capacity, fleet: Fleet, server: Client, sgd: Optimizer, who: str) -> Division:
    """Who holds how much of a network.

    Args:
        model: the whole.
        capacity: of the devices.
        fleet: whose devices.
        server: whose samples' shape and seed.
        sgd: local training.
        who: the method.

    Raises:
        ConfigError: a part of the network is not trained, no units can be left out, or a device has no ratio.
        Missing: torch-pruning is not installed.
    """
    all_trained_needed(model, who, "gives devices a part of each layer")
    size = server.train.shape
    groups = units(model, size)

    def step(ratio: float) -> Episode:
        part = prune(model, groups, window(groups, ratio))
        return step_of(part, size, sgd)

    ratios = capacity.ratios([device.id for device in fleet.devices], server.seed, step)
    return Division(tuple(groups), ratios)


def step_of(model: Model, size: Sequence[int], sgd: Optimizer) -> Episode:
    """One step of local training, as a clock counts it."""
    shapes = {name: tuple(value.shape) for name, value in model.weights.items()}
    return Episode(model.arch, shapes, tuple(size), backward=sgd.batch, passes=1, steps=1, batch=sgd.batch)


def narrowed_to_widest(model: Model, division: Division) -> tuple[Model, Division]:
    """The network as wide as the widest device holds it, and ratios by that: beyond it nothing would ever be trained."""
    widest = max(division.ratios.values())
    if widest == 1:
        return model, division
    kept = window(division.groups, widest)
    groups = tuple(replace(group, width=len(index)) for group, index in zip(division.groups, kept, strict=True))
    return prune(model, division.groups, kept), Division(
        groups, {id: ratio / widest for id, ratio in division.ratios.items()}
    )
