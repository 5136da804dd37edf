"""A budget of energy as one more row of the same form as the latency (specs/wireless §7.4).

A device spends fixed + pruned x joules on compute and power (s0 + s1 x)/R on the uplink. Divided by the power, the
budget reads like a deadline: fixed/power + (pruned/power) x + (s0 + s1 x)/R <= limit/power, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fedbonsai.errors import ConfigError
from fedbonsai.methods.wireless_pruning.allocation.problem import Floats, Load


@dataclass(frozen=True)
class Energy:
    """Budgets and costs, a value for each device or one for all."""

    limit: ArrayLike
    """Joules that a device may spend in a round."""
    fixed: ArrayLike
    """Joules of compute whatever is pruned."""
    pruned: ArrayLike
    """Joules of compute of the whole prunable part; kappa f^2 cycles where the chip is modelled by its clock."""
    power: ArrayLike
    """Watts of the radio while it sends."""

    def __post_init__(self) -> None:
        """Refuse budgets that mean nothing."""
        for name in ("limit", "fixed", "pruned", "power"):
            value = np.asarray(getattr(self, name), np.float64)
            if not (np.isfinite(value) & ((value > 0) if name == "power" else (value >= 0))).all():
                raise ConfigError(f"energy: {name} = {value}: expected finite numbers >= 0, and a power > 0")

    def row(self) -> tuple[Floats, Floats]:
        """(limit - fixed)/power and pruned/power: what T - a and b are for the latency, in seconds."""
        limit, fixed, pruned, power = (
            np.asarray(value, np.float64) for value in (self.limit, self.fixed, self.pruned, self.power)
        )
        return (limit - fixed) / power, pruned / power

    def joules(self, load: Load, kept: Floats, rate: Floats) -> Floats:
        """What a round spends at a kept fraction and a rate in bit/s."""
        fixed, pruned, power = (np.asarray(value, np.float64) for value in (self.fixed, self.pruned, self.power))
        bits = load.bits(kept)
        seconds = np.divide(bits, rate, out=np.where(bits > 0, np.inf, 0.0), where=np.asarray(rate) > 0)
        return fixed + pruned * kept + power * seconds
