"""The account beside numbers by hand, closed forms, and values of dp-accounting 0.6.0."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest

from fedbonsai.errors import ConfigError
from fedbonsai.stages.privacy.accountant import Account, Release, _numeric, _whole, epsilon, noise_for

PHI = NormalDist().cdf


def exact_delta(noise: float, rounds: int, eps: float) -> float:
    """Of unsampled Gaussian sums: together they are one, and its delta is known (Balle, Wang 2018, theorem 8)."""
    mu = math.sqrt(rounds) / noise
    return PHI(mu / 2 - eps / mu) - math.exp(eps) * PHI(-mu / 2 - eps / mu)


def test_the_divergence_of_order_two_by_hand():
    # sum over k of C(2, k) .9^(2-k) .1^k e^((k^2-k) / 2 noise^2) = 1 + .01 (e - 1) at noise 1
    assert _whole(0.1, 1.0, 2) == pytest.approx(math.log(1 + 0.01 * (math.e - 1)), rel=1e-12)
    assert _whole(0.5, 2.0, 2) == pytest.approx(math.log(1 + 0.25 * (math.exp(0.25) - 1)), rel=1e-12)


@pytest.mark.parametrize("rate", [0.01, 0.3])
@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("order", [2, 3, 9])
def test_the_numeric_divergence_is_the_sum_at_whole_orders(rate, noise, order):
    assert _numeric(rate, noise, order) == pytest.approx(_whole(rate, noise, order), rel=1e-9)


@pytest.mark.parametrize(("noise", "rounds", "delta"), [(4.0, 10, 1e-5), (1.0, 1, 1e-6), (20.0, 1, 1e-3)])
def test_without_sampling_it_is_above_the_exact_value_and_close_to_it(noise, rounds, delta):
    found = epsilon((Release(1.0, noise, rounds),), delta)
    assert exact_delta(noise, rounds, found) <= delta
    assert exact_delta(noise, rounds, 0.8 * found) > delta


@pytest.mark.parametrize(
    ("rate", "noise", "rounds", "delta", "rdp", "pld"),
    [  # of the RDP and the PLD accountant of dp-accounting 0.6.0, for Poisson sampled Gaussians, one device more or less
        (0.01, 1.1, 1000, 1e-5, 1.71177, 1.51537),
        (0.1, 1.0, 100, 1e-5, 7.90385, 7.04660),
        (0.1, 2.0, 100, 1e-5, 2.58057, 2.33740),
        (1.0, 4.0, 10, 1e-5, 3.61710, 3.34141),
        (0.3, 1.5, 50, 1e-6, 9.89994, 9.10495),
        (0.05, 0.7, 60, 1e-5, 7.69198, 6.52039),
    ],
)
def test_beside_dp_accounting(rate, noise, rounds, delta, rdp, pld):
    found = epsilon((Release(rate, noise, rounds),), delta)
    assert found == pytest.approx(rdp, rel=0.01)
    assert found > pld  # which is exact but for its grid: nobody may be told less


def test_an_account_adds_up_what_was_released_and_keeps_equal_rounds_together():
    account = Account().with_release(0.1, 1.0).with_release(0.1, 1.0).with_release(0.2, 1.0)
    assert account.releases == (Release(0.1, 1.0, 2), Release(0.2, 1.0, 1))
    costs = [account.epsilon(1e-5), Account(account.releases[:1]).epsilon(1e-5), Account().epsilon(1e-5)]
    assert costs[0] > costs[1] > costs[2] == 0
    two = math.sqrt(2)  # two sums with noise 2 are one with noise root two
    assert epsilon((Release(1.0, 2.0, 2),), 1e-5) == pytest.approx(epsilon((Release(1.0, two),), 1e-5), rel=1e-12)


def test_hardly_any_noise_is_a_number_too():
    assert 1e11 < epsilon((Release(0.1, 1e-6),), 1e-5) < 1e13
    assert epsilon((Release(0.1, 0.0499),), 1e-5) >= epsilon((Release(0.1, 0.0501),), 1e-5)


def test_the_least_noise_for_an_epsilon():
    noise = noise_for(2.0, 1e-5, 0.1, 50)
    assert epsilon((Release(0.1, noise, 50),), 1e-5) <= 2.0 < epsilon((Release(0.1, 0.99 * noise, 50),), 1e-5)
    with pytest.raises(ConfigError, match="no noise reaches it"):
        noise_for(1e-9, 1e-5, 1.0, 50)
