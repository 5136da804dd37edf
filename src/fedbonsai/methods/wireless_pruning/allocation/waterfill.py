"""The joint optimum of pruning ratios and bandwidths under a deadline: one price for bandwidth, found by bisection.

With every device pruning as little as its band allows, what is left is min sum alpha_k [1 - g_k(B_k)]+ over sum B_k <=
B_tot: convex and separable, though the problem in (ratio, bandwidth) is not. At the optimum every device that is at no
bound gains the same, mu, from one Hz more (specs/wireless §4.4 and §4.9). Bands span decades, so both searches
run on logarithms.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf, log

import numpy as np

from fedbonsai.methods.wireless_pruning.allocation.curve import Curve, curve
from fedbonsai.methods.wireless_pruning.allocation.energy import Energy
from fedbonsai.methods.wireless_pruning.allocation.plan import no_plan, planned, refusal
from fedbonsai.methods.wireless_pruning.allocation.problem import (
    Flags,
    Floats,
    Load,
    Plan,
    checked_band,
    importance,
    least_kept,
)
from fedbonsai.methods.wireless_pruning.allocation.rate import LN2, excess, lambert
from fedbonsai.methods.wireless_pruning.allocation.surrogate import PruningError

OUTER = 100
INNER = 60


def allocate(
    load: Load,
    snr: Floats,
    deadline: float,
    bandwidth: float,
    weights: Floats | None = None,
    ratio_max: float = 0.9,
    *,
    cap: float = inf,
    energy: Energy | None = None,
    error: PruningError | None = None,
    among: Flags | None = None,
) -> Plan:
    """The ratios and bands of least weighted pruning that meet the deadline.

    Where no pruning is needed, each device gets the band that just meets the deadline and the rest is left over.

    Args:
        load: of each device.
        snr: SNR-bandwidth products, Hz.
        deadline: seconds of a round.
        bandwidth: Hz, for all together.
        weights: importance of each device's pruning, > 0; equal, summing to 1, by default.
        ratio_max: most that may be pruned, in [0, 1).
        cap: most bit/s/Hz.
        energy: budgets to keep beside the deadline.
        error: minimise this error of pruning instead of the ratio.
        among: who takes part; everybody by default.

    Returns:
        A plan for all in ``among``, or one that is not ``feasible`` and says why.

    Raises:
        ConfigError: arrays that do not fit, or numbers out of range.
    """
    least, bandwidth = least_kept(ratio_max), checked_band(bandwidth)
    chosen = np.ones(len(load), np.bool_) if among is None else among
    alpha = importance(weights, len(load))[chosen]
    curves = curve(load, snr, deadline, cap, energy).among(chosen)
    if not chosen.any():
        return no_plan(len(load), "no device to take part")
    lo, full = curves.bandwidth(least), curves.bandwidth(1.0)
    if refused := refusal(lo, bandwidth, chosen):
        return refused
    if full.sum() <= bandwidth:
        return planned(load, snr, cap, chosen, np.zeros(len(lo)), full)

    hi = np.where(curves.s0 + curves.s1 > 0, np.minimum(full, bandwidth), 0.0)
    free = np.flatnonzero(hi > lo)  # the others send nothing, or have nothing to prune
    some, gain = curves.among(free), alpha[free]

    def marginal(bands: Floats) -> Floats:
        value = gain * some.slope(bands)
        return value if error is None else value * error.slope(np.clip(1 - some.kept(bands), 0, 1 - least))

    closed = _closed(some, gain) if error is None and bits_only(some) else None
    bands, price = lo.copy(), 0.0
    if len(free):
        room = bandwidth - (lo.sum() - lo[free].sum())
        bands[free], price = waterfill(marginal, lo[free], hi[free], room, closed)
    kept = np.clip(curves.kept(bands), least, 1)
    kept[(bands >= full) & (bands > 0)] = 1
    return planned(load, snr, cap, chosen, 1 - kept, bands, price)


def waterfill(
    marginal: Callable[[Floats], Floats],
    lo: Floats,
    hi: Floats,
    budget: float,
    closed: Callable[[float], Floats] | None = None,
) -> tuple[Floats, float]:
    """Maximise a sum of concave functions of one variable each, under a budget for the sum of the variables.

    The price mu is bisected; for each mu, so is every variable at which the derivative is mu, but no further than it
    takes to know on which side of the budget their sum is. What is learnt of a variable at one mu bounds it at the next.

    Args:
        marginal: derivatives, not rising in each variable.
        lo: least values, > 0, of a sum within the budget.
        hi: most values, of a sum beyond the budget.
        budget: for the sum.
        closed: the variables at which the derivatives are mu, where they are known in closed form.

    Returns:
        The variables and the common derivative mu.
    """
    top, bottom = marginal(lo), marginal(hi)
    if not top.max() > 0:
        return lo, 0.0

    def narrowed(mu: float, least: Floats, most: Floats, decided: bool) -> tuple[Floats, Floats]:
        """Bounds of the variables at a price; until their sum is on one side of the budget, or until they meet."""
        if closed is not None:
            exact = np.clip(closed(mu), lo, hi)
            return exact, exact
        full, none = bottom >= mu, top <= mu  # both where a derivative is mu throughout
        least, most = (np.where(full, hi, np.where(none, lo, end)) for end in (least, most))
        for _ in range(INNER):
            if decided and (least.sum() > budget or most.sum() <= budget):
                break
            if (most <= least * (1 + 4e-16)).all():
                break
            middle = np.clip(np.sqrt(least) * np.sqrt(most), least, most)
            above = marginal(middle) > mu
            least, most = np.where(above, middle, least), np.where(above, most, middle)
        return least, most

    low, high = log(max(bottom.min(), 1e-30 * top.max())) - 1, log(top.max()) + 1
    floor, ceiling = lo, hi  # at the prices high and low
    for _ in range(OUTER):
        middle = (low + high) / 2
        least, most = narrowed(exp(middle), floor, ceiling, True)
        if least.sum() > budget:
            low, ceiling = middle, most
        else:
            high, floor = middle, least
        if high - low < 1e-15 * max(abs(low), 1):
            break
    under, over = narrowed(exp(high), floor, ceiling, False)[0], narrowed(exp(low), floor, ceiling, False)[1]
    gap = over.sum() - under.sum()
    # where a derivative is constant or jumps, all between the two ends is optimal: the budget decides
    part = min(max((budget - under.sum()) / gap, 0.0), 1.0) if gap > 0 else 0.0
    return under + part * (over - under), exp((low + high) / 2)


def bits_only(curves: Curve) -> bool:
    """Whether pruning saves nothing but bits, by Shannon's rate: then bands have a closed form in the price."""
    return len(curves.left) == 1 and curves.cap == inf and not curves.b.any()


def _closed(curves: Curve, alpha: Floats) -> Callable[[float], Floats]:
    """B = P (-w)/(1 + w), w = W0(-exp(-1 - c)), c = mu ln2 s1/(alpha (T - a)), for b = 0 (specs/wireless §4.4)."""
    scale = LN2 * curves.s1 / (alpha * curves.left[0])

    def at(mu: float) -> Floats:
        c = np.minimum(mu * scale, 300)  # an SNR of 130 decades: narrower than any least band
        w = lambert(-np.exp(-1 - c), 0)
        root = np.sqrt(2 * c)
        z = np.where(c < 1e-3, root * (1 + root * (2 / 3)), -(1 + w) / w)
        for _ in range(3):  # W0 loses digits near its branch point, where bands are wide
            z = z - (excess(z) - c) * (1 + z) ** 2 / z
        return curves.snr / z

    return at
