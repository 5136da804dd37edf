"""What is to be allocated, and the answer: loads of devices and plans.

A device's round takes a + b x + (s0 + s1 x) / R seconds, where x is the kept fraction of its prunable weights and R its
uplink rate (specs/wireless §2.1). Whatever a cost model says, it must come to these four numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedbonsai.errors import ConfigError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Load:
    """Costs of a round, one value for each device, finite and not negative.

    Where compute is not affine in the kept fraction but convex and piecewise affine, ``a`` and ``b`` have a row for each
    piece, (pieces, devices), and the greatest piece counts; `pieces` makes them of measured points.
    """

    a: Floats
    """Seconds that neither pruning nor uplink changes: downlink, layers never pruned, personal part, overhead."""
    b: Floats
    """Seconds of compute of the whole prunable part."""
    s0: Floats
    """Bits always sent; (devices,)."""
    s1: Floats
    """Bits of the whole prunable part; (devices,)."""

    def __post_init__(self) -> None:
        """Make arrays of what was given, and refuse what is no load."""
        for name in ("a", "b", "s0", "s1"):
            object.__setattr__(self, name, np.atleast_1d(np.asarray(getattr(self, name), np.float64)))
        a, b, s0, s1 = self.a, self.b, self.s0, self.s1
        shapes = f"a {a.shape}, b {b.shape}, s0 {s0.shape}, s1 {s1.shape}"
        if not (a.shape == b.shape and s0.shape == s1.shape == a.shape[-1:] and a.ndim <= 2):
            raise ConfigError(f"load: shapes {shapes}; expected (devices,) for all, or (pieces, devices) for a and b")
        for name, value in (("a", np.atleast_2d(a).max(0)), ("b", b), ("s0", s0), ("s1", s1)):
            if not (np.isfinite(value) & (value >= 0)).all():
                raise ConfigError(f"load: {name} = {value}: expected finite numbers >= 0")

    def __len__(self) -> int:
        return len(self.s0)

    def among(self, chosen: Flags) -> Load:
        """The loads of some of the devices."""
        return Load(self.a[..., chosen], self.b[..., chosen], self.s0[chosen], self.s1[chosen])

    def before_upload(self, kept: ArrayLike = 1.0) -> Floats:
        """Seconds until the upload can start, at a kept fraction."""
        return np.atleast_2d(self.a + self.b * np.asarray(kept, np.float64)).max(0)

    def bits(self, kept: ArrayLike = 1.0) -> Floats:
        """Bits sent at a kept fraction."""
        return self.s0 + self.s1 * np.asarray(kept, np.float64)

    def seconds(self, kept: ArrayLike, rate: ArrayLike) -> Floats:
        """Latency at a kept fraction and a rate in bit/s; who has nothing to send needs no rate."""
        bits = self.bits(kept)
        upload = np.where(bits > 0, np.inf, 0.0)
        np.divide(bits, rate, out=upload, where=np.asarray(rate) > 0)
        return self.before_upload(kept) + upload


@dataclass(frozen=True)
class Plan:
    """Who takes part in a round, how far each prunes and on what band; arrays have a value for each device."""

    ratio: Floats
    """Pruning ratio of the prunable weights; 0 for who is left out."""
    bandwidth: Floats
    """Hz; 0 for who is left out."""
    active: Flags
    """Who takes part; nobody where there is no plan."""
    seconds: Floats
    """Latency that the plan foresees; 0 for who is left out."""
    reason: str = ""
    """Why there is no plan, or why some were left out; empty where all take part."""
    limited: Flags | None = None
    """Where there is no plan: who misses the deadline on any band, however much is pruned."""
    multiplier: float = 0.0
    """Price of bandwidth at the optimum: weighted pruning saved by one Hz more; 0 where bandwidth is left."""

    @property
    def feasible(self) -> bool:
        """Whether there is a plan at all."""
        return bool(self.active.any())

    @property
    def latency(self) -> float:
        """Seconds of the round: those of the slowest that takes part."""
        return float(self.seconds[self.active].max()) if self.feasible else 0.0

    def objective(self, weights: Floats | None = None) -> float:
        """Weighted sum of the pruning ratios of those that take part; equal weights sum to 1 over all devices."""
        return float((importance(weights, len(self.ratio)) * self.ratio)[self.active].sum())

    def spread(self, chosen: Flags) -> Plan:
        """Make a plan for all of this one, which is of the chosen devices alone."""

        def wide(values: Floats) -> Floats:
            found = np.zeros(len(chosen))
            found[chosen] = values
            return found

        missing = int((~chosen).sum())
        reason = f"{missing} of {len(chosen)} devices are left out: they cannot be served together in time"
        active = chosen.copy()
        active[chosen] = self.active
        return Plan(wide(self.ratio), wide(self.bandwidth), active, wide(self.seconds), reason, None, self.multiplier)


def importance(weights: Floats | None, devices: int) -> Floats:
    """The weights of the objective; equal ones, summing to 1, where none are given.

    Raises:
        ConfigError: not one positive number for each device.
    """
    if weights is None:
        return np.full(devices, 1 / devices)
    alpha = np.asarray(weights, np.float64)
    if alpha.shape != (devices,) or not (np.isfinite(alpha) & (alpha > 0)).all():
        raise ConfigError(f"weights of shape {alpha.shape}: expected a finite number > 0 for each of {devices} devices")
    return alpha


def least_kept(ratio_max: float) -> float:
    """The least kept fraction.

    Raises:
        ConfigError: a ratio out of range.
    """
    if not 0 <= ratio_max < 1:
        raise ConfigError(f"ratio_max = {ratio_max}: expected a fraction in [0, 1), such as 0.9")
    return 1 - ratio_max


def checked_band(bandwidth: float) -> float:
    """The bandwidth of the cell.

    Raises:
        ConfigError: not a positive number.
    """
    if not 0 < bandwidth < np.inf:
        raise ConfigError(f"bandwidth = {bandwidth}: expected Hz > 0, for all devices together")
    return float(bandwidth)
