"""The online search by hand, and a round's cost against the number that tells the authors' fault apart."""

import math
from dataclasses import replace

import pytest

from fedbonsai.methods.online.rounds import Search, seconds_of
from fedbonsai.stages.pruning.time_model import TABLES, Table

START = Search.begin(10_000, 4, 0.002)


def test_it_begins_with_all_weights_and_a_probe_of_nine_tenths():
    assert (START.k, START.probe, START.bounds) == (10_000, 9_000, (20, 10_000))
    assert Search.begin(15, 3, 0.002).bounds == (4, 15)  # the probe, too, leaves a weight to each layer
    assert Search.begin(15, 3, 0.002).probe == 14  # ceil(13.5)
    assert START.step(10) == pytest.approx(9_980 / math.sqrt(20))


def test_a_round_costs_what_the_size_says_and_not_what_the_mask_left():
    held = TABLES["conv2"]
    sizes = dict(zip("abcd", held.weights, strict=True))
    times = Table("conv2").of_sizes(sizes, 5)
    n = sum(sizes.values())
    assert seconds_of(times, sizes, n) == pytest.approx(51.081, abs=2e-3)
    # specs/prunefl §7 item 8: k = n / 2; evaluated on the network that is cut to 0.45 n it would be 16.3 s
    assert seconds_of(times, sizes, n // 2) == pytest.approx(28.7, abs=0.05)
    faulty = times.constant + 0.45 * (seconds_of(times, sizes, n // 2) - times.constant)
    assert faulty == pytest.approx(16.3, abs=0.05)


@pytest.mark.parametrize(
    ("losses", "sign"),
    [  # T(k) = 10, T(k') = 9.5: the probe is worth it if it loses less than a twentieth of the progress
        ((2.0, 1.0, 1.01), -1),  # 9.5 / 0.99 = 9.596 < 10: fewer weights cost less
        ((2.0, 1.0, 1.2), 1),  # 9.5 / 0.8 = 11.875 > 10: more
        ((2.0, 1.0, 0.9), -1),  # the probe is even better
    ],
)
def test_the_step_goes_against_the_sign_of_the_derivative(losses, sign):
    middle = replace(START, k=5_000, probe=4_500)
    found = middle.after(50, *losses, (10.0, 9.5), 1)
    eta = 9_980 / math.sqrt(2 * 50)
    assert abs(found.k - (5_000 + sign * eta)) < 1  # rounded up or down at random
    assert found.probe == round(found.k - eta / 2)
    assert (found.updates, found.holds, found.seen) == (1, 0, (found.k, found.k))


def test_rounding_is_random_and_right_in_the_mean():
    middle = replace(START, k=5_000, probe=4_500)
    ks = [middle.after(55, 2.0, 1.0, 1.01, (10.0, 9.5), seed).k for seed in range(400)]
    want = 5_000 - 9_980 / math.sqrt(110)
    assert set(ks) == {math.floor(want), math.ceil(want)}
    assert sum(ks) / len(ks) == pytest.approx(want, abs=0.1)


def test_without_progress_k_is_held_and_grows_the_eleventh_time():
    state = replace(START, k=5_000, probe=4_500)
    for t in range(100, 110):
        state = state.after(t, 1.0, 1.0, 0.9, (10.0, 9.5), 1)
        assert (state.k, state.holds, state.updates) == (5_000, t - 99, 0)
    state = state.after(110, 1.0, 0.9, 1.0, (10.0, 9.5), 1)  # progress, but none of the probe
    assert abs(state.k - (5_000 + 9_980 / math.sqrt(220))) < 1
    assert state.holds == 0


def test_k_stays_in_the_interval_and_the_probe_below_it():
    up = START.after(10, 2.0, 1.0, 1.9, (10.0, 9.5), 1)
    assert up.k == 10_000
    down = replace(START, k=100, probe=50).after(10, 2.0, 1.0, 1.0, (10.0, 9.5), 1)
    assert (down.k, down.probe) == (20, 4)  # one weight for each of the four layers, more than a tenth of the bound


def test_the_interval_closes_in_on_what_was_seen_after_twenty_updates():
    late = replace(START, k=1_000, probe=900, updates=19, seen=(900, 1_200), period=30)
    found = late.narrowed(29)
    assert (found.low, found.high, found.reference, found.updates) == (20, 10_000, 0, 0)  # shorter than the one before
    found = late.narrowed(30)
    assert (found.low, found.high, found.reference, found.period) == (600, 1_800, 30, 30)
    assert found.step(32) == 1_200 / 2
    again = replace(found, seen=(900, 1_200), updates=20).narrowed(100)
    assert (again.low, again.high) == (600, 1_800)  # no narrower than by a factor of 2.4: it stays
    wide = replace(late, seen=(3_000, 9_000)).narrowed(30)
    assert (wide.low, wide.high) == (20, 10_000)
    seen = replace(START, k=5_000, probe=4_500, updates=19, seen=(4_000, 5_000), reference=0)
    found = seen.after(500, 2.0, 1.0, 1.01, (10.0, 9.5), 1)
    assert (found.updates, found.low, found.high) == (0, 20, 10_000)  # 2,666 to 7,500 is 0.48 of the width
