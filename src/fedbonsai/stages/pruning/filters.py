"""Whole filters go: how many of each layer stay, which are all, given numbers, a share, or what meets a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch

from fedbonsai.choice import Choice, choice
from fedbonsai.devices.networks import all_known
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model, cached_module
from fedbonsai.settings import SHARE, out_of_range, raise_all
from fedbonsai.stages.pruning.count import Size, layer_macs
from fedbonsai.stages.pruning.units import Units, prune, select, silenced, units
from fedbonsai.tree import Tree
from fedbonsai.work import Episode


class Keep(Choice):
    """How many units of each layer stay."""

    prunes: ClassVar[bool] = True

    def widths(self, model: Model, groups: Sequence[Units], size: Size) -> list[int]:
        """Units of each group that stay, in a network for images of this size."""
        raise NotImplementedError


@choice("all")
class All(Keep):
    """Nothing is pruned."""

    prunes: ClassVar[bool] = False

    def widths(self, model: Model, groups: Sequence[Units], size: Size) -> list[int]:
        """Each whole."""
        return [group.width for group in groups]


@choice("widths")
class Widths(Keep):
    """Prescribed for each layer (or layers that must agree), in their order; the output layer has no entry."""

    counts: tuple[int, ...] = ()
    """Units that stay."""

    def widths(self, model: Model, groups: Sequence[Units], size: Size) -> list[int]:
        """As given.

        Raises:
            ConfigError: for another number of layers than the network has.
        """
        if len(self.counts) != len(groups):
            names = [f"{group.name} {group.width}" for group in groups]
            raise ConfigError(f"{len(self.counts)} widths are given, the network has {len(groups)}: {names}")
        return list(self.counts)


@choice("ratio")
class Ratio(Keep):
    """The same share of every layer."""

    share: float = 0.5
    """Share of the units that stay."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        raise_all(out_of_range(self, share=SHARE))

    def widths(self, model: Model, groups: Sequence[Units], size: Size) -> list[int]:
        """The share of each, at least one unit."""
        return [_rounded(group, self.share) for group in groups]


@choice("target")
class Target(Keep):
    """The largest common share of units with which the whole network is small enough."""

    share: float = 0.5
    """Share of the full network's cost that stays."""
    of: Literal["parameters", "macs", "bytes"] = "macs"
    """What is counted: trained values, multiply-accumulates of a forward pass, or bytes of all weights."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        raise_all(out_of_range(self, share=SHARE))

    def widths(self, model: Model, groups: Sequence[Units], size: Size) -> list[int]:
        """By bisection.

        Raises:
            ConfigError: the target is below the network's smallest form.
        """
        full = [group.width for group in groups]
        if self.share == 1:
            return full
        if self.of == "macs":
            shapes = {name: tuple(value.shape) for name, value in model.weights.items()}
            all_known(Episode(model.arch, shapes, tuple(size)), "keep.of = 'macs'")
        costs = _costs(model, self.of, size)
        rest = sum(n for name, n in layer_macs(model, size).items() if name not in costs) if self.of == "macs" else 0
        whole = rest + _cost(costs, model.weights, groups, full)

        def at(share: float) -> tuple[list[int], float]:
            found = [_rounded(group, share) for group in groups]
            return found, rest + _cost(costs, model.weights, groups, found)

        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle)[1] <= self.share * whole else (low, middle)
        found, cost = at(low)
        if cost > self.share * whole:
            raise ConfigError(
                f"keep.share = {self.share} of the {self.of} cannot be met: with the fewest units in {len(groups)} layers "
                f"{cost / whole:.3g} of them stay; choose a larger share"
            )
        return found


def _rounded(group: Units, share: float) -> int:
    return min(group.width, group.groups * max(1, round(share * group.width / group.groups)))


def _costs(model: Model, of: str, size: Size) -> dict[str, int]:
    """What one value of each weight costs."""
    if of == "bytes":
        return {name: value.element_size() for name, value in model.weights.items()}
    if of == "parameters":
        return dict.fromkeys(cached_module(model).parameters, 1)
    counts = layer_macs(model, size)
    return {name: count // model.weights[name].numel() for name, count in counts.items() if name in model.weights}


def _cost(costs: Mapping[str, int], weights: Tree, groups: Sequence[Units], widths: Sequence[int]) -> int:
    shapes = {name: list(weights[name].shape) for name in costs}
    for group, width in zip(groups, widths, strict=True):
        for name in group.rows:
            if name in shapes:
                shapes[name][0] = shapes[name][0] * width // group.width
        for name, each in group.readers:
            if name in shapes:
                shapes[name][1] = width * each
    return sum(cost * torch.Size(shapes[name]).numel() for name, cost in costs.items())


def widths(keep: Keep, model: Model, groups: Sequence[Units], size: Size) -> list[int]:
    """Units that stay of each group; what `Keep.widths` says."""
    return keep.widths(model, groups, size)


__all__ = ["All", "Keep", "Ratio", "Target", "Units", "Widths", "prune", "select", "silenced", "units", "widths"]
