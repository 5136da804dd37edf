"""Whole resource blocks instead of any bandwidth (specs/wireless §7.6).

Every device starts with the fewest blocks that let it take part; each further block goes where it saves the most weighted
pruning, which is exact, since the gains of a device's successive blocks fall. As with any bandwidth, a price is bisected:
a device gets the blocks that gain more than it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import numpy as np

from fedbonsai.errors import ConfigError
from fedbonsai.methods.wireless_pruning.allocation.curve import curve
from fedbonsai.methods.wireless_pruning.allocation.energy import Energy
from fedbonsai.methods.wireless_pruning.allocation.plan import planned, refusal
from fedbonsai.methods.wireless_pruning.allocation.problem import (
    Floats,
    Load,
    Plan,
    checked_band,
    importance,
    least_kept,
)
from fedbonsai.methods.wireless_pruning.allocation.surrogate import PruningError

STEPS = 200


def allocate_blocks(
    load: Load,
    snr: Floats,
    deadline: float,
    bandwidth: float,
    weights: Floats | None = None,
    ratio_max: float = 0.9,
    block: float = 180e3,
    *,
    cap: float = inf,
    energy: Energy | None = None,
    error: PruningError | None = None,
) -> Plan:
    """The optimum of `allocate` among bands that are whole numbers of blocks.

    Args:
        load: of each device.
        snr: SNR-bandwidth products, Hz.
        deadline: seconds of a round.
        bandwidth: Hz, for all together; what is left beyond whole blocks is not used.
        weights: importance of each device's pruning, > 0.
        ratio_max: most that may be pruned.
        block: Hz of one block.
        cap: most bit/s/Hz.
        energy: budgets to keep beside the deadline.
        error: minimise this error of pruning instead of the ratio.

    Raises:
        ConfigError: arrays that do not fit, or numbers out of range.
    """
    if not 0 < block <= checked_band(bandwidth):
        raise ConfigError(f"block = {block} Hz of {bandwidth} Hz: expected 0 < block <= bandwidth")
    least, alpha = least_kept(ratio_max), importance(weights, len(load))
    curves = curve(load, snr, deadline, cap, energy)
    everybody = np.ones(len(load), np.bool_)
    total = int(bandwidth / block * (1 + 1e-12))
    start = np.ceil(curves.bandwidth(least) / block * (1 - 1e-12))
    if refused := refusal(start * block, total * block, everybody):
        return refused
    spare = total - int(start.sum())

    def cost(blocks: Floats) -> Floats:
        ratio = 1 - np.clip(curves.kept(blocks * block), least, 1)
        return alpha * (ratio if error is None else error(ratio))

    blocks = _greatest(lambda extra: cost(start + extra) - cost(start + extra + 1), len(load), spare) + start
    kept = np.clip(curves.kept(blocks * block), least, 1)
    return planned(load, snr, cap, everybody, 1 - kept, blocks * block)


def _greatest(gain: Callable[[Floats], Floats], devices: int, spare: int) -> Floats:
    """How many blocks each device gets if ``spare`` blocks go, one by one, where the gain is greatest.

    Args:
        gain: of one block more to each device that has so many extra; not rising in their number.
        devices: how many there are.
        spare: blocks to give.
    """

    def worth(price: float, least: Floats, most: Floats) -> Floats:
        """How many blocks of each device gain more than the price, between two bounds."""
        while (least < most).any():
            middle = np.floor((least + most) / 2)
            more = (gain(middle) > price) & (least < most)
            least, most = np.where(more, middle + 1, least), np.where(more, most, np.minimum(middle, most))
        return least

    nothing = np.zeros(devices)
    fewest, most = nothing, worth(0.0, nothing, np.full(devices, float(spare)))
    if most.sum() <= spare:
        return most
    high = float(gain(nothing).max())
    low = 1e-30 * high
    for _ in range(STEPS):
        price = (low * high) ** 0.5
        count = worth(price, fewest, most)
        if count.sum() > spare:
            low, most = price, count
        else:
            high, fewest = price, count
        if (fewest == most).all() or high <= low * (1 + 4e-16):
            break
    open_to = most - fewest  # blocks of one and the same gain: in the order of devices
    before = np.cumsum(open_to) - open_to
    return fewest + np.clip(spare - fewest.sum() - before, 0, open_to)
