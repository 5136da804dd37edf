"""Seconds of a round as an affine function of a mask, as data (PruneFL: t_j = tau + E kappa_l, c = E kappa_0).

`Table` holds what the authors measured on a Raspberry Pi with sparse kernels, layer by layer, from the configurations in
their public repository (jiangyuang/PruneFL, ``configs``). `Measured` is for one's own numbers, `Profiled` for those of a
device profile. Where training under masks runs by dense kernels (``sgd.sparse = off``) a pruned weight computes as long as
any other: slopes in compute are zero and only bytes are saved. By this library's sparse kernels they are not:
`fedbonsai profile` measures them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Literal

from fedbonsai.choice import Choice, choice
from fedbonsai.devices.clock import compute_seconds
from fedbonsai.devices.link import Ask, Link, Way, link
from fedbonsai.devices.networks import all_known, layers
from fedbonsai.devices.profile import profile
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.settings import NOT_NEGATIVE, out_of_range, raise_all
from fedbonsai.stages.pruning.count import Size
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import Tree
from fedbonsai.wire import message
from fedbonsai.work import Episode

TAU = 5.561621025626998e-6  # seconds a weight, up and down: 8 bytes at 1.4384 MB/s


@dataclass(frozen=True)
class Coefficients:
    """Of one network at batch 20.

    Attributes:
        base: kappa_0, seconds of a step with no weights.
        slopes: kappa_l, seconds of a step for each weight, by layer.
        weights: prunable ones of each layer.
        dense: seconds of a step by dense kernels.
    """

    base: float
    slopes: tuple[float, ...]
    weights: tuple[int, ...]
    dense: float


TABLES = {  # first and last layers whose slope could not be told from none have 0
    "conv2": Coefficients(
        1.2492789765,
        (0, 7.098850e-6, 1.927325e-7, 1.782308e-7),
        (800, 51_200, 6_422_528, 126_976),
        2.2486449218,
    ),
    "vgg11": Coefficients(
        17.3699010599,
        (
            *(0, 8.95507e-6, 2.495288e-6, 2.780686e-6, 1.024265e-6, 1.277773e-6, 1.843831e-6),
            *(8.066104e-7, 5.145334e-7, 2.430023e-7, 0),
        ),
        (1_728, 73_728, 294_912, 589_824, 1_179_648, 2_359_296, 2_359_296, 2_359_296, 262_144, 262_144, 5_120),
        31.5142767214,
    ),
    "conv4": Coefficients(
        1.5979929064,
        (3.404870761e-4, 6.077740465e-5, 1.759035482e-5, 3.774421855e-6, 0),
        (864, 9_216, 9_216, 9_216, 2_304),
        3.7242865185,
    ),
    "resnet18": Coefficients(
        14.5600414828,
        (
            *(0, 2.340521716e-6, 1.002368175e-5, 1.056062089e-5, 4.237937059e-6, 5.671268790e-6, 2.123146074e-6),
            *(2.328795336e-6, 6.735456427e-7, 6.624979741e-6, 5.137498356e-7, 1.974388604e-7, 3.703237561e-8),
            *(9.910993133e-7, 1.496653257e-6, 7.477319511e-7, 8.722523120e-7, 6.128180224e-6),
        ),
        (9_408, *[36_864] * 4, 73_728, *[147_456] * 3, 294_912, *[589_824] * 3, 1_179_648, *[2_359_296] * 3, 51_200),
        25.3356386726,
    ),
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
        dense: of a step of the whole model by dense kernels.
    """

    communication: float
    base: float
    latency: float
    slopes: Mapping[str, float]
    steps: int
    dense: float = 0.0

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

    def conventional(self, masks: Tree) -> float:
        """A round of conventional FL: dense kernels, and every weight travels."""
        weights = sum(mask.numel() for mask in masks.values())
        return self.latency + self.steps * self.dense + self.communication * weights

    def travel(self, size: float) -> float:
        """Seconds of ``size`` bytes at the rate of tau, which is of 8 bytes."""
        return self.communication / 8 * size

    def whole(self, sizes: Mapping[str, int]) -> float:
        """A local step with all weights, by sparse kernels."""
        return self.base + sum(self.slopes[name] * size for name, size in sizes.items())


class TimeModel(Choice):
    """What a round costs; a subclass says so in `seconds`, or in `of_sizes` where the numbers of weights are enough."""

    def seconds(self, model: Model, names: list[str], size: Size, sgd: Optimizer) -> Seconds:
        """Of a network.

        Args:
            model: network.
            names: of its weights that may be pruned.
            size: of an image.
            sgd: local training, for the batch and the steps of a round, and whether it computes sparsely.

        Raises:
            ConfigError: coefficients that do not fit the network, or a link that carries nothing.
        """
        return self.of_sizes(sizes_of(model, names), sgd.steps)

    def of_sizes(self, sizes: Mapping[str, int], steps: int) -> Seconds:
        """Of a network with so many weights that may be pruned, by name in its order, and E local steps of a round."""
        raise NotImplementedError


