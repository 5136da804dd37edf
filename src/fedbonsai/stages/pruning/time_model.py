"""Seconds of a round as an affine function of a mask, as data (PruneFL, section IV: t_j = tau + E kappa_l, c = E kappa_0).

`Table` holds what is known of the authors' Raspberry Pi with sparse kernels: sums for each network, not its layers. The
sums are exact; that they spread evenly over the weights of all layers with a slope is ours. `Measured` is for one's own
numbers. This library has no sparse kernels: on the machine it runs on a pruned weight computes as long as any other,
so a mask's slope in compute is zero and only bytes are saved. Whoever measures here sets no slopes.

`prototype` is the authors' other account of a mask: the bytes of their messages by formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from fedbonsai.errors import ConfigError
from fedbonsai.stages.choice import Choice, choice
from fedbonsai.tree import Tree
from fedbonsai.wire import message

TAU = 5.561621e-6  # seconds a weight, up and down: 8 bytes at 1.4384 MB/s


class TimeModel(Choice):
    """What a round costs."""


@choice("table")
class Table(TimeModel):
    """Coefficients of the authors' networks on a Raspberry Pi 4 with sparse kernels."""

    network: Literal["conv2", "vgg11", "conv4", "resnet18"] = "conv2"
    """Whose coefficients; on another network they count for each weight."""


@choice("measured")
class Measured(TimeModel):
    """One's own coefficients; without slopes, what can be measured where there are no sparse kernels."""

    communication: float = TAU
    """tau: seconds a remaining weight costs in a round, up and down together."""
    base: float = 0.001
    """kappa_0: seconds of a local step with no weights."""
    latency: float = 0.0
    """Seconds of a round that neither weights nor steps change."""
    slopes: Mapping[str, float] = field(default_factory=dict[str, float])
    """kappa by name of the weight: seconds of a local step for each remaining one; 0 for names that are missing."""


@dataclass(frozen=True)
class Sums:
    """Of a network with all weights and E = 5: seconds of compute beyond the constant, and who pays none of them."""

    constant: float
    compute: float
    sloped: int  # weights of layers with a slope
    first: bool  # whether the first layer has one
    last: bool


STEPS = 5  # for which the sums below hold
TABLES = {
    "conv2": Sums(6.2464, 8.120, 6_601_504 - 800, False, True),
    "vgg11": Sums(86.8495, 68.555, 9_747_136 - 1_728 - 5_120, False, False),
    "conv4": Sums(7.9900, 5.256, 30_816 - 2_304, True, False),
    "resnet18": Sums(72.8002, 67.032, 11_046_080 - 9_408, False, True),
}


@message("time-model/seconds@1")
class Seconds:
    """A time model for one network: seconds by name of the weight.

    Attributes:
        communication: tau, of a weight and round.
        base: kappa_0, of a step.
        latency: of a round.
        slopes: kappa, of a weight and step; every name that may be pruned has one.
        steps: E.
    """

    communication: float
    base: float
    latency: float
    slopes: Mapping[str, float]
    steps: int

    @property
    def each(self) -> dict[str, float]:
        """Seconds t_j of each layer: what one more of its weights adds to a round."""
        return {name: self.communication + self.steps * slope for name, slope in self.slopes.items()}

    @property
    def constant(self) -> float:
        """Seconds c of a round that no mask changes."""
        return self.latency + self.steps * self.base

    def round(self, masks: Tree) -> float:
        """Seconds T(M): a round under these masks."""
        return self.constant + sum(self.each[name] * int(mask.sum()) for name, mask in masks.items())

    def step(self, masks: Tree) -> float:
        """A local step under these masks, without communication."""
        return self.base + sum(self.slopes[name] * int(mask.sum()) for name, mask in masks.items())


def seconds(model: TimeModel, names: list[str], steps: int) -> Seconds:
    """A time model for a network.

    Args:
        model: the setting.
        names: weights that may be pruned, in the network's order.
        steps: E, local steps of a round.

    Raises:
        ConfigError: slopes for weights that the network lacks, or a weight that costs nothing.
    """
    own: Any = model
    if isinstance(model, Table):
        sums = TABLES[own.network]
        slope = sums.compute / STEPS / sums.sloped
        without = {names[0]} if not sums.first else set[str]()
        without |= {names[-1]} if not sums.last else set[str]()
        slopes = {name: 0.0 if name in without else slope for name in names}
        return Seconds(TAU, sums.constant / STEPS, 0.0, slopes, steps)
    if wrong := own.slopes.keys() - set(names):
        raise ConfigError(f"time.slopes of {sorted(wrong)}: weights that may be pruned are {names}")
    slopes = {name: own.slopes.get(name, 0.0) for name in names}
    free = [name for name, slope in slopes.items() if own.communication + steps * slope <= 0]
    if free or min(own.base, own.latency) < 0:
        raise ConfigError(
            f"time: weights {free} cost nothing, or base or latency is negative; expected communication > 0"
        )
    return Seconds(own.communication, own.base, own.latency, slopes, steps)


def prototype(
    weights: Tree, masks: Tree, asked: int, new_to: int, answered: int, importance: bool = False
) -> tuple[int, int]:
    """Bytes down and up of a round by the authors' message format, framing left out.

    With n kept and s never pruned: 4 n + 4 s each way; down to ``new_to`` of the ``asked`` devices also `positions`; up
    from the ``answered`` ones, where importances are wanted, also 4 bytes for each pruned weight.
    """
    kept = sum(int(mask.sum()) for mask in masks.values())
    values = 4 * kept + 4 * sum(value.numel() for name, value in weights.items() if name not in masks)
    pruned = sum(mask.numel() for mask in masks.values()) - kept
    where = sum(map(positions, masks.values())) if new_to else 0
    return asked * values + new_to * where, answered * (values + 4 * pruned * importance)


def positions(mask: Tensor) -> int:
    """Bytes of a mask as the authors write it: (row, column) below a density of 1/32, else a bit each, rows padded."""
    rows, columns = mask.shape[0], mask[0].numel()
    kept = int(mask.sum())
    if 32 * kept >= rows * columns:
        return rows * -(-columns // 8)
    return 2 * kept * next(size for size in (1, 2, 4, 8) if max(rows, columns) <= 1 << 8 * size - (size > 1))
