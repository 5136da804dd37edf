"""Compute that is not affine in the kept fraction: the chords of measured points (specs/wireless §7.2).

As long as the points are convex, the greatest chord is the interpolant between them, and each chord is a row of the
problem like the one an affine model has; the optimum stays exact. Beyond the outer points the outer chords go on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fedbonsai.errors import ConfigError
from fedbonsai.methods.wireless_pruning.allocation.problem import Floats

ROUNDING = 1e-9


def pieces(kept: ArrayLike, seconds: ArrayLike) -> tuple[Floats, Floats]:
    """``a`` and ``b`` of a `Load` from measured seconds.

    Args:
        kept: kept fractions at which was measured, rising; (points,).
        seconds: of compute, (points, devices) or (points,) for one device; not falling, and convex in the fraction.

    Returns:
        Constants and slopes of the chords, (points - 1, devices).

    Raises:
        ConfigError: fewer than two points, or points that are not rising, not convex, or beyond 0 seconds at x = 0.
    """
    at, took = np.asarray(kept, np.float64), np.asarray(seconds, np.float64)
    took = took[:, None] if took.ndim == 1 else took
    if at.ndim != 1 or len(at) < 2 or len(took) != len(at) or not (np.diff(at) > 0).all():
        raise ConfigError(f"points: {at.shape} fractions, {took.shape} seconds; expected 2 or more rising fractions")
    slopes = np.diff(took, axis=0) / np.diff(at)[:, None]
    slack = ROUNDING * np.abs(took).max()
    if (slopes < -slack).any() or (np.diff(slopes, axis=0) < -slack).any():
        raise ConfigError(
            "points: seconds are not rising and convex in the kept fraction, so that an optimum on them is not known; "
            "fit a + b x, or set b = 0 and prune what is sent alone"
        )
    slopes = np.maximum(slopes, 0.0)
    constants = took[:-1] - slopes * at[:-1, None]
    if (constants.max(0) < 0).any():
        raise ConfigError("points: the chords fall below 0 seconds at x = 0; measure at smaller fractions too")
    return constants, slopes