@choice("table")
class Table(TimeModel):
    """Coefficients of the authors' networks on a Raspberry Pi 4 with sparse kernels, in the order of the layers."""

    network: Literal["conv2", "vgg11", "conv4", "resnet18"] = "conv2"
    """Whose coefficients; another network of as many layers takes them layer by layer, for each weight."""

    def of_sizes(self, sizes: Mapping[str, int], steps: int) -> Seconds:
        """Layer by layer.

        Raises:
            ConfigError: another number of layers.
        """
        held = TABLES[self.network]
        if len(held.slopes) != len(sizes):
            raise ConfigError(
                f"time: the table of {self.network!r} is of {len(held.slopes)} layers, this network has {len(sizes)} that "
                f"may be pruned ({', '.join(sizes)}); give it slopes of its own: time.name = measured"
            )
        found = Seconds(TAU, held.base, 0.0, dict(zip(sizes, held.slopes, strict=True)), steps)
        sparse = held.base + sum(k * n for k, n in zip(held.slopes, held.weights, strict=True))
        return replace(found, dense=held.dense / sparse * found.whole(sizes))


@choice("measured")
class Measured(TimeModel):
    """One's own coefficients; without slopes, what can be measured of dense kernels."""

    communication: float = TAU
    """tau: seconds a remaining weight costs in a round, up and down together."""
    base: float = 0.001
    """kappa_0: seconds of a local step with no weights."""
    latency: float = 0.0
    """Seconds of a round that neither weights nor steps change."""
    slopes: Mapping[str, float] = field(default_factory=dict[str, float])
    """kappa by name of the weight: seconds of a local step for each remaining one; 0 for names that are missing."""
    dense: float = 0.0
    """Seconds of a local step of the whole model by dense kernels, for comparison; 0: as `base` and `slopes` have it."""

    def __post_init__(self) -> None:
        """Refuse what no seconds are."""
        raise_all(out_of_range(self, **dict.fromkeys(("communication", "base", "latency", "dense"), NOT_NEGATIVE)))

    def of_sizes(self, sizes: Mapping[str, int], steps: int) -> Seconds:
        """By name.

        Raises:
            ConfigError: coefficients for weights that the network lacks, or a weight that costs nothing.
        """
        if wrong := self.slopes.keys() - set(sizes):
            raise ConfigError(f"time.slopes of {sorted(wrong)}: weights that may be pruned are {list(sizes)}")
        slopes = {name: float(self.slopes.get(name, 0.0)) for name in sizes}
        free = [name for name, slope in slopes.items() if self.communication + steps * slope <= 0]
        if free or min(slopes.values(), default=0.0) < 0:
            raise ConfigError(
                f"time: weights {free} cost nothing, or a coefficient is negative; expected communication > 0, others >= 0"
            )
        found = Seconds(self.communication, self.base, self.latency, slopes, steps)
        return replace(found, dense=self.dense or found.whole(sizes))


@choice("profile")
class Profiled(TimeModel):
    """What a device's profile and a link say of this very network.

    A profile gives the seconds of a dense step and how they fall with the share of multiply-accumulates that a mask keeps:
    its curve for sparse layers where training computes so and the profile has one, else that for masks over dense kernels.
    As a line over the share this is PruneFL's model, affine in the number of kept weights: a weight's slope is its layer's
    part of the line by the layer's weights. What is never pruned stays dense and belongs to the constant.
    """

    device: str = "raspberry-pi-4"
    """A shipped profile, or the path of one's own; its curve for masks, or for sparse layers where ``optimizer.sparse`` is
    not ``off``, decides what a pruned weight saves."""
    link: str = ""
    """A shipped link, or the path of one's own; empty is the profile's."""

    def seconds(self, model: Model, names: list[str], size: Size, sgd: Optimizer) -> Seconds:
        """By the profile's curve, and the link as a line."""
        held, sizes = profile(self.device), sizes_of(model, names)
        shapes = {name: tuple(value.shape) for name, value in model.weights.items()}
        step = Episode(model.arch, shapes, size, backward=sgd.batch, passes=1, steps=1, batch=sgd.batch)
        all_known(step, f"time.name = {self.choice_name!r}")
        dense, macs = compute_seconds(held, (step,)), {layer.name: layer.macs for layer in layers(step)}
        curve = held.sparse if sgd.sparse != "off" and held.sparse else held.masked
        intercept, slope = curve.line()
        each = dense / max(1, sum(macs.values()))  # seconds of a dense step by multiply-accumulates of a sample
        slopes = {name: each * slope * macs.get(name, 0) / count for name, count in sizes.items()}
        base = max(0.0, dense - each * (1 - intercept) * sum(macs.get(name, 0) for name in sizes))
        carrier = link(self.link or held.link)
        down, up = (rate(carrier, way, 4 * sum(sizes.values())) for way in ("down", "up"))
        return Seconds(4 * (down[1] + up[1]), base, down[0] + up[0], slopes, sgd.steps, dense)


def sizes_of(model: Model, names: list[str]) -> dict[str, int]:
    """How many values these weights have."""
    return {name: model.weights[name].numel() for name in names}


def rate(carrier: Link, way: Way, size: int) -> tuple[float, float]:
    """Latency, and seconds of a byte, of a link as a line through the times of ``size`` bytes and of half of them."""
    whole, half = (carrier.seconds(way, part, 0.0, "device", Ask(("device",))) for part in (size, size // 2))
    if not (isfinite(whole) and whole > half):
        raise ConfigError(f"time.link {carrier.name!r} carries nothing {way}; choose another link")
    byte = (whole - half) / (size - size // 2)
    return max(0.0, whole - byte * size), byte
