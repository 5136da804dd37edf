"""FedDST's readjustment by hand, its counts, and the mean over those that keep a coordinate."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbonsai.stages.pruning.masks import density
from fedbonsai.stages.pruning.readjust import MaskedMean, Readjustment, changed, cut_back, readjusted


def bits(text):
    return torch.tensor([digit == "1" for digit in text])


def test_a_step_by_hand():
    weights = {"w": torch.tensor([0.5, -0.1, 0.0, 0.3, 0.0, -0.05, 0.0, 0.8]), "b": torch.ones(2)}
    masks = {"w": bits("11010101")}  # five active
    gradients = {"w": torch.tensor([9.0, 9.0, -0.4, 9.0, 0.1, 0.2, 0.3, 9.0])}
    # floor(0.4 * 5) = 2 go: places 5 (0.05) and 1 (0.1); then among 1, 2, 4, 5, 6 the gradients 9 and -0.4 are largest
    new, now = readjusted(weights, masks, gradients, 0.4)
    assert now["w"].tolist() == bits("11110001").tolist()
    assert new["w"].tolist() == pytest.approx(
        [0.5, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0, 0.8]
    )  # what comes begins at 0, place 1 too
    assert new["b"] is weights["b"]
    assert changed(masks, now) == 2  # place 5 for place 2
    assert readjusted(weights, masks, gradients, 0.19)[1]["w"].tolist() == masks["w"].tolist()  # floor(0.95) = 0


@settings(max_examples=60)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_every_layer_keeps_its_count_exactly(fraction, share, seed):
    random = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=random) for name, shape in (("a", (6, 5)), ("c", (3, 2, 3, 3)))}
    masks = {name: torch.rand(value.shape, generator=random) < share for name, value in weights.items()}
    weights = {name: value * masks[name] for name, value in weights.items()}
    gradients = {name: torch.randn(value.shape, generator=random) for name, value in weights.items()}
    new, now = readjusted(weights, masks, gradients, fraction)
    for name, mask in masks.items():
        active = int(mask.sum())
        assert int(now[name].sum()) == active
        assert not new[name][~now[name]].any()
        traded = min(int(fraction * active), mask.numel() - active)
        assert int((new[name] != 0).sum()) == active - traded


@pytest.mark.parametrize(
    ("interval", "stop", "rounds"), [(10, 100, range(10, 100, 10)), (3, 15, (3, 6, 9, 12)), (20, 20, ())]
)
def test_rounds_that_readjust_and_how_much(interval, stop, rounds):
    how = Readjustment(interval, stop, 0.3)
    found = {t: how.fraction(t) for t in range(2 * stop) if how.fraction(t)}
    assert list(found) == list(rounds)
    assert all(value == pytest.approx(0.15 * (1 + math.cos(math.pi * t / stop))) for t, value in found.items())


def test_the_mean_is_over_those_that_keep_a_coordinate():
    mean = MaskedMean()
    mean.add({"w": torch.tensor([1.0, 0.0, 4.0, 0.0]), "b": torch.tensor([1.0])}, {"w": bits("1010")}, 3)
    mean.add({"w": torch.tensor([5.0, 2.0, 0.0, 0.0]), "b": torch.tensor([5.0])}, {"w": bits("1100")}, 1)
    found = mean.result({"w": torch.tensor([9.0, 9.0, 9.0, 7.0]), "b": torch.zeros(1)})
    assert found["w"].tolist() == [2, 2, 4, 7]  # (3 + 5) / 4, one alone, one alone, nobody: as it was
    assert found["b"].tolist() == [2]
    assert found["w"].dtype == torch.float32
    assert mean.weight == 4


def test_each_layer_is_cut_back_to_its_largest():
    weights = {"w": torch.tensor([3.0, -4.0, 1.0, 2.0]), "b": torch.ones(1)}
    new, masks = cut_back(weights, {"w": bits("1100")})
    assert new["w"].tolist() == [3, -4, 0, 0]
    new, masks = cut_back({"w": torch.tensor([0.0, -4.0, 1.0, 2.0])}, {"w": bits("1100")})
    assert masks["w"].tolist() == bits("0101").tolist()
    assert density(masks) == 0.5


def test_values_that_cannot_be_meant_are_refused():
    for values in ((0, 1, 0.1), (1, 0, 0.1), (1, 1, 1.1)):
        with pytest.raises(ValueError, match="expected"):
            Readjustment(*values)
