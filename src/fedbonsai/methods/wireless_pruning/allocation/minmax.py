"""The least latency at given kept fractions: all devices end at once (specs/wireless §4.7)."""

from __future__ import annotations

from math import inf

import numpy as np

from fedbonsai.errors import ConfigError
from fedbonsai.methods.wireless_pruning.allocation.curve import curve
from fedbonsai.methods.wireless_pruning.allocation.problem import Floats, Load, checked_band
from fedbonsai.methods.wireless_pruning.allocation.rate import LN2, bandwidth_for, rate

STEPS = 200


def min_latency(
    load: Load, snr: Floats, bandwidth: float, kept: Floats | float = 1.0, *, cap: float = inf
) -> tuple[float, Floats]:
    """The shortest round and its bands, Hz.

    At ``kept = 1`` the seconds are those of a round without pruning (T_full); at the least kept fraction they are the
    shortest deadline that has a plan (T_min).

    Args:
        load: of each device.
        snr: SNR-bandwidth products, Hz.
        bandwidth: Hz, for all together.
        kept: kept fraction of each device, or one for all.
        cap: most bit/s/Hz.

    Raises:
        ConfigError: arrays that do not fit, or numbers out of range.
    """
    snr = np.asarray(snr, np.float64)
    fraction = np.broadcast_to(np.asarray(kept, np.float64), load.s0.shape)
    curve(load, snr, 1.0, cap)  # refuses what does not fit
    bandwidth = checked_band(bandwidth)
    if not ((fraction >= 0) & (fraction <= 1)).all():
        raise ConfigError(f"kept = {kept}: expected fractions in [0, 1]")
    bits, silent_until = load.bits(fraction), load.before_upload(fraction)
    sends = bits > 0
    bands = np.zeros(len(load))
    if not sends.any():
        return float(silent_until.max()), bands
    product, bits, start = snr[sends], bits[sends], silent_until[sends]
    low = float((start + bits * LN2 / product).max())
    high = float((start + bits / rate(bandwidth / len(bits), product, cap)).max())
    for _ in range(STEPS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        spare = middle - start
        with np.errstate(divide="ignore"):
            needed = np.where(spare > 0, bits / spare, np.inf)
        if bandwidth_for(needed, product, cap).sum() > bandwidth:
            low = middle
        else:
            high = middle
    share = bandwidth_for(bits / (high - start), product, cap)
    if not np.isfinite(share).all():
        share = np.full(len(bits), bandwidth / len(bits))
    bands[sends] = share * (bandwidth / share.sum())
    return float(load.seconds(fraction, rate(bands, snr, cap)).max()), bands
