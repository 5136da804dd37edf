"""What releases cost: Rényi differential privacy of the Gaussian mechanism under Poisson sampling, and its epsilon.

Mironov, Talwar, Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism", 2019 (the divergence of a release);
Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020, proposition 12 (epsilon of a delta).
Neighbours differ in one device, which is there or is not; its part of a sum has at most the norm that noise is measured by.
Divergences of an order add up over releases, whatever each of them was chosen by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch

from fedbonsai.errors import ConfigError
from fedbonsai.wire import message

FRACTIONS = tuple(1 + step / 8 for step in range(1, 72) if step % 8)  # between 1 and 10
WHOLE = (*range(2, 65), 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)
ORDERS = (*FRACTIONS, *WHOLE)
FINE = 0.05  # noise, in clips, from which on orders between whole ones are worth their time
MOST = 1e4  # noise, in clips, above which `noise_for` does not look


@message("privacy/release@1")
class Release:
    """So many sums that were released alike.

    Attributes:
        rate: probability with which each device was asked, by itself.
        noise: standard deviation of the noise by the largest norm of what one device adds.
        rounds: how many.
    """

    rate: float
    noise: float
    rounds: int = 1


@message("privacy/account@1")
class Account:
    """All that was released so far, in order, and the norm to which the next round clips (0: as it is set)."""

    releases: tuple[Release, ...] = ()
    clip: float = 0.0

    def with_release(self, rate: float, noise: float) -> Account:
        """The account after one more release."""
        last = self.releases[-1] if self.releases else None
        if last is not None and (last.rate, last.noise) == (rate, noise):
            return replace(self, releases=(*self.releases[:-1], replace(last, rounds=last.rounds + 1)))
        return replace(self, releases=(*self.releases, Release(rate, noise)))

    def epsilon(self, delta: float) -> float:
        """The epsilon of all releases together, for a delta; 0 where there is none."""
        return epsilon(self.releases, delta)


def epsilon(releases: tuple[Release, ...], delta: float) -> float:
    """The smallest epsilon that the orders prove.

    >>> round(epsilon((Release(1.0, 4.0, 10),), 1e-5), 3)
    3.617
    """
    if not releases:
        return 0.0
    parts = [(each.rounds, _divergences(each.rate, each.noise)) for each in releases]
    return proven([math.fsum(rounds * of[k] for rounds, of in parts) for k in range(len(ORDERS))], delta)


def proven(divergences: Sequence[float], delta: float) -> float:
    """The smallest epsilon that Rényi divergences of `ORDERS` prove for a delta."""
    every = (
        cost + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        for cost, order in zip(divergences, ORDERS, strict=True)
    )
    return max(0.0, min(every))


def noise_for(wanted: float, delta: float, rate: float, rounds: int) -> float:
    """The least noise, in clips, with which so many rounds cost at most an epsilon, to a thousandth of it.

    Raises:
        ConfigError: no noise does.
    """
    low, high = 0.05, MOST
    if epsilon((Release(rate, high, rounds),), delta) > wanted:
        raise ConfigError(f"epsilon = {wanted}: no noise reaches it in {rounds} rounds; expected a larger one")
    while high > 1.001 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if epsilon((Release(rate, middle, rounds),), delta) > wanted else (low, middle)
    return high


@cache
def _divergences(rate: float, noise: float) -> tuple[float, ...]:
    """Rényi divergences of one release, by order; that of the sum with the device to the sum without is the larger one."""
    if rate == 1:
        return tuple(order / (2 * noise**2) for order in ORDERS)
    # divergences grow with the order; below that noise the next whole one says enough of a privacy that is none
    between = _numeric if noise >= FINE else lambda rate, noise, order: _whole(rate, noise, math.ceil(order))
    return (*(between(rate, noise, order) for order in FRACTIONS), *(_whole(rate, noise, order) for order in WHOLE))


def _whole(rate: float, noise: float, order: int) -> float:
    """Of a whole order: the binomial sum of Mironov et al., section 3.3."""
    k = torch.arange(order + 1, dtype=torch.float64)
    choose = math.lgamma(order + 1) - torch.lgamma(k + 1) - torch.lgamma(order - k + 1)
    terms = choose + (order - k) * math.log1p(-rate) + k * math.log(rate) + (k * k - k) / (2 * noise**2)
    return float(terms.logsumexp(0)) / (order - 1)


def _numeric(rate: float, noise: float, order: float) -> float:
    """Of any order: the moment of the likelihood ratio by the trapezoidal rule, whose error falls exponentially in the step."""
    step = min(noise / 16, noise**2 / 2)
    z = torch.arange(-14 * noise, order + 14 * noise, step, dtype=torch.float64)
    ratio = torch.logaddexp(torch.full_like(z, math.log1p(-rate)), (2 * z - 1) / (2 * noise**2) + math.log(rate))
    density = -(z**2) / (2 * noise**2) - math.log(noise * math.sqrt(2 * math.pi))
    return float((order * ratio + density).logsumexp(0) + math.log(step)) / (order - 1)
