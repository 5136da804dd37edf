"""Where the SNR does not depend on the band: the rate is linear in it, and the optimum has a closed form.

With R = eta B, the band of a device between its bounds is linear in nu = 1/sqrt(mu), mu the price of bandwidth; the sum
over devices is piecewise linear in nu, so after a sort of the 2K ends one linear equation is left (specs/wireless
§4.5). A device with b = 0 has one nu at which it takes anything between its bounds: with b = 0 for all, bands are
filled in order of gain per Hz, as in a linear programme.
"""

from __future__ import annotations

import numpy as np

from fedbonsai.errors import ConfigError
from fedbonsai.methods.wireless_pruning.allocation.plan import refusal
from fedbonsai.methods.wireless_pruning.allocation.problem import (
    Floats,
    Load,
    Plan,
    checked_band,
    importance,
    least_kept,
)


def allocate_linear(
    load: Load,
    efficiency: Floats,
    deadline: float,
    bandwidth: float,
    weights: Floats | None = None,
    ratio_max: float = 0.9,
) -> Plan:
    """The ratios and bands of least weighted pruning for rates of ``efficiency`` x bandwidth.

    Args:
        load: of each device.
        efficiency: bit/s/Hz of each device, log2(1 + SNR) at its fixed SNR.
        deadline: seconds of a round.
        bandwidth: Hz, for all together.
        weights: importance of each device's pruning, > 0.
        ratio_max: most that may be pruned.

    Raises:
        ConfigError: arrays that do not fit, or numbers out of range.
    """
    least, bandwidth, alpha = least_kept(ratio_max), checked_band(bandwidth), importance(weights, len(load))
    eta = np.asarray(efficiency, np.float64)
    if load.a.ndim > 1:
        raise ConfigError(f"a of shape {load.a.shape}: the linear rate has a closed form for affine compute alone")
    if eta.shape != load.a.shape or not (np.isfinite(eta) & (eta > 0)).all():
        raise ConfigError(f"efficiency of shape {eta.shape}: expected bit/s/Hz > 0 for each of {len(load)} devices")
    left = deadline - load.a

    def needed(kept: float) -> Floats:
        spare, bits = left - load.b * kept, load.bits(kept)
        bands = np.divide(bits, eta * spare, out=np.full_like(spare, np.inf), where=spare > 0)
        return np.where((bits == 0) & (spare >= 0), 0.0, bands)

    everybody = np.ones(len(load), np.bool_)
    lo, full = needed(least), needed(1.0)
    if refused := refusal(lo, bandwidth, everybody):
        return refused
    silent = load.bits() == 0
    hi = np.where(silent, 0.0, np.minimum(full, bandwidth))
    bands, price = full, 0.0
    if full.sum() > bandwidth:
        bands, price = _filled(load, eta, left, alpha, lo, np.maximum(hi, lo), bandwidth)
    below = load.b * eta * bands + load.s1
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(silent, np.where(load.b > 0, left / load.b, 1.0), (left * eta * bands - load.s0) / below)
    kept = np.where((bands >= full) | (below == 0) & ~silent, 1.0, np.clip(kept, least, 1))
    return Plan(1 - kept, bands, everybody, load.seconds(kept, eta * bands), multiplier=price)


def _filled(
    load: Load, eta: Floats, left: Floats, alpha: Floats, lo: Floats, hi: Floats, bandwidth: float
) -> tuple[Floats, float]:
    """Bands between ``lo`` and ``hi`` that use the whole bandwidth, and its price."""
    root = np.sqrt(alpha * eta * (left * load.s1 + load.b * load.s0))
    free = hi > lo
    opens, closes = (
        np.divide(load.b * eta * ends + load.s1, root, out=np.zeros_like(root), where=free) for ends in (lo, hi)
    )
    width = closes - opens
    ends = np.unique(np.concatenate([opens[free], closes[free]]))

    def at(state: int) -> Floats:
        """Bands just below (even) or just above (odd) an end."""
        nu, above = ends[state // 2], state % 2 == 1
        passed = opens <= nu if above else opens < nu
        part = np.divide(nu - opens, width, out=passed.astype(np.float64), where=width > 0)
        return lo + (hi - lo) * np.where(free, np.clip(part, 0, 1), 0.0)

    first, last = 0, 2 * len(ends) - 1
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (middle, last) if at(middle).sum() <= bandwidth else (first, middle)
    under, over = at(first), at(last)
    gap = over.sum() - under.sum()
    part = min(max((bandwidth - under.sum()) / gap, 0.0), 1.0) if gap > 0 else 0.0
    nu = ends[first // 2] + part * (ends[last // 2] - ends[first // 2])
    return under + part * (over - under), float(1 / nu**2)
