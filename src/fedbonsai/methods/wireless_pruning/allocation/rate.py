"""The uplink rate, its slope in the bandwidth, and its inverse by the lower branch of Lambert's W.

B log2(1 + P/B) is concave in B with the ceiling P/ln 2. A cap on bit/s/Hz makes it linear in narrow bands, and it stays
concave. See specs/wireless §4.3 and §4.9 for the derivation and for where a plain evaluation loses its digits.
"""

from __future__ import annotations

from math import inf, log

import numpy as np
from numpy.typing import ArrayLike

from fedbonsai.errors import Missing
from fedbonsai.methods.wireless_pruning.allocation.problem import Floats

LN2 = log(2)
NEAR_CEILING = 1e-2  # closer to the ceiling than this, the library's W has lost half of its digits
FLAT = 1e-2  # below this SNR the slope is a difference of nearly equal numbers: its series has all digits


def rate(bandwidth: ArrayLike, snr: ArrayLike, cap: float = inf) -> Floats:
    """Bits per second over a band, as `fedbonsai.devices.channel.rate` has it, bit for bit; 0 over no band.

    Args:
        bandwidth: Hz, >= 0.
        snr: SNR-bandwidth product, Hz, > 0.
        cap: most bit/s/Hz.
    """
    band, product = np.asarray(bandwidth, np.float64), np.asarray(snr, np.float64)
    some = np.maximum(band, 1e-200)  # no band, no rate, and no 0 x inf
    return band * np.minimum(np.log1p(product / some) / LN2, cap)


def slope(bandwidth: ArrayLike, snr: ArrayLike, cap: float = inf) -> Floats:
    """Derivative of the rate in the bandwidth, bit/s/Hz; positive, falling.

    Args:
        bandwidth: Hz, > 0.
        snr: SNR-bandwidth product, Hz.
        cap: most bit/s/Hz.
    """
    z = np.asarray(snr, np.float64) / np.asarray(bandwidth, np.float64)
    shannon = excess(z) / LN2
    return shannon if cap == inf else np.where(np.log1p(z) > cap * LN2, cap, shannon)


def excess(z: Floats) -> Floats:
    """ln(1+z) - z/(1+z), to all digits for small z as well."""
    value = np.log1p(z) - z / (1 + z)
    small = z < FLAT
    if small.any():
        x = np.where(small, z, 0.0)
        series = np.zeros_like(x)
        for n in range(11, 1, -1):  # sum of (-1)^n (n-1)/n z^n; at z = 0.01 the term n = 12 is below 1e-23
            series = (n - 1) / n - x * series
        value = np.where(small, x * x * series, value)
    return value


def bandwidth_for(rate: ArrayLike, snr: ArrayLike, cap: float = inf) -> Floats:
    """The inverse of `rate`: Hz that a rate needs; inf where no bandwidth gives it, 0 for the rate 0.

    Args:
        rate: bit/s, >= 0; inf is allowed.
        snr: SNR-bandwidth product, Hz.
        cap: most bit/s/Hz.

    Raises:
        Missing: scipy is not installed.
    """
    needed, product = np.broadcast_arrays(np.asarray(rate, np.float64), np.asarray(snr, np.float64))
    with np.errstate(over="ignore"):
        y = needed * (LN2 / product)
    inside = (y > 0) & (y < 1)
    shannon = np.where(y > 0, np.inf, 0.0)
    shannon[inside] = product[inside] / _snr_at(y[inside])
    return shannon if cap == inf else np.maximum(shannon, needed / cap)


def _snr_at(y: Floats) -> Floats:
    """The positive root z of ln(1+z) = y z, for 0 < y < 1.

    Newton runs in z: in the bandwidth it diverges near the ceiling.
    """
    gap = 1 - y
    near = gap <= NEAR_CEILING
    z = gap * (2 + gap * (8 / 3 + gap * (28 / 9)))
    far = ~near
    z[far] = -lambert(-y[far] * np.exp(-y[far]), -1) / y[far] - 1
    for _ in range(3):
        logarithm = np.log1p(z)
        residual = np.where(gap > 0.5, logarithm - y * z, (logarithm - z) + gap * z)
        z = z - residual / (1 / (1 + z) - y)
    return z


def lambert(x: Floats, branch: int) -> Floats:
    """Lambert's W where it is real: the branch 0, or the lower branch -1.

    Raises:
        Missing: scipy is not installed.
    """
    try:
        from scipy.special import lambertw
    except ImportError as error:
        raise Missing(f"wireless allocation needs scipy ({error}); pip install 'fedbonsai[sim]'") from error
    return np.real(lambertw(x, branch))
