"""Noise shared out over the devices: exact draws, sums that fit, and an epsilon beside that of one Gaussian."""

from __future__ import annotations

import math
import random
import secrets
from fractions import Fraction

import pytest
import torch

from fedbonsai.stages.privacy.accountant import ORDERS, Release, epsilon
from fedbonsai.stages.privacy.distributed import (
    _divergences,
    discrete_gaussian,
    distributed_epsilon,
    noisy_codes,
    width,
)


def test_draws_have_the_frequencies_of_the_discrete_gaussian():
    deviation, count = Fraction(3, 2), 20_000
    drawn = discrete_gaussian(count, deviation, random.Random(0).randrange)
    weights = {x: math.exp(-x * x / (2 * 2.25)) for x in range(-30, 31)}
    total = sum(weights.values())
    places = range(-4, 5)
    seen = [int((drawn == x).sum()) for x in places]
    expected = [count * weights[x] / total for x in places]
    chi = sum((a - b) ** 2 / b for a, b in zip(seen, expected, strict=True))
    assert chi < 24  # of nine places: beyond it in one of 200 draws
    assert drawn.dtype == torch.int64


def test_a_half_of_a_code_is_mostly_nothing():
    # P(0) = 1 / (1 + 2 e^-2 + 2 e^-8 + ...) = .7866
    drawn = discrete_gaussian(4000, Fraction(1, 2), random.Random(1).randrange)
    assert float((drawn == 0).double().mean()) == pytest.approx(0.7866, abs=0.02)


def test_the_system_may_draw():
    assert discrete_gaussian(20, Fraction(50), secrets.randbelow).unique().numel() > 5


def test_shares_add_up_to_the_clipped_changes_and_the_noise_of_all():
    changes = [torch.full((2000,), 1.0), torch.full((2000,), -0.01)]
    below = random.Random(2).randrange
    parts = [noisy_codes(change, 1.0, 4472, Fraction(40), below) for change in changes]
    # 1 over sqrt 2000 is 100 codes of 4472; .01 is 44.72, towards zero, since its norm .447 is below the clip
    total = (parts[0] + parts[1]).double()
    assert float(total.mean()) == pytest.approx(99 - 44, abs=4)  # 99 or 100: cut off towards zero
    assert float(total.std()) == pytest.approx(40 * math.sqrt(2), rel=0.05)
    bits = width(2, 4472, Fraction(40))
    assert bits == 15
    assert int(total.abs().max()) < 2 ** (bits - 1)


def test_many_shares_cost_what_one_gaussian_of_their_sum_does():
    # 100 shares of 40 codes are 400, for a clip of 100 codes: noise 4, in ten rounds
    found = distributed_epsilon(100, Fraction(40), 100, 28_938, 10, 1e-5)
    assert found == pytest.approx(epsilon((Release(1.0, 4.0, 10),), 1e-5), rel=1e-9)


def test_what_coarse_shares_cost_more_by_hand():
    # two shares of one code: tau = 10 e^(-2 pi^2 / 2) = 10 e^-9.8696 = 5.17e-4
    tau = 10 * math.exp(-(math.pi**2))
    order, place = 2, ORDERS.index(2)
    scale = 5 / math.sqrt(2)
    expected = min(order / 2 * scale**2 + 1000 * tau, order / 2 * (scale + tau * math.sqrt(1000)) ** 2)
    assert _divergences(5, Fraction(1), 2, 1000)[place] == pytest.approx(expected, rel=1e-12)
    assert _divergences(5, Fraction(1), 1, 1000)[place] == pytest.approx(25, rel=1e-12)  # alone: 2 / 2 * 5^2
    with pytest.raises(ValueError, match="at least one half"):
        _divergences(5, Fraction(1, 3), 2, 10)


def test_devices_that_drop_out_take_their_noise_along():
    all_, some = (distributed_epsilon(100, Fraction(40), devices, 1000, 10, 1e-5) for devices in (100, 70))
    assert all_ < some
