"""specs/wireless check 7, and the reference cell of specs/wireless §5."""

import numpy as np
import pytest

from fedbonsai.devices.channel import Cell
from fedbonsai.errors import ConfigError
from fedbonsai.methods.wireless_pruning.allocation import Load, allocate, min_latency
from fedbonsai.methods.wireless_pruning.allocation.rate import rate
from tests.methods.wireless_pruning.cells import case, few_then_many


@pytest.mark.parametrize("cap", [np.inf, 6.0])
@few_then_many
def test_all_devices_end_at_once(cap, seeds):
    for seed in seeds:
        each = case(seed)
        kept = np.random.default_rng(seed).uniform(0.1, 1, len(each.load))
        seconds, bands = min_latency(each.load, each.snr, each.bandwidth, kept, cap=cap)
        latencies = each.load.seconds(kept, rate(bands, each.snr, cap))
        assert np.abs(latencies / seconds - 1).max() <= 1e-6
        assert bands.sum() == pytest.approx(each.bandwidth, rel=1e-9)


@pytest.mark.slow
@few_then_many
def test_pruning_any_device_shortens_the_round(seeds):
    for seed in seeds:
        each = case(seed)
        rng = np.random.default_rng(seed)
        kept = rng.uniform(0.2, 1, len(each.load))
        less = kept.copy()
        less[rng.integers(len(kept))] *= 0.9
        before, after = (min_latency(each.load, each.snr, each.bandwidth, part)[0] for part in (kept, less))
        assert after < before


@pytest.mark.slow
@few_then_many
def test_the_optimum_ends_at_the_deadline(seeds):
    for seed in seeds:
        each = case(seed)
        plan = allocate(*each.args)
        assert plan.multiplier > 0
        seconds, _ = min_latency(each.load, each.snr, each.bandwidth, 1 - plan.ratio)
        assert seconds == pytest.approx(each.deadline, rel=1e-9)


def test_who_has_nothing_to_send_gets_no_band():
    load = Load([1.0, 2.0], [1.0, 1.0], [0.0, 1e4], [0.0, 1e6])
    seconds, bands = min_latency(load, np.full(2, 1e6), 1e6)
    assert bands.tolist() == [0, 1e6]
    assert seconds == pytest.approx(3 + 1.01e6 / 1e6)
    nothing = Load([1.0, 2.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0])
    assert min_latency(nothing, np.full(2, 1e6), 1e6, 0.5)[0] == 2.5


def test_a_fraction_out_of_range_is_refused():
    each = case(0)
    with pytest.raises(ConfigError, match="kept"):
        min_latency(each.load, each.snr, each.bandwidth, 1.5)


def reference(cells, devices=10, prunable=1_658_240):
    """The heterogeneous cells of specs/wireless §5: q = 32, 320 samples a round, 20 cycles each, U[1, 3] GHz."""
    cell, ids = Cell(), [str(i) for i in range(devices)]
    for seed in range(cells):
        clock = np.random.default_rng(seed).uniform(1e9, 3e9, devices)
        zero = np.zeros(devices)
        load = Load(zero, 320 * 20 * prunable / clock, zero, np.full(devices, 32.0 * prunable))
        yield load, cell.snr_bandwidth(seed, ids, 0), cell.bandwidth


@pytest.mark.slow
def test_mean_ratios_of_the_reference_cells():
    published = {0.8: 0.07, 0.6: 0.20, 0.5: 0.28, 0.4: 0.38, 0.25: 0.55}
    ratios = {part: [] for part in published}
    longest = []
    for load, snr, bandwidth in reference(200):
        full, _ = min_latency(load, snr, bandwidth)
        longest.append(full)
        for part, mean in ratios.items():
            mean.append(allocate(load, snr, part * full, bandwidth).ratio.mean())
    assert np.median(longest) == pytest.approx(16.4, rel=0.15)
    for part, mean in ratios.items():
        assert np.mean(mean) == pytest.approx(published[part], abs=0.02)


@pytest.mark.slow
def test_half_the_latency_is_often_out_of_reach_where_pruning_saves_no_compute():
    infeasible = 0
    for load, snr, bandwidth in reference(200):
        full, _ = min_latency(load, snr, bandwidth)
        fixed = Load(load.b, np.zeros(len(load)), load.s0, load.s1)
        infeasible += not allocate(fixed, snr, full / 2, bandwidth).feasible
    assert infeasible == pytest.approx(124, abs=30)
