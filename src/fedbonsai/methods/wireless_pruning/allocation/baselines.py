"""Plans to compare the optimum with (specs/wireless §4.4 and §6); whom a plan cannot serve in time is left out."""

from __future__ import annotations

from math import inf
from typing import Literal

import numpy as np

from fedbonsai.methods.wireless_pruning.allocation.curve import Curve, curve
from fedbonsai.methods.wireless_pruning.allocation.minmax import min_latency
from fedbonsai.methods.wireless_pruning.allocation.plan import no_plan, planned
from fedbonsai.methods.wireless_pruning.allocation.problem import Flags, Floats, Load, Plan, checked_band, least_kept

SLACK = 1e-12  # a band that just meets the deadline may miss it by rounding


def equal_bandwidth(
    load: Load, snr: Floats, deadline: float, bandwidth: float, ratio_max: float = 0.9, *, cap: float = inf
) -> Plan:
    """Equal bands, and on its own each device prunes as little as it can (4.2).

    Raises:
        ConfigError: arrays that do not fit, or numbers out of range.
    """
    curves = curve(load, snr, deadline, cap)
    bands = np.full(len(load), checked_band(bandwidth) / len(load))
    return _pruned(load, curves, bands, ratio_max)


def decoupled(
    load: Load,
    snr: Floats,
    deadline: float,
    bandwidth: float,
    ratio_max: float = 0.9,
    initial: float = 0.5,
    *,
    cap: float = inf,
) -> Plan:
    """One pass: the bands of the shortest round at one ratio for all, then the least ratios on those bands.

    Raises:
        ConfigError: arrays that do not fit, or numbers out of range.
    """
    curves = curve(load, snr, deadline, cap)
    return _pruned(load, curves, min_latency(load, snr, bandwidth, 1 - initial, cap=cap)[1], ratio_max)


def alternating(
    load: Load,
    snr: Floats,
    deadline: float,
    bandwidth: float,
    ratio_max: float = 0.9,
    step: Literal["min_max", "needed"] = "min_max",
    passes: int = 30,
    *,
    cap: float = inf,
) -> Plan:
    """Ratios at fixed bands and bands at fixed ratios in turn, from equal bands; not the optimum.

    Args:
        load: of each device.
        snr: SNR-bandwidth products, Hz.
        deadline: seconds of a round.
        bandwidth: Hz, for all together.
        ratio_max: most that may be pruned.
        step: how bands follow from ratios: ``needed`` gives each device what it needs, which is what it had, so that
            nothing moves; ``min_max`` makes the round as short as the ratios allow.
        passes: most turns.
        cap: most bit/s/Hz.

    Raises:
        ConfigError: arrays that do not fit, or numbers out of range.
    """
    curves = curve(load, snr, deadline, cap)
    plan = equal_bandwidth(load, snr, deadline, bandwidth, ratio_max, cap=cap)
    for _ in range(passes):
        kept = np.where(plan.active, 1 - plan.ratio, least_kept(ratio_max))
        if step == "min_max":
            bands = min_latency(load, snr, bandwidth, kept, cap=cap)[1]
        else:
            bands = np.where(plan.active, curves.bandwidth(kept), bandwidth / len(load))
        after = _pruned(load, curves, bands, ratio_max)
        moved = np.abs(after.ratio - plan.ratio).max()
        plan = after
        if moved < 1e-9:
            break
    return plan


def drop_stragglers(load: Load, snr: Floats, deadline: float, bandwidth: float, *, cap: float = inf) -> Plan:
    """No pruning: the most devices whose needed bands fit.

    Raises:
        ConfigError: arrays that do not fit, or numbers out of range.
    """
    bands = curve(load, snr, deadline, cap).bandwidth(1.0)
    chosen = cheapest(bands, checked_band(bandwidth))
    if not chosen.any():
        return no_plan(len(load), "no device meets the deadline without pruning")
    share = bands[chosen]
    return planned(load, snr, cap, chosen, np.zeros(len(share)), share, reason=left_out(chosen))


def cheapest(bands: Floats, bandwidth: float) -> Flags:
    """The largest set whose bands fit: the narrowest first."""
    order = np.argsort(bands, kind="stable")
    chosen = np.zeros(len(bands), np.bool_)
    chosen[order] = np.cumsum(bands[order]) <= bandwidth
    return chosen


def left_out(chosen: Flags) -> str:
    """Why a plan is not for everybody; empty where it is."""
    missing = int((~chosen).sum())
    return f"{missing} of {len(chosen)} devices are left out: they cannot meet the deadline" if missing else ""


def _pruned(load: Load, curves: Curve, bands: Floats, ratio_max: float) -> Plan:
    """The least ratios on given bands (4.2)."""
    least, kept = least_kept(ratio_max), curves.kept(bands)
    chosen = kept >= least * (1 - SLACK)
    if not chosen.any():
        return no_plan(len(load), "no device meets the deadline on the band that it is given")
    ratio = 1 - np.clip(kept[chosen], least, 1)
    return planned(load, curves.snr, curves.cap, chosen, ratio, bands[chosen], reason=left_out(chosen))
