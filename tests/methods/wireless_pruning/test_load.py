"""What a round costs: the worked numbers of the reference cell, by hand, by a profile and by measurements."""

from dataclasses import replace

import numpy as np
import pytest

from fedbonsai.arch import Arch
from fedbonsai.devices.channel import Cell
from fedbonsai.devices.clock import compute_seconds
from fedbonsai.devices.profile import Curve, profile
from fedbonsai.errors import ConfigError
from fedbonsai.methods.wireless_pruning import load as wireless_load
from fedbonsai.methods.wireless_pruning.allocation import allocate, min_latency
from fedbonsai.methods.wireless_pruning.load import Cycles, Measured, Parts, Passes, Profiled, fitted, load_of
from fedbonsai.model import Model
from fedbonsai.work import Episode

MNIST = Model.init(Arch("cnn-mnist"), 0)
PARTS = Parts.of(MNIST, (1, 28, 28), ["head"])
IDS = [f"{k}" for k in range(10)]
BIASES = 32 + 64 + 512


def one(value):
    return np.array([float(value)])


def test_the_parts_of_cnn_mnist():
    assert PARTS.count(PARTS.prunable) == 832 + 51_264 + 1_606_144 - BIASES
    assert PARTS.count(PARTS.fixed) == BIASES
    assert PARTS.count(PARTS.personal) == 5_130
    assert PARTS.personal == ("classifier.weight", "classifier.bias")


def test_cycles_by_hand():
    """specs/wireless §2.2: c_F in the personal phase, c_F + c_B in the shared one, where the head needs no gradient."""
    cycles = Cycles(forward=2.0, backward=4.0, slowest=10.0, fastest=10.0)
    a, b = cycles.seconds(PARTS, Passes(one(3), one(5)), 1, ["x"], 0)
    pruned, fixed = PARTS.count(PARTS.prunable), BIASES
    assert b[0] == pytest.approx((3 * 2 + 5 * 6) * pruned / 10)
    assert a[0] == pytest.approx(((3 * 2 + 5 * 6) * fixed + (3 * 6 + 5 * 4) * 5_130) / 10)
    a, b = cycles.seconds(PARTS, Passes(one(0), one(5), joint=True), 1, ["x"], 0)
    assert (a[0], b[0]) == (pytest.approx(5 * 6 * (fixed + 5_130) / 10), pytest.approx(5 * 6 * pruned / 10))
    level = replace(cycles, prunes=False).seconds(PARTS, Passes(one(0), one(5), joint=True), 1, ["x"], 0)
    assert level[0][0] == pytest.approx(a[0] + b[0])
    assert level[1][0] == 0
    often = replace(cycles, reuse=True).seconds(PARTS, Passes(one(0), one(5), joint=True), 1, ["x"], 0)
    assert often[1][0] == pytest.approx(5 * 6 * (800 * 28**2 + 51_200 * 14**2 + 1_605_632) / 10)


def test_bits_and_broadcast():
    cell, snr = Cell(), np.array([1e7, 3e6])
    load = load_of((np.zeros(2), np.ones(2)), PARTS, 32, False, cell, snr, "broadcast")
    pruned = PARTS.count(PARTS.prunable)
    assert load.s1.tolist() == [32 * pruned] * 2
    assert load.s0.tolist() == [32 * BIASES] * 2
    rate = 10e6 * np.log2(1 + 3e6 * 10**2.3 / 10e6)  # the station has 23 dB more power; the worst of both
    assert load.a == pytest.approx([32 * (pruned + BIASES) / rate] * 2)
    bitmap = load_of((np.zeros(2), np.ones(2)), PARTS, 8, True, cell, snr, "none")
    assert bitmap.s0.tolist() == [8 * BIASES + pruned] * 2
    assert bitmap.a.tolist() == [0, 0]


def cells(count, prunes=True):
    """The reference cells of specs/wireless §5: 10 devices, 320 samples a round, 20 cycles, no downlink."""
    work = Passes(np.zeros(10), np.full(10, 320.0), joint=True)
    for seed in range(count):
        seconds = Cycles(prunes=prunes).seconds(PARTS, work, 32, IDS, seed)
        snr = Cell().snr_bandwidth(seed, IDS, 0)
        load = load_of(seconds, PARTS, 32, False, Cell(), snr, "none")
        yield load, snr, min_latency(load, snr, 10e6)[0]


