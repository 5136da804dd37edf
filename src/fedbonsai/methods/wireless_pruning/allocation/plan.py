"""Plans from what a solver found, and the refusal where there is none."""

from __future__ import annotations

import numpy as np

from fedbonsai.methods.wireless_pruning.allocation.problem import Flags, Floats, Load, Plan
from fedbonsai.methods.wireless_pruning.allocation.rate import rate


def planned(
    load: Load,
    snr: Floats,
    cap: float,
    chosen: Flags,
    ratio: Floats,
    bands: Floats,
    price: float = 0.0,
    reason: str = "",
) -> Plan:
    """A plan from the ratios and bands of those that take part, in their order."""
    ratios, shares, seconds = (np.zeros(len(load)) for _ in range(3))
    ratios[chosen], shares[chosen] = ratio, bands
    seconds[chosen] = load.among(chosen).seconds(1 - ratio, rate(bands, np.asarray(snr)[chosen], cap))
    return Plan(ratios, shares, chosen.copy(), seconds, reason, None, price)


def no_plan(devices: int, reason: str, limited: Flags | None = None) -> Plan:
    """The explicit answer that there is none."""
    nothing = np.zeros(devices)
    return Plan(nothing, nothing, np.zeros(devices, np.bool_), nothing, reason, limited)


def refusal(lo: Floats, bandwidth: float, chosen: Flags) -> Plan | None:
    """The refusal where not even the least bands of those chosen fit; None where they do."""
    unreachable = ~np.isfinite(lo)
    limited = np.zeros(len(chosen), np.bool_)
    limited[chosen] = unreachable
    if unreachable.any():
        text = f"{unreachable.sum()} of {len(lo)} devices miss the deadline on any band, pruned as far as allowed"
        return no_plan(len(chosen), text, limited)
    if lo.sum() > bandwidth:
        text = (
            f"the deadline needs {lo.sum():.4g} Hz with everything pruned as far as allowed; there are {bandwidth:.4g}"
        )
        return no_plan(len(chosen), text, limited)
    return None
