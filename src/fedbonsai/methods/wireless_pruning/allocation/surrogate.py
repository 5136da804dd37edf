"""The true error of pruning by magnitude, in place of the ratio (specs/wireless §7.5).

Pruning the smallest fraction rho of u leaves the error e(rho) = |u - u m|^2 / |u|^2: convex, rising, never above rho. The
server knows u, so it can minimise the sum of e(rho_k) rather than of rho_k; the solver is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedbonsai.errors import ConfigError
from fedbonsai.methods.wireless_pruning.allocation.problem import Floats


@dataclass(frozen=True)
class PruningError:
    """e(rho) of one model: linear between whole numbers of pruned weights."""

    steps: Floats
    """Relative error that each weight adds when pruned in rising order of magnitude; (weights,)."""
    sums: Floats
    """Their running sums from 0; (weights + 1,)."""

    @staticmethod
    def of(values: ArrayLike) -> PruningError:
        """From the prunable weights, in any order and shape.

        Raises:
            ConfigError: no weight, all zero, or not finite.
        """
        squares = np.sort(np.square(np.asarray(values, np.float64).reshape(-1)))
        total = squares.sum()
        if not 0 < total < np.inf:
            raise ConfigError(f"{squares.size} prunable weights of square sum {total}: expected finite, not all zero")
        steps = squares / total
        return PruningError(steps, np.concatenate([[0.0], np.cumsum(steps)]))

    def __call__(self, ratio: ArrayLike) -> Floats:
        """Relative error at a pruning ratio in [0, 1]."""
        gone = np.asarray(ratio, np.float64) * len(self.steps)
        whole = self._whole(gone)
        return self.sums[whole] + (gone - whole) * self.steps[whole]

    def slope(self, ratio: ArrayLike) -> Floats:
        """Derivative from the right, per unit of ratio."""
        return self.steps[self._whole(np.asarray(ratio, np.float64) * len(self.steps))] * len(self.steps)

    def _whole(self, gone: Floats) -> NDArray[np.int64]:
        return np.clip(np.floor(gone).astype(np.int64), 0, len(self.steps) - 1)
