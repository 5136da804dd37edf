import tomllib

import numpy as np
import pytest

from fedbonsai.devices.channel import Cell
from fedbonsai.devices.figures import Figure, shipped
from fedbonsai.devices.link import Ask, Fixed, Shared, Trace, link, read
from fedbonsai.errors import ConfigError

ALL = Ask(("a", "b", "c", "d"), seed=3, round=2, same=True)


def figure(value):
    return Figure(value, "assumed", "test")


def trace(**more):
    given = {"times": (0.0, 10.0, 20.0), "down": (80.0, 0.0, 160.0), "up": (8.0, 8.0, 8.0), "period": 30.0}
    return Trace("t", "", **{**given, **more}, latency=figure(0.0), loss=figure(0.0), source="test")


@pytest.mark.parametrize("name", sorted(shipped("links")))
def test_shipped_links_carry_bytes_both_ways(name):
    found = link(name)
    assert found.name == name
    for way in ("down", "up"):
        assert 0 < found.seconds(way, 1000, 0.0, "a", ALL) < found.seconds(way, 100_000, 0.0, "a", ALL) < 1e5
        assert found.seconds(way, 0, 0.0, "a", ALL) == 0.0


def test_a_fixed_link_by_hand():
    fixed = Fixed("f", "", figure(8000.0), figure(1000.0), figure(0.5), figure(0.2))
    assert fixed.seconds("down", 1000, 7.0, "a", ALL) == pytest.approx(0.5 + 8000 / 8000 / 0.8)
    assert fixed.seconds("up", 1000, 7.0, "a", ALL) == pytest.approx(0.5 + 8000 / 1000 / 0.8)


def test_loss_is_what_sending_again_until_it_arrives_costs_in_the_mean():
    draws = np.random.default_rng(0).geometric(1 - 0.3, 200_000).mean()
    clean, lossy = (Fixed("f", "", figure(1e6), figure(1e6), figure(0.0), figure(p)) for p in (0.0, 0.3))
    ratio = lossy.seconds("up", 5000, 0.0, "a", ALL) / clean.seconds("up", 5000, 0.0, "a", ALL)
    assert ratio == pytest.approx(draws, rel=0.01)


@pytest.mark.parametrize(
    ("size", "start", "seconds"),
    [
        (50, 0.0, 5.0),  # 400 bits at 80
        (100, 0.0, 10.0),  # exactly the first stretch
        (120, 0.0, 21.0),  # through the stretch without a rate
        (100, 5.0, 17.5),  # 400 bits, the gap, 400 bits at 160
        (10, 12.0, 8.5),  # begins where there is no rate
        (300, 0.0, 30.0),  # exactly a period
        (310, 0.0, 31.0),
        (300, 60.0, 30.0),  # a later period
        (900, 25.0, 90.0),  # three periods from the middle of one
        (910, 25.0, 90.5),
    ],
)
def test_a_trace_by_hand(size, start, seconds):
    assert trace().seconds("down", size, start, "a", ALL) == pytest.approx(seconds)
    assert trace().seconds("up", size, start, "a", ALL) == pytest.approx(size)


def test_a_trace_is_the_integral_of_its_rates():
    random = np.random.default_rng(1)
    times = tuple(np.concatenate([[0.0], np.sort(random.uniform(1, 99, 8))]))
    rates = tuple(random.uniform(0, 100, 9) * (random.random(9) > 0.3) + 1e-3)
    made = trace(times=times, down=rates, up=rates, period=100.0)
    grid = np.arange(0, 1200, 0.01)
    per_cell = np.array(rates)[np.searchsorted(times, grid % 100.0, "right") - 1] * 0.01
    for start, size in zip(random.uniform(0, 300, 20), random.integers(1, 2000, 20), strict=True):
        bits = np.cumsum(per_cell[grid >= start])
        expected = np.searchsorted(bits, 8 * size) * 0.01
        assert made.seconds("down", int(size), float(start), "a", ALL) == pytest.approx(expected, abs=0.05)


def test_a_shared_cell_gives_granted_bands_or_equal_shares():
    cell = Cell()
    made = Shared("c", "", cell, figure(0.0))
    snr = cell.snr_bandwidth(3, ["b"], 2)
    equal = made.seconds("up", 10**5, 0.0, "b", ALL)
    assert equal == pytest.approx(8e5 / cell.rate(cell.bandwidth / 4, snr)[0])
    granted = Ask(ALL.devices, 3, 2, True, {"b": 5e6})
    assert made.seconds("up", 10**5, 0.0, "b", granted) == pytest.approx(8e5 / cell.rate(5e6, snr)[0])
    assert made.seconds("up", 10**5, 0.0, "b", granted) < equal
    whole = cell.snr_bandwidth(3, list(ALL.devices), 2)
    assert made.seconds("down", 10**5, 0.0, "b", ALL) == pytest.approx(8e5 / cell.broadcast_rate(whole))
    each = Ask(ALL.devices, 3, 2, False)
    assert made.seconds("down", 10**5, 0.0, "b", each) == pytest.approx(8e5 / cell.unicast_rates(whole)[1])
    assert made.seconds("up", 10**5, 0.0, "b", Ask(ALL.devices, 3, 3, True)) != equal  # fading of another round


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kind": "pigeon"}, "expected fixed, trace or cell"),
        ({"loss": {"value": 1.0, "mark": "assumed", "source": "x"}}, "loss.value"),
        ({"dwon": 1}, "there is no 'dwon'; did you mean 'down'"),
        (
            {"kind": "trace", "trace": {"times": [1], "down": [1], "up": [1], "period": [2], "source": "x"}},
            "rise from 0",
        ),
        ({"kind": "trace", "trace": {"times": [0], "down": [0], "up": [1], "period": [2], "source": "x"}}, "above 0"),
        ({"kind": "cell", "cell": {"radios": 3}}, "radios"),
        ({"kind": "cell", "cell": {"radius": -3.0}}, "radius"),
    ],
)
def test_faults_are_named(change, text):
    with pytest.raises(ConfigError, match=text):
        read(tomllib.loads(shipped("links")["lte"]) | change)
