"""What a round costs a device: the four numbers a, b, s0, s1 of the allocation, from a model, its split and a cost model.

specs/wireless §2.1 to §2.3: T = a + b x + (s0 + s1 x) / R, with x the kept fraction of
the prunable weights. Cycles for each sample and weight are its default; `profile` takes a device's data sheet
(`fedbonsai.devices`), `measured` one's own times, and refuses them where no line fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

import numpy as np

from fedbonsai.choice import Choice, choice
from fedbonsai.devices.channel import Cell
from fedbonsai.devices.clock import compute_seconds, products
from fedbonsai.devices.networks import all_known, layers
from fedbonsai.devices.profile import Curve, profile
from fedbonsai.errors import ConfigError
from fedbonsai.methods.wireless_pruning.allocation import Floats, Load
from fedbonsai.methods.wireless_pruning.client import EXACT
from fedbonsai.model import Model, cached_module
from fedbonsai.settings import NOT_NEGATIVE, POSITIVE, Range, out_of_range, raise_all
from fedbonsai.stages.personal import personal_names, split
from fedbonsai.stages.pruning.derived_masks import names_in, places
from fedbonsai.stages.updates import STATISTICS
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.tree import seed_of, size
from fedbonsai.work import Episode

LEAST_R2 = 0.98  # of an affine fit to measured times (specs/wireless §7.2)
LEVEL = 0.02  # measured times that differ by no more than this do not depend on the kept fraction


@dataclass(frozen=True)
class Parts:
    """A model by what becomes of its weights in a round; names, and the model for their shapes."""

    model: Model
    sample: tuple[int, ...]
    """Shape of one input."""
    prunable: tuple[str, ...]
    fixed: tuple[str, ...]
    """Shared, never pruned: biases, normalisation and its statistics."""
    personal: tuple[str, ...]

    @staticmethod
    def of(model: Model, sample: tuple[int, ...], personal: Iterable[str], never: tuple[str, ...] = ()) -> Parts:
        """Part a model of which layers are personal, as in `personal_names`, and some weights are never pruned.

        Raises:
            ConfigError: a personal layer that the model has not.
        """
        own = personal_names(model, personal)
        shared, _ = split(model.weights, own)
        pruned = names_in(model.arch, shared, never)
        return Parts(model, sample, tuple(pruned), tuple(name for name in shared if name not in pruned), own)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Name the shared statistics of normalisation, which go up exact, whatever the bits of a weight."""
        return tuple(name for name in self.fixed if name.endswith(STATISTICS))

    def count(self, names: Sequence[str]) -> int:
        """Count the weights of these names."""
        return size({name: self.model.weights[name] for name in names})


@dataclass(frozen=True)
class Passes:
    """Samples that each device trains on in a round, in either phase; (devices,)."""

    personal: Floats
    """n_v: of the personal phase, with shared weights frozen."""
    shared: Floats
    """n_u: of the phase of the shared weights; of the one joint pass where both learn together."""
    joint: bool = False

    @staticmethod
    def of(parts: Parts, shared: Optimizer, personal: Optimizer, examples: Floats, joint: bool) -> Passes:
        """Count for devices with so many samples; an empty part has no phase, the joint pass takes whatever there is."""
        some = joint or bool(parts.prunable or parts.fixed)
        return Passes(samples(personal, examples) * bool(parts.personal), samples(shared, examples) * some, joint)


def samples(sgd: Optimizer, examples: Floats) -> Floats:
    """Count the samples of local training on devices of so many examples; steps are whole batches (2.2: tau x batch)."""
    return sgd.steps * np.minimum(sgd.batch, examples) if sgd.steps else max(1, sgd.epochs) * examples


class Compute(Choice):
    """Seconds of local training as a + b x."""

    def seconds(self, parts: Parts, work: Passes, batch: int, ids: Sequence[str], seed: int) -> tuple[Floats, Floats]:
        """Tell ``a`` and ``b`` of each device.

        Args:
            parts: of the model.
            work: samples of each device.
            batch: samples of a step.
            ids: of the devices.
            seed: of the run.
        """
        raise NotImplementedError


@choice("cycles")
class Cycles(Compute):
    """Processor cycles for each sample and weight (2.2); frequencies are drawn once for each device."""

    forward: float = 20 / 3
    """c_F: cycles of the forward pass for each sample and weight."""
    backward: float = 40 / 3
    """c_B: cycles of the backward pass; half of them for the gradient by the inputs."""
    slowest: float = 1e9
    """Least frequency, Hz."""
    fastest: float = 3e9
    """Greatest frequency, Hz; f is drawn uniformly between the two."""
    reuse: bool = False
    """Count a weight of a convolution once for every place at which it is multiplied."""
    prunes: bool = True
    """Whether a pruned weight saves its cycles; if not, b = 0 and pruning saves bits alone."""

    def __post_init__(self) -> None:
        """Refuse what no processor has."""
        faster = Range(f"Hz >= slowest = {self.slowest}", lambda value: self.slowest <= value < inf)
        raise_all(out_of_range(self, forward=NOT_NEGATIVE, backward=NOT_NEGATIVE, slowest=POSITIVE, fastest=faster))

    def frequency(self, ids: Sequence[str], seed: int) -> Floats:
        """Draw the Hz of each device."""
        draws = np.array([np.random.default_rng(seed_of(seed, f"processor/{each}", -1, 0)).random() for each in ids])
        return self.slowest + draws * (self.fastest - self.slowest)

    def seconds(self, parts: Parts, work: Passes, batch: int, ids: Sequence[str], seed: int) -> tuple[Floats, Floats]:
        """Sum over layers as specs/wireless §2.2 has it."""
        once = self.forward + self.backward
        if work.joint:
            shared = own = work.shared * once
        else:
            shared = work.personal * self.forward + work.shared * once
            own = work.personal * once + work.shared * (self.forward + self.backward / 2)
        pruned, fixed, personal = (self._weights(parts, n) for n in (parts.prunable, parts.fixed, parts.personal))
        speed = self.frequency(ids, seed)
        a, b = (fixed * shared + personal * own) / speed, pruned * shared / speed
        return (a, b) if self.prunes else (a + b, np.zeros_like(b))

    def _weights(self, parts: Parts, names: Sequence[str]) -> float:
        """Count W, or W times the places at which each is used; buffers take no part in it."""
        learned = cached_module(parts.model).parameters
        weights = {name: parts.model.weights[name] for name in names if name in learned}
        if not self.reuse:
            return float(size(weights))
        uses = places(parts.model.arch, weights, parts.sample)
        return float(sum(value.numel() * max(1.0, uses[name]) for name, value in weights.items()))