@pytest.mark.slow
def test_the_reference_cell_takes_what_the_specification_says():
    """specs/wireless §5: median T_full 16.4 s of which compute about 5.9 s; mean optimal ratio 0.28 at half of it."""
    full, compute, ratios = [], [], []
    for load, snr, seconds in cells(200):
        full.append(seconds)
        compute.append((load.a + load.b).mean())
        ratios.append(allocate(load, snr, 0.5 * seconds, 10e6).ratio.mean())
    assert np.median(full) == pytest.approx(16.4, rel=0.05)  # the draws are not the specification's
    assert np.mean(compute) == pytest.approx(5.9, rel=0.02)
    assert np.mean(ratios) == pytest.approx(0.28, abs=0.02)


@pytest.mark.slow
def test_without_compute_savings_half_the_time_is_out_of_reach_in_most_cells():
    """specs/wireless §5: infeasible in 124 of 200 cells."""
    found = [allocate(load, snr, 0.5 * seconds, 10e6).feasible for load, snr, seconds in cells(200, prunes=False)]
    assert found.count(False) == pytest.approx(124, abs=10)


def test_frequencies_are_drawn_once_for_each_device():
    f = Cycles().frequency(IDS, 3)
    assert ((f >= 1e9) & (f <= 3e9)).all()
    assert len(set(f)) == 10
    assert Cycles().frequency(IDS[4:6], 3).tolist() == f[4:6].tolist()


def test_a_profile_gives_its_own_seconds():
    sheet = profile("raspberry-pi-4")
    work = Passes(np.array([64.0, 0.0]), np.array([64.0, 32.0]))
    a, b = Profiled("raspberry-pi-4").seconds(PARTS, work, 32, ["x", "y"], 0)
    shapes = {name: tuple(value.shape) for name, value in MNIST.weights.items()}
    whole = Episode(MNIST.arch, shapes, (1, 28, 28), backward=128, passes=4, steps=4, batch=32)
    assert a[0] == pytest.approx(compute_seconds(sheet, [whole]))
    assert a[1] == pytest.approx(a[0] / 4)
    assert b.tolist() == [0, 0]  # dense kernels: a mask saves nothing


def test_a_profile_whose_masks_save_time_shares_it_out(monkeypatch):
    """At equal kept fractions of all layers a + b x is the profile's own time."""
    sheet = replace(profile("raspberry-pi-4"), masked=Curve("assumed", "sparse kernels", 0.2, 0.8))
    monkeypatch.setattr(wireless_load, "profile", lambda name: sheet)
    a, b = Profiled().seconds(PARTS, Passes(np.zeros(1), np.full(1, 64.0)), 32, ["x"], 0)
    shapes = {name: tuple(value.shape) for name, value in MNIST.weights.items()}
    for x in (1.0, 0.6, 0.3):
        kept = dict.fromkeys(PARTS.prunable, x)
        episode = Episode(MNIST.arch, shapes, (1, 28, 28), kept, backward=64, passes=2, steps=2, batch=32)
        assert a[0] + b[0] * x == pytest.approx(compute_seconds(sheet, [episode]), rel=1e-4)  # it rounds its macs


def test_measurements_are_fitted_or_refused():
    kept = (0.1, 0.25, 0.5, 0.75, 1.0)
    a, b = fitted(kept, [2 + 3 * x for x in kept])
    assert (a, b) == (pytest.approx(2), pytest.approx(3))
    assert fitted(kept, [2.0, 2.01, 1.99, 2.0, 2.0]) == (pytest.approx(2.0), 0.0)
    for times in ([3, 2, 1, 2, 3], [5, 4, 3, 2, 1], [1.0, 2.0], [0, 1, 2, 3, 4]):
        with pytest.raises(ConfigError, match="compute"):
            fitted(kept, times)
    seconds = Measured(kept, tuple(2 + 3 * x for x in kept)).seconds(PARTS, Passes(one(1), one(1)), 1, ["x"], 0)
    assert seconds[0] == pytest.approx([2])
    assert seconds[1] == pytest.approx([3])
    with pytest.raises(ValueError, match="slowest"):
        Cycles(slowest=0)
