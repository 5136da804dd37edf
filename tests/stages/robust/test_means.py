"""Robust means of a handful of numbers, worked out by hand, and what holds for all of them."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbonsai.stages.robust import Bounded, Geometric, Krum, MeanRule, Median, Trimmed, Votes


def votes(*rows, held=None):
    changes = [{"w": torch.tensor(row, dtype=torch.float32)} for row in rows]
    masks = [{"w": torch.tensor(row)} for row in held] if held else [{}] * len(rows)
    return Votes(changes, masks)


def decided(rule, *rows, held=None):
    return rule.decide(votes(*rows, held=held)).change["w"].tolist()


FIVE = ([1.0, 10.0], [2.0, 20.0], [3.0, 60.0], [4.0, 50.0], [1000.0, -7.0])


def test_the_median_of_each_coordinate():
    assert decided(Median(), *FIVE) == [3.0, 20.0]
    assert decided(Median(), *FIVE[:4]) == [2.5, 35.0]  # of an even number the two in the middle


def test_the_trimmed_mean_leaves_out_both_ends():
    assert decided(Trimmed(0.2), *FIVE) == [3.0, pytest.approx(80 / 3)]  # (2 + 3 + 4) / 3 and (10 + 20 + 50) / 3
    assert decided(Trimmed(0.4), *FIVE) == [3.0, 20.0]  # two of each end: the median of five


def test_a_norm_bound_shortens_and_keeps_the_direction():
    assert decided(Bounded(norm=5), [3.0, 4.0], [30.0, 40.0]) == [3.0, 4.0]
    assert decided(Bounded(norm=1), [3.0, 4.0], [0.6, 0.0]) == pytest.approx([0.6, 0.4])
    # norms 5, 1, 100: the median is 5, so (3, 4), (1, 0) and (-5, 0)
    assert decided(Bounded(), [3.0, 4.0], [1.0, 0.0], [-100.0, 0.0]) == pytest.approx([-1 / 3, 4 / 3])


def test_a_change_far_beyond_the_bound_is_refused():
    found = Bounded(refuse=10).refused(votes([3.0, 4.0], [1.0, 0.0], [-51.0, 0.0]))
    assert list(found) == [2]
    assert "norm 51, more than 50 (mean.refuse = 10)" in found[2]
    assert Bounded(refuse=11).refused(votes([3.0, 4.0], [1.0, 0.0], [-51.0, 0.0])) == {}


def test_krum_takes_the_change_whose_neighbours_are_near():
    # one of five may lie, so scores are of two neighbours: 0, 1, 3, 4.5, 100 -> 1 + 9, 1 + 4, 4 + 2.25, 2.25 + 12.25, ...
    rows = [[0.0], [1.0], [3.0], [4.5], [100.0]]
    assert decided(Krum(0.2), *rows) == [1.0]
    assert decided(Krum(0.2, keep=2), *rows) == [2.0]
    assert decided(Krum(0.2, keep=0), *rows) == pytest.approx([8.5 / 4])  # all but one
    assert Krum(0.2, keep=2).decide(votes(*rows)).shares == [0, 0.5, 0.5, 0, 0]


def test_the_geometric_median_of_the_corners_of_a_triangle():
    # an angle of 120 degrees or more: the corner itself; else the point that sees all sides under 120 degrees
    assert decided(Geometric(), [0.0, 0.0], [10.0, 1.0], [-10.0, 1.0]) == pytest.approx([0, 0], abs=1e-4)
    height = math.sqrt(3) / 2
    assert decided(Geometric(), [-0.5, 0.0], [0.5, 0.0], [0.0, height]) == pytest.approx([0, height / 3], abs=1e-6)
    assert decided(Geometric(), [1.0], [2.0], [3.0], [1e30], [2.5]) == pytest.approx([2.5], abs=1e-3)


HELD = ([True, True], [True, False], [True, False], [True, False], [True, True])


def test_a_coordinate_that_was_not_sent_has_no_vote():
    rows = ([1.0, 6.0], [2.0, 9e9], [3.0, 9e9], [4.0, 9e9], [5.0, 8.0])
    assert decided(Median(), *rows, held=HELD) == [3.0, 0.0]  # of two nobody is in the middle
    three = (*HELD[:3], [True, True], HELD[4])
    assert decided(Median(), *rows, held=three) == [3.0, 8.0]
    assert decided(Trimmed(0.2), *rows, held=HELD) == [3.0, 0.0]  # one from each end, and nobody is left
    assert decided(Trimmed(0.2), *rows, held=three) == [3.0, 8.0]
    assert decided(Bounded(norm=100), *rows, held=HELD) == [3.0, 7.0]
    norms = votes(*rows, held=HELD).norms()
    assert norms == pytest.approx([math.hypot(1, 6), 2, 3, 4, math.hypot(5, 8)])


def test_distances_are_over_what_two_hold_and_scaled_to_the_whole():
    found = votes([1.0, 6.0], [2.0, 9e9], [5.0, 9.0], held=([True, True], [True, False], [True, True])).squares()
    assert found.tolist() == [[0, 2, 25], [2, 0, 18], [25, 18, 0]]  # (1 - 2)^2 * 2, 16 + 9, 9 * 2
    apart = votes([1.0, 0.0], [0.0, 1.0], held=([True, False], [False, True])).squares()
    assert apart[0, 1] == math.inf


@pytest.mark.parametrize(
    ("rule", "devices", "text"),
    [
        (Median(), 2, "nobody is in the middle; ask at least 3"),
        (Geometric(), 2, "ask at least 3"),
        (Bounded(), 2, "set mean.norm"),
        (Trimmed(0.2), 4, "share = 0.2 of 4 devices is less than one, .* ask at least 5"),
        (Krum(0.4), 8, "of 8 devices 3 may lie .*, which takes 9 devices"),
        (Krum(0.2, keep=9), 10, "keep = 9 of 10 devices of which 2 may lie: expected at most 8"),
    ],
)
def test_too_few_devices(rule, devices, text):
    assert re.search(text, rule.fault(devices))


def test_enough_devices():
    for rule, devices in ((Median(), 3), (Bounded(norm=1), 1), (Bounded(), 3), (Trimmed(0.45), 10), (Krum(0.3), 10)):
        assert not rule.fault(devices)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: Trimmed(0.5), r"share = 0.5: expected a share in \(0, 0.5\)"),
        (lambda: Krum(0.2, keep=-1), "keep = -1"),
        (lambda: Bounded(norm=-1), "norm = -1"),
        (lambda: Bounded(refuse=0.5), "refuse = 0.5: expected 0, or at least 1"),
        (lambda: Geometric(smoothing=0), "smoothing = 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(made, text):
    with pytest.raises(ValueError, match=text):
        made()


RULES = [Median(), Trimmed(0.2), Trimmed(0.4), Bounded(), Bounded(norm=0.5), Krum(0.2), Krum(0.2, keep=0), Geometric()]
NUMBERS = st.floats(-100, 100, width=32)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@settings(max_examples=20)
@given(rows=st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=5, max_size=7), data=st.data())
def test_the_order_of_devices_changes_nothing(rule, rows, data):
    other = data.draw(st.permutations(rows))
    assert decided(rule, *other) == pytest.approx(decided(rule, *rows), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("rule", RULES[:4] + RULES[5:], ids=repr)
@settings(max_examples=20)
@given(row=st.lists(NUMBERS, min_size=3, max_size=3))
def test_where_all_say_the_same_that_is_the_mean(rule, row):
    assert decided(rule, *[row] * 5) == pytest.approx(row, rel=1e-5, abs=1e-6)


@settings(max_examples=20)
@given(rows=st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=3, max_size=7))
def test_a_bound_that_nobody_reaches_gives_the_plain_mean(rows):
    mean = torch.tensor(rows, dtype=torch.float64).mean(0)
    assert decided(Bounded(norm=1e6), *rows) == pytest.approx(mean.tolist(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("rule", [Median(), Trimmed(0.2), Krum(0.2), Geometric()], ids=repr)
@settings(max_examples=20)
@given(
    rows=st.lists(st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), min_size=4, max_size=4),
    lie=st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=3, max_size=3),
)
def test_one_liar_of_five_does_not_move_it_far(rule, rows, lie):
    reach = 2 * math.sqrt(3) if isinstance(rule, Krum | Geometric) else 1  # lengths are of whole changes
    assert all(abs(value) <= reach + 1e-3 for value in decided(rule, *rows, lie))


def test_every_rule_that_ships_has_a_case_here():
    assert {type(rule) for rule in RULES} == {made for name, made in MeanRule.choices.items() if name != "plain"}
