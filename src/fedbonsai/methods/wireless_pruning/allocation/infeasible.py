"""Whom to serve where no plan serves all devices (specs/wireless §7.3)."""

from __future__ import annotations

from math import inf

import numpy as np
from numpy.typing import ArrayLike

from fedbonsai.errors import ConfigError
from fedbonsai.methods.wireless_pruning.allocation.baselines import cheapest
from fedbonsai.methods.wireless_pruning.allocation.curve import curve
from fedbonsai.methods.wireless_pruning.allocation.energy import Energy
from fedbonsai.methods.wireless_pruning.allocation.problem import (
    Flags,
    Floats,
    Load,
    checked_band,
    importance,
    least_kept,
)


def admit(
    load: Load,
    snr: Floats,
    deadline: float,
    bandwidth: float,
    ratio_max: float = 0.9,
    values: Floats | None = None,
    *,
    cap: float = inf,
    energy: Energy | None = None,
) -> Flags:
    """Who can be served together, everybody pruned as far as allowed.

    Devices that miss the deadline on any band are out. Of the rest, without ``values``, the largest set, which is exact:
    those of the narrowest needed bands. With ``values``, those of the most value per Hz as long as they fit, then whoever
    still fits, or the one device that is worth more than all of these.

    Raises:
        ConfigError: arrays that do not fit, or numbers out of range.
    """
    bandwidth = checked_band(bandwidth)
    needed = curve(load, snr, deadline, cap, energy).bandwidth(least_kept(ratio_max))
    if values is None:
        return cheapest(needed, bandwidth)
    worth = importance(values, len(load))
    chosen = np.zeros(len(load), np.bool_)
    rest, room = needed <= bandwidth, bandwidth
    best = int(np.where(rest, worth, -1.0).argmax())
    while rest.any():
        with np.errstate(divide="ignore"):
            order = np.flatnonzero(rest)[np.argsort(-(worth / needed)[rest], kind="stable")]
        first = order[np.cumsum(needed[order]) <= room]
        chosen[first] = True
        room -= float(needed[first].sum())
        rest &= ~chosen & (needed <= room)
    if needed[best] <= bandwidth and worth[best] > worth[chosen].sum():
        chosen[:] = False
        chosen[best] = True
    return chosen


def aged(weights: ArrayLike, ages: ArrayLike, bonus: float = 1.0) -> Floats:
    """Values for `admit` that let no device starve: weight times 1 + bonus x age.

    Args:
        weights: of each device in the objective.
        ages: rounds since each last took part.
        bonus: how much a round of waiting adds, in units of the weight.

    Raises:
        ConfigError: a negative age or bonus.
    """
    waited = np.asarray(ages, np.float64)
    if bonus < 0 or (waited < 0).any():
        raise ConfigError(f"bonus {bonus}, ages {waited}: expected numbers >= 0")
    return np.asarray(weights, np.float64) * (1 + bonus * waited)
