import sys
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import brentq

from fedbonsai.errors import Missing
from fedbonsai.methods.wireless_pruning.allocation.rate import LN2, bandwidth_for, excess, rate, slope

SNR_DB = np.linspace(-50, 90, 20_001)


def test_round_trip_from_minus_50_to_90_decibels():
    bands = 10 ** np.random.default_rng(0).uniform(2, 8, SNR_DB.size)
    snr = bands * 10 ** (SNR_DB / 10)
    back = bandwidth_for(rate(bands, snr), snr)
    assert back.dtype == np.float64
    # at -50 dB a rounding of the rate, 1e-16, moves the band by 1e5 times as much
    assert np.abs(back / bands - 1).max() <= 1e-9
    assert np.abs(rate(back, snr) / rate(bands, snr) - 1).max() < 1e-14


def test_rates_at_and_above_the_ceiling_need_an_infinite_band():
    snr = 10 ** np.linspace(-3, 12, 200)
    ceiling = snr / LN2
    assert np.isinf(bandwidth_for(ceiling * (1 + 1e-12), snr)).all()
    assert np.isinf(bandwidth_for(ceiling * 1e6, snr)).all()
    assert np.isinf(bandwidth_for(np.inf, snr)).all()
    below = bandwidth_for(ceiling * (1 - 1e-9), snr)
    assert np.isfinite(below).all()
    assert (below > 1e8 * snr).all()
    assert (bandwidth_for(0.0, snr) == 0).all()


def test_near_the_ceiling_all_digits_are_there():
    gap = 10.0 ** np.arange(-6, 0)
    bands = bandwidth_for((1 - gap) / LN2, 1.0)
    z = np.array([brentq(lambda z, g=g: np.log1p(z) - (1 - g) * z, g, 1e3, xtol=1e-14, rtol=1e-14) for g in gap[2:]])
    assert np.abs(bands[2:] * z - 1).max() < 1e-9
    assert np.abs(rate(bands, 1.0) * LN2 / (1 - gap) - 1).max() < 1e-15


@pytest.mark.parametrize("cap", [np.inf, 5.5])
def test_the_slope_is_the_derivative(cap):
    snr = 1e6
    bands = 10 ** np.linspace(2.5, 8.5, 61)
    step = 1e-5 * bands
    numeric = (rate(bands + step, snr, cap) - rate(bands - step, snr, cap)) / (2 * step)
    error = slope(bands, snr, cap) / numeric - 1
    assert np.abs(error[np.log2(1 + snr / bands) < 5]).max() < 1e-4
    assert (np.diff(slope(bands, snr, cap)) <= 0).all()


def test_the_slope_keeps_its_digits_where_the_signal_is_weak():
    for z in (Fraction(1, 10**n) for n in (12, 9, 6, 4, 3)):
        exact = sum((-1) ** n * Fraction(n - 1, n) * z**n for n in range(2, 12))
        assert float(excess(np.array(float(z)))) == pytest.approx(float(exact), rel=1e-14)
    left, right = excess(np.array([0.01 * (1 - 1e-12), 0.01]))  # the series ends here
    assert right == pytest.approx(left, rel=1e-11)


def test_a_cap_is_a_floor_for_the_band():
    snr, cap = 1e9, 7.4
    bands = 10 ** np.linspace(3, 9, 200)
    capped = rate(bands, snr, cap)
    assert (capped <= rate(bands, snr)).all()
    assert (capped <= cap * bands).all()
    assert np.abs(bandwidth_for(capped, snr, cap) / bands - 1).max() < 1e-12
    assert np.isinf(bandwidth_for(snr / LN2 * 1.01, snr, cap))


def test_without_scipy_the_text_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(Missing, match=r"fedbonsai\[sim\]"):
        bandwidth_for(1e5, 1e6)
