import numpy as np
import pytest

from fedbonsai.devices.channel import Cell, rate
from fedbonsai.errors import ConfigError

IDS = [str(i) for i in range(2000)]


def decibels(value):
    return 10 * np.log10(value)


def test_the_link_budget_by_hand():
    # 23 dBm over 1 Hz of -174 dBm, 128.1 + 37.6 log10(0.2) dB away
    cell = Cell(radius=200, nearest=200, shadowing=0, fading="none")
    expected = 23 + 174 - (128.1 + 37.6 * np.log10(0.2))
    assert decibels(cell.snr_bandwidth(0, ["a"], 0)) == pytest.approx([expected])
    noisy = Cell(radius=200, nearest=200, shadowing=0, fading="none", noise_figure=9, gap=3)
    assert decibels(noisy.snr_bandwidth(0, ["a"], 0)) == pytest.approx([expected - 12])
    micro = Cell(radius=200, nearest=200, shadowing=0, fading="none", path_loss="micro", carrier=3.5)
    loss = 32.4 + 21 * np.log10(200) + 20 * np.log10(3.5)
    assert decibels(micro.snr_bandwidth(0, ["a"], 0)) == pytest.approx([197 - loss])


def test_devices_stand_uniformly_in_the_disc():
    metres = Cell().distance(3, IDS)
    assert metres.min() >= 35
    assert metres.max() <= 500
    area = (metres**2 - 35**2) / (500**2 - 35**2)  # uniform in [0, 1]
    assert np.abs(np.sort(area) - (np.arange(2000) + 0.5) / 2000).max() < 1.63 / 2000**0.5


def test_shadow_and_fading_have_their_distributions():
    flat, shadowed = Cell(shadowing=0), Cell()
    shadow = decibels(shadowed.mean_snr_bandwidth(1, IDS)) - decibels(flat.mean_snr_bandwidth(1, IDS))
    assert shadow.std() == pytest.approx(8, rel=0.06)
    assert abs(shadow.mean()) < 0.7
    fading = flat.snr_bandwidth(1, IDS, 4) / flat.mean_snr_bandwidth(1, IDS)
    assert np.abs(np.sort(-np.expm1(-fading)) - (np.arange(2000) + 0.5) / 2000).max() < 1.63 / 2000**0.5


def test_places_stay_and_fading_is_drawn_each_round():
    cell = Cell()
    first, again, next_round = (cell.snr_bandwidth(0, IDS[:20], t) for t in (0, 0, 1))
    assert (first == again).all()
    assert (first != next_round).all()
    assert (first != cell.snr_bandwidth(1, IDS[:20], 0)).all()
    assert (cell.distance(0, IDS[:20]) == Cell(fading="none").distance(0, IDS[:20])).all()


def test_a_device_is_heard_alike_whoever_else_there_is():
    cell = Cell()
    whole = cell.snr_bandwidth(5, IDS[:10], 2)
    assert (cell.snr_bandwidth(5, IDS[7:2:-1], 2) == whole[7:2:-1]).all()


@pytest.mark.slow
def test_what_the_server_predicts():
    cell, ids = Cell(), IDS
    true = cell.snr_bandwidth(0, ids, 6)
    assert (cell.predicted(0, ids, 6, "true") == true).all()
    assert (cell.predicted(0, ids, 7, "last", margin=0.25) == 0.25 * true).all()
    assert (cell.predicted(0, ids, 6, "mean") == cell.mean_snr_bandwidth(0, ids)).all()
    assert np.mean(true < cell.predicted(0, ids, 6)) == pytest.approx(0.1, abs=0.02)
    assert np.mean(true < cell.predicted(0, ids, 6, quantile=0.5)) == pytest.approx(0.5, abs=0.04)
    still = Cell(fading="none")
    assert (still.predicted(0, ids, 6) == still.snr_bandwidth(0, ids, 6)).all()


def test_the_rate_and_its_cap():
    assert rate(1e6, 3e6) == pytest.approx(2e6)
    assert rate(1e6, 1e9, cap=5.5) == 5.5e6
    assert rate(0.0, 1e9) == 0
    assert Cell(cap=1.0).rate(np.array([1e6]), np.array([3e6])) == pytest.approx([1e6])
    assert rate(1e12, 3e6) < 3e6 / np.log(2)


def test_the_way_down():
    cell = Cell()
    snr = np.array([1e7, 4e6, 9e6])
    louder = 10 ** ((46 - 23) / 10)
    assert cell.broadcast_rate(snr) == pytest.approx(10e6 * np.log2(1 + 4e6 * louder / 10e6))
    each = cell.unicast_rates(snr)
    assert each == pytest.approx(10e6 / 3 * np.log2(1 + snr * louder / 10e6))  # power and noise fall alike


@pytest.mark.parametrize("wrong", [{"nearest": 0}, {"nearest": 600}, {"shadowing": -1}, {"cap": 0}, {"bandwidth": 0}])
def test_cells_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Cell(**wrong)


def test_predictions_that_cannot_be():
    with pytest.raises(ConfigError, match="quantile"):
        Cell().predicted(0, ["a"], 0, quantile=1.0)
