"""One pruning ratio for all devices; also the fairest plan, that of the least greatest ratio (specs/wireless §4.6)."""

from __future__ import annotations

from math import inf

import numpy as np

from fedbonsai.methods.wireless_pruning.allocation.curve import curve
from fedbonsai.methods.wireless_pruning.allocation.energy import Energy
from fedbonsai.methods.wireless_pruning.allocation.plan import planned, refusal
from fedbonsai.methods.wireless_pruning.allocation.problem import Floats, Load, Plan, checked_band, least_kept

STEPS = 100


def common_ratio(
    load: Load,
    snr: Floats,
    deadline: float,
    bandwidth: float,
    ratio_max: float = 0.9,
    *,
    cap: float = inf,
    energy: Energy | None = None,
) -> Plan:
    """The least ratio that all devices can share; weights play no part.

    Raises:
        ConfigError: arrays that do not fit, or numbers out of range.
    """
    curves, bandwidth = curve(load, snr, deadline, cap, energy), checked_band(bandwidth)
    everybody = np.ones(len(load), np.bool_)
    low, high = least_kept(ratio_max), 1.0
    if refused := refusal(curves.bandwidth(low), bandwidth, everybody):
        return refused
    if curves.bandwidth(high).sum() <= bandwidth:
        low = high
    for _ in range(STEPS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if curves.bandwidth(middle).sum() > bandwidth:
            high = middle
        else:
            low = middle
    return planned(load, snr, cap, everybody, np.full(len(load), 1 - low), curves.bandwidth(low))