@choice("profile")
class Profiled(Compute):
    """A device's data sheet; its curve for masked networks says what pruning saves, with dense kernels nothing."""

    device: str = "raspberry-pi-4"
    """Profile by name or path, as in `fedbonsai run --devices`."""

    def seconds(self, parts: Parts, work: Passes, batch: int, ids: Sequence[str], seed: int) -> tuple[Floats, Floats]:
        """Count both phases as whole passes, which what is frozen falls short of, and share the curve out by operations."""
        sheet = profile(self.device)
        intercept, slope = sheet.masked.line()
        bare = replace(sheet, masked=Curve("assumed", "no mask"))
        shapes = {name: tuple(value.shape) for name, value in parts.model.weights.items()}

        def episode(samples: float) -> Episode:
            steps = max(1, round(samples / batch))
            return Episode(
                parts.model.arch, shapes, parts.sample, backward=round(samples), passes=steps, steps=steps, batch=batch
            )

        probe = episode(batch)
        all_known(probe, f"compute.name = {self.choice_name!r}")
        each = {layer.name: products(layer, probe) for layer in layers(probe)}
        share = sum(each.get(name, 0) for name in parts.prunable) / max(1, sum(each.values()))
        total = work.shared + (0 if work.joint else work.personal)
        dense = np.array([compute_seconds(bare, [episode(samples)]) if samples else 0.0 for samples in total])
        return dense * (intercept + slope * (1 - share)), dense * slope * share


@choice("measured")
class Measured(Compute):
    """Times of whole local rounds that were measured at several kept fractions, one device for all."""

    kept: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 1.0)
    """Kept fractions of the prunable weights."""
    times: tuple[float, ...] = ()
    """Seconds of a local round at each."""

    def seconds(self, parts: Parts, work: Passes, batch: int, ids: Sequence[str], seed: int) -> tuple[Floats, Floats]:
        """Fit the line through the measurements."""
        a, b = fitted(self.kept, self.times)
        return np.full(len(ids), a), np.full(len(ids), b)


def fitted(kept: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """Fit t = a + b x by least squares; a level line where times hardly differ.

    Raises:
        ConfigError: too few points, or no line fits (R squared < 0.98, b < 0 or a < 0): pruning then costs time, or by
            leaps, and the affine model would be wrong.
    """
    x, t = np.asarray(kept, np.float64), np.asarray(times, np.float64)
    if len(x) != len(t) or len(set(kept)) < 3 or not (np.isfinite(t) & (t > 0)).all():
        raise ConfigError(f"compute: {len(x)} kept fractions and {len(t)} times: expected at least three of each, > 0")
    if np.ptp(t) <= LEVEL * t.mean():
        return float(t.mean()), 0.0
    b, a = np.polyfit(x, t, 1)
    r2 = 1 - float(((t - a - b * x) ** 2).sum() / ((t - t.mean()) ** 2).sum())
    if r2 < LEAST_R2 or b < 0 or a < 0:
        raise ConfigError(
            f"compute: times {list(times)} at kept {list(kept)} are no line with a, b >= 0 (a = {a:.3g}, b = {b:.3g}, "
            f"R squared {r2:.3f}, at least {LEAST_R2} is needed); measure again, or give their mean at each fraction "
            "to count on no saving"
        )
    return float(a), float(b)


def load_of(
    seconds: tuple[Floats, Floats],
    parts: Parts,
    bits: int,
    travels: bool,
    cell: Cell,
    snr: Floats,
    downlink: Literal["broadcast", "none"],
) -> Load:
    """Add up the loads of a round (2.2).

    Args:
        seconds: of local training, from a `Compute`.
        parts: of the model.
        bits: q of each uploaded weight; statistics of normalisation take 32.
        travels: whether masks go up too, at a bit for each prunable weight.
        cell: for the way down.
        snr: SNR-bandwidth products of the round, Hz.
        downlink: whether the broadcast of the shared part, q bits a weight at the worst device's rate, counts.
    """
    a, b = seconds
    pruned, fixed = parts.count(parts.prunable), parts.count(parts.fixed)
    if downlink == "broadcast":
        a = a + bits * (pruned + fixed) / cell.broadcast_rate(snr)
    s0 = bits * fixed + (EXACT - bits) * parts.count(parts.statistics) + (pruned if travels else 0)
    return Load(a, b, np.full(len(a), float(s0)), np.full(len(a), float(bits * pruned)))
