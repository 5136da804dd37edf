"""How much of its model a device can keep on a given band: a concave, rising function.

From one row, seconds(x, B) <= limit, follows x <= g(B) = ((T - a) R - s0) / (b R + s1), concave in B since it is concave
and rising in R (specs/wireless §4.2 and §4.4). A second row, such as energy, has the same form with other numbers; the
least of concave functions is concave, so every solver here works on any number of rows (specs/wireless §7.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from fedbonsai.errors import ConfigError
from fedbonsai.methods.wireless_pruning.allocation.energy import Energy
from fedbonsai.methods.wireless_pruning.allocation.problem import Flags, Floats, Load
from fedbonsai.methods.wireless_pruning.allocation.rate import bandwidth_for, rate, slope


@dataclass(frozen=True)
class Curve:
    """Kept fractions against bandwidth; `left` and `b` are (rows, devices), the others (devices,)."""

    left: Floats
    """Limit minus the constant part, T - a, in seconds."""
    b: Floats
    """Seconds of the whole prunable part beside the upload."""
    s0: Floats
    """Bits always sent."""
    s1: Floats
    """Bits of the whole prunable part."""
    snr: Floats
    """SNR-bandwidth products, Hz."""
    cap: float = inf
    """Most bit/s/Hz."""

    def kept(self, bandwidth: Floats) -> Floats:
        """The most that can be kept; above 1 where there is room to spare, negative where even nothing is too much."""
        speed = rate(bandwidth, self.snr, self.cap)
        with np.errstate(divide="ignore", invalid="ignore"):
            each = (self.left * speed - self.s0) / (self.b * speed + self.s1)
            silent = np.where(self.b > 0, self.left / self.b, np.where(self.left >= 0, np.inf, -np.inf))
        fixed = np.where(self.left * speed >= self.s0, np.inf, -np.inf)
        each = np.where((self.b == 0) & (self.s1 == 0), fixed, each)
        return np.where(self.s0 + self.s1 > 0, each, silent).min(0)

    def slope(self, bandwidth: Floats) -> Floats:
        """Derivative of `kept`: that of the row that binds. For devices that send and have something to prune."""
        speed = rate(bandwidth, self.snr, self.cap)
        below = self.b * speed + self.s1
        by_rate = (self.left * self.s1 + self.b * self.s0) / below**2
        if len(self.left) > 1:
            binds = ((self.left * speed - self.s0) / below).argmin(0)
            by_rate = np.take_along_axis(by_rate, binds[None], 0)
        return by_rate[0] * slope(bandwidth, self.snr, self.cap)

    def bandwidth(self, kept: Floats | float) -> Floats:
        """Hz needed to keep a fraction; inf where no band is enough, 0 for who sends nothing and is in time."""
        spare = self.left - self.b * kept
        bits = self.s0 + self.s1 * kept
        with np.errstate(over="ignore"):
            needed = np.divide(bits, spare, out=np.full_like(spare, np.inf), where=spare > 0)
        needed = np.where((bits == 0) & (spare >= 0), 0.0, needed)
        return bandwidth_for(needed.max(0), self.snr, self.cap)

    def among(self, chosen: Flags | NDArray[np.intp]) -> Curve:
        """The curves of some of the devices."""
        s0, s1, snr = self.s0[chosen], self.s1[chosen], self.snr[chosen]
        return Curve(self.left[:, chosen], self.b[:, chosen], s0, s1, snr, self.cap)


def curve(load: Load, snr: Floats, deadline: float, cap: float = inf, energy: Energy | None = None) -> Curve:
    """The curves of a round.

    Raises:
        ConfigError: arrays that do not fit, or numbers out of range.
    """
    snr = np.asarray(snr, np.float64)
    if snr.shape != load.s0.shape or not (np.isfinite(snr) & (snr > 0)).all():
        raise ConfigError(f"snr of shape {snr.shape}: expected Hz > 0 for each of {len(load)} devices")
    if not (0 < deadline < inf and cap > 0):
        raise ConfigError(f"deadline {deadline} s, cap {cap} bit/s/Hz: expected both > 0, the deadline finite")
    left, b = np.atleast_2d(deadline - load.a), np.atleast_2d(load.b)
    if energy is not None:
        rows = (np.broadcast_to(part, (1, len(load))) for part in energy.row())
        left, b = (np.concatenate(pair) for pair in zip((left, b), rows, strict=True))
    return Curve(left, b, load.s0, load.s1, snr, cap)
