"""The wireless cell: where devices stand, how well each is heard, and what rate a band gives.

Defaults are common macro-cell numbers, those of specs/wireless §2.3; they are not a paper's. A channel is
known by its *SNR-bandwidth product* P = p h / (N0 F G), in Hz: the bandwidth at which the signal is as strong as the
noise (p power, h gain, N0 noise density, F noise figure, G the gap of real modulation to Shannon). The rate over B Hz is
B log2(1 + P/B) bit/s: it grows with B, but never beyond P/ln 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log, log10
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedbonsai.errors import ConfigError
from fedbonsai.tree import seed_of

Floats = NDArray[np.float64]


def rate(bandwidth: ArrayLike, snr: ArrayLike, cap: float = inf) -> Floats:
    """Bits per second over a band, Shannon's with noise in proportion to the band; 0 over no band.

    Args:
        bandwidth: Hz, >= 0.
        snr: SNR-bandwidth product, Hz, > 0.
        cap: most bit/s/Hz, that of the top modulation and coding scheme.
    """
    band, product = np.asarray(bandwidth, np.float64), np.asarray(snr, np.float64)
    some = np.maximum(band, 1e-200)  # no band, no rate, and no 0 x inf
    return band * np.minimum(np.log1p(product / some) / log(2), cap)


@dataclass(frozen=True)
class Cell:
    """A cell with one station; devices keep their place and shadow, fading is drawn anew each round."""

    radius: float = 500.0
    """Of the disc that devices stand in, uniformly, m."""
    nearest: float = 35.0
    """Least distance to the station, m."""
    path_loss: Literal["macro", "micro"] = "macro"
    """`macro` is 128.1 + 37.6 log10(km) dB, `micro` 32.4 + 21 log10(m) + 20 log10(GHz) dB (urban, line of sight)."""
    carrier: float = 2.0
    """GHz; counts for `micro` alone."""
    shadowing: float = 8.0
    """Standard deviation of the log-normal shadow, dB; drawn once for each device."""
    fading: Literal["rayleigh", "none"] = "rayleigh"
    """`rayleigh` multiplies the gain by a draw of exp(1), flat, constant within a round."""
    noise: float = -174.0
    """Noise density, dBm/Hz."""
    noise_figure: float = 0.0
    """Of the receiver, dB; 9 in practice."""
    power: float = 23.0
    """Total power of a device over its band, dBm."""
    station_power: float = 46.0
    """Total power of the station, dBm."""
    bandwidth: float = 10e6
    """Shared by all devices on the way up; whole for a broadcast on the way down, Hz."""
    gap: float = 0.0
    """SNR that real modulation needs beyond Shannon's, dB."""
    cap: float = inf
    """Most bit/s/Hz; a top modulation and coding scheme has 5.5 to 7.4."""

    def __post_init__(self) -> None:
        """Refuse what no cell has."""
        wrong = [
            f"{name} = {value}: expected {expected}"
            for name, value, good, expected in (
                ("nearest", self.nearest, 0 < self.nearest <= self.radius, "0 < nearest <= radius, in m"),
                ("radius", self.radius, 0 < self.radius < inf, "metres > 0"),
                ("carrier", self.carrier, 0 < self.carrier < inf, "GHz > 0"),
                ("shadowing", self.shadowing, 0 <= self.shadowing < inf, "dB >= 0"),
                ("bandwidth", self.bandwidth, 0 < self.bandwidth < inf, "Hz > 0"),
                ("cap", self.cap, self.cap > 0, "bit/s/Hz > 0"),
            )
            if not good
        ]
        if wrong:
            raise ConfigError("cell: " + "; ".join(wrong))

    def distance(self, seed: int, ids: Sequence[str]) -> Floats:
        """Metres to the station, one for each device."""
        return self._place(seed, ids)[0]

    def mean_snr_bandwidth(self, seed: int, ids: Sequence[str]) -> Floats:
        """SNR-bandwidth products before fading, Hz: placement, path loss and shadow alone; fading has mean 1."""
        metres, shadow = self._place(seed, ids)
        if self.path_loss == "macro":
            loss = 128.1 + 37.6 * np.log10(metres / 1e3)
        else:
            loss = 32.4 + 21 * np.log10(metres) + 20 * log10(self.carrier)
        budget = self.power - self.noise - self.noise_figure - self.gap
        return 10 ** ((budget - loss - self.shadowing * shadow) / 10)

    def snr_bandwidth(self, seed: int, ids: Sequence[str], t: int) -> Floats:
        """The true SNR-bandwidth products of round ``t``, Hz; what a device gets does not depend on the others."""
        return self.mean_snr_bandwidth(seed, ids) * self._fading(seed, ids, t)

    def predicted(
        self,
        seed: int,
        ids: Sequence[str],
        t: int,
        by: Literal["true", "mean", "last", "quantile"] = "quantile",
        margin: float = 0.5,
        quantile: float = 0.1,
    ) -> Floats:
        """What the server believes of round ``t`` before it starts, Hz (specs/wireless §7.2).

        Args:
            seed: of the run.
            ids: of the devices.
            t: round.
            by: ``true`` knows the round's channel; ``mean`` forgets fading; ``last`` is the round before times
                ``margin``; ``quantile`` is what fading falls short of with probability ``quantile``.
            margin: of ``last``.
            quantile: of ``quantile``, in (0, 1).

        Raises:
            ConfigError: a margin or a quantile out of range.
        """
        if not (margin > 0 and 0 < quantile < 1):
            raise ConfigError(f"margin {margin}, quantile {quantile}: expected margin > 0 and a quantile in (0, 1)")
        if by == "true":
            return self.snr_bandwidth(seed, ids, t)
        if by == "last":
            return margin * self.snr_bandwidth(seed, ids, t - 1)
        mean = self.mean_snr_bandwidth(seed, ids)
        return mean if by == "mean" or self.fading == "none" else -np.log1p(-quantile) * mean

    def rate(self, bandwidth: ArrayLike, snr: ArrayLike) -> Floats:
        """Uplink bit/s over ``bandwidth`` Hz each, under this cell's cap."""
        return rate(bandwidth, snr, self.cap)

    def broadcast_rate(self, snr: Floats) -> float:
        """Downlink bit/s to all at once: over the whole band, at the worst user's speed (specs/wireless §2.2)."""
        return float(rate(self.bandwidth, float(snr.min()) * self._louder, self.cap))

    def unicast_rates(self, snr: Floats) -> Floats:
        """Downlink bit/s to each device, where every one has an equal share of band and of the station's power."""
        share = self.bandwidth / len(snr)
        return rate(share, snr * self._louder / len(snr), self.cap)

    @property
    def _louder(self) -> float:
        return 10 ** ((self.station_power - self.power) / 10)

    def _place(self, seed: int, ids: Sequence[str]) -> tuple[Floats, Floats]:
        draws = [np.random.default_rng(seed_of(seed, f"cell/{each}", -1, 0)) for each in ids]
        where = np.array([draw.random() for draw in draws])
        inner = self.nearest**2
        metres = np.sqrt(inner + where * (self.radius**2 - inner))
        return metres, np.array([draw.standard_normal() for draw in draws])

    def _fading(self, seed: int, ids: Sequence[str], t: int) -> Floats:
        if self.fading == "none":
            return np.ones(len(ids))
        return np.array(
            [np.random.default_rng(seed_of(seed, f"fading/{each}", t, 0)).standard_exponential() for each in ids]
        )
