"""Noise shared out over the devices: what each adds to its codes, so that nobody but all of them together sees their sum without.

Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation", ICML 2021
(the sum of shares: theorem 1 and proposition 14); Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy",
NeurIPS 2020 (algorithms 1 to 3: exact draws, in whole numbers). Codes are those of `fixed_point`, cut off towards zero, so that
no rounding makes them longer; the sum is of whole numbers, as a secure sum adds them up. Who is asked is known to the server
from which noise shall protect, so sampling earns nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from fedbonsai.stages.privacy.accountant import ORDERS, proven
from fedbonsai.stages.privacy.fixed_point import codes

Below = Callable[
    [int], int
]  # a whole number from 0 to below another, all alike: `secrets.randbelow`, `random.Random(0).randrange`
TAIL = 10.0  # deviations of a sum for which there is room


def noisy_codes(change: Tensor, clip: float, units: int, deviation: Fraction, below: Below) -> Tensor:
    """What a device adds to the sum: its clipped change as codes, and its share of the noise.

    Args:
        change: finite floats [values].
        clip: largest L2 norm.
        units: codes of that norm.
        deviation: of a share, in codes, at least one half.
        below: draws whole numbers.

    Returns:
        int64 [values].
    """
    return codes(change, clip, units) + discrete_gaussian(change.numel(), deviation, below)


def width(devices: int, units: int, deviation: Fraction) -> int:
    """Bits in which the sum of so many devices' codes fits, with a sign and ten deviations of noise."""
    largest = devices * units + TAIL * float(deviation) * math.sqrt(devices)
    return math.ceil(math.log2(largest + 1)) + 1


def distributed_epsilon(units: int, deviation: Fraction, devices: int, values: int, rounds: int, delta: float) -> float:
    """Epsilon of so many sums with the noise of the devices that are sure to answer honestly.

    Args:
        units: largest norm of a device's codes.
        deviation: of a share of the noise, in codes.
        devices: whose noise is in the sum whatever happens: without those that may drop out, or work with the server.
        values: coordinates.
        rounds: sums.
        delta: as ever.

    >>> round(distributed_epsilon(100, Fraction(40), 100, 1000, 10, 1e-5), 3)  # 4 clips of noise in all
    3.617
    """
    return proven([rounds * divergence for divergence in _divergences(units, deviation, devices, values)], delta)


def _divergences(units: int, deviation: Fraction, devices: int, values: int) -> list[float]:
    """Rényi divergences of one sum, by order."""
    if deviation < Fraction(1, 2):
        raise ValueError(f"deviation = {float(deviation):g} codes: expected at least one half, or nothing is proven")
    tau = 10 * math.fsum(math.exp(-2 * (math.pi * float(deviation)) ** 2 * k / (k + 1)) for k in range(1, devices))
    scale = units / (math.sqrt(devices) * float(deviation))
    return [
        min(order / 2 * scale**2 + tau * values, order / 2 * (scale + tau * math.sqrt(values)) ** 2) for order in ORDERS
    ]


def discrete_gaussian(count: int, deviation: Fraction, below: Below) -> Tensor:
    """Numbers of the discrete Gaussian, P(x) ~ exp(-x^2 / 2 deviation^2), int64 [count], exactly: no float is looked at."""
    variance = deviation**2
    return torch.tensor([_gaussian(variance.numerator, variance.denominator, below) for _ in range(count)])


def _gaussian(top: int, bottom: int, below: Below) -> int:
    """One number of the discrete Gaussian of variance ``top / bottom``, by rejection from a discrete Laplace (algorithm 3)."""
    scale = math.isqrt(top // bottom) + 1
    while True:
        found = _laplace(scale, below)
        if _happens((abs(found) * scale * bottom - top) ** 2, 2 * scale * scale * top * bottom, below):
            return found


def _laplace(scale: int, below: Below) -> int:
    """One number with P(x) ~ exp(-abs(x) / scale) (algorithm 2)."""
    while True:
        part = below(scale)
        if not _happens(part, scale, below):
            continue
        whole = 0
        while _happens(1, 1, below):
            whole += 1
        size = part + scale * whole
        if below(2):
            return size
        if size:
            return -size


def _happens(top: int, bottom: int, below: Below) -> bool:
    """True with probability exp(-top / bottom) (algorithm 1)."""
    while top > bottom:
        if not _happens(1, 1, below):
            return False
        top -= bottom
    tries = 1
    while below(bottom * tries) < top:
        tries += 1
    return tries % 2 == 1
