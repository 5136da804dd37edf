"""specs/prunefl §8.13: the authors' bytes by formula; and ours in seconds beside theirs."""

import math

import pytest
import torch

from fedbonsai.methods.prunefl.accounts import Accounts, beside, positions, prototype
from fedbonsai.stages.pruning.time_model import Seconds


def exactly(kept, rows=2048, columns=3136):
    mask = torch.zeros(rows * columns, dtype=torch.bool)
    mask[:kept] = True
    return mask.reshape(rows, columns)


def test_sizes_of_the_papers_messages():  # specs/prunefl §8.13
    whole, s, kept = 2048 * 3136, 2206, 900_000
    weights, masks = {"w": torch.zeros(2048, 3136), "b": torch.zeros(s)}, {"w": exactly(kept)}
    assert prototype(weights, masks, 1, 0, 1, False) == (4 * kept + 4 * s,) * 2
    assert prototype(weights, masks, 1, 0, 1, True)[1] == 4 * whole + 4 * s
    assert prototype(weights, masks, 10, 3, 8, False) == (10 * 4 * (kept + s) + 3 * whole // 8, 8 * 4 * (kept + s))
    assert positions(exactly(whole // 32)) == whole // 8  # 1/32 is a bitmap
    assert positions(exactly(whole // 32 - 1)) == 4 * (whole // 32 - 1)  # with its value 8 bytes a weight
    assert 4 * (whole // 32) + positions(exactly(whole // 32)) == 8 * (whole // 32)  # where they break even
    assert positions(exactly(9, 10, 9)) == 10 * 2  # rows are padded to a byte
    assert positions(exactly(1, 256, 200)) == 2  # one byte for each of row and column
    assert positions(exactly(1, 40_000, 2)) == 8  # too many for int16


@pytest.mark.parametrize(
    ("density", "measured"), [(0.010, 514_068), (0.0314, 1_610_512), (0.134, 4_247_984), (0.50, 13_642_692)]
)
def test_sizes_measured_with_the_authors_code(density, measured):  # specs/prunefl §8.13
    # their masks were drawn, so the count is known to a few standard deviations; 1 kB is for their framing
    whole = 2048 * 3136
    kept = round(density * whole)
    each = 8 if density < 1 / 32 else 4
    found = 4 * kept + positions(exactly(kept))
    assert abs(found - measured) < 1000 + 3 * each * math.sqrt(whole * density * (1 - density))


MASKS = {"w": torch.tensor([[True, False], [True, True]])}
WEIGHTS = {"w": torch.zeros(2, 2), "b": torch.zeros(5)}
TIMES = Seconds(0.8, 2.0, 0.0, {"w": 0.0}, 5, 2.0)  # a byte takes 0.1 s, a step 2 s


def test_the_initial_pruning_is_in_our_seconds_and_not_in_theirs():
    began = Accounts.began(WEIGHTS, MASKS, TIMES, 100.0, True)
    # down and up 9 values each, stored values of 4 weights, 4 bits of the mask: 72 + 16 + 0.5 bytes
    assert (began.scouted, began.seconds, began.whole) == (100, 0, pytest.approx(100 + 8.85))
    assert Accounts.began(WEIGHTS, MASKS, TIMES, 100.0, False).whole == pytest.approx(100 + 7.25)


def test_seconds_of_a_round_in_both_accounts():
    assert beside(WEIGHTS, MASKS, True, 1) == 5 * 8 + 4 + 0.5
    known = Accounts(whole=7.0).after(WEIGHTS, MASKS, TIMES, 4, 0, 3, None)
    assert known.seconds == pytest.approx(10 + 3 * 0.8)
    assert known.whole == pytest.approx(7 + 10 + 2.4 + 4.0)
    assert known.bytes == (4 * 4 * 8, 3 * 4 * 8)
    more = known.after(WEIGHTS, MASKS, TIMES, 4, 1, 3, 1)
    assert more.seconds == pytest.approx(2 * 12.4)
    assert more.whole == pytest.approx(known.whole + 12.4 + 4.45)
    assert more.bytes == (4 * 32 + 2, 3 * (32 + 4))
