"""When, where and how much is traded, against the numbers of specs/fedtiny §2.3 and check 1."""

import pytest
import torch

from fedbonsai.methods.fedtiny.growth import Growth


def test_fractions_of_the_schedule():
    growth = Growth()
    found = [round(growth.fraction(r), 4) for r in range(10, 101, 10)]
    assert found == [0.2927, 0.2714, 0.2382, 0.1964, 0.15, 0.1036, 0.0618, 0.0286, 0.0073, 0.0]
    masks = {f"l{k}": torch.arange(1000) < 500 for k in range(5)}
    assert [r for r in range(200) if growth.due(r)] == list(range(10, 101, 10))
    assert [r for r in range(200) if growth.counts(r, masks)] == list(range(10, 91, 10))  # the tenth trades nothing
    assert all(growth.counts(r, masks) == {} for r in range(100, 300))
    dense = {"w": torch.ones(10, dtype=torch.bool)}
    assert growth.counts(10, dense) == {}  # nothing is pruned, so nothing can grow
    nearly = {"w": torch.arange(10) < 9}
    assert growth.counts(10, nearly) == {"w": 1}


def test_units_go_from_the_output_to_the_input_and_round_again():
    names = [f"l{k}" for k in range(1, 8)]
    growth = Growth()
    assert growth.groups(names) == [("l1", "l2"), ("l3", "l4"), ("l5",), ("l6",), ("l7",)]
    five = [f"b{k}" for k in range(1, 6)]
    assert [growth.unit(r, five) for r in range(10, 71, 10)] == [(f"b{k}",) for k in (5, 4, 3, 2, 1, 5, 4)]
    assert [Growth(direction="forward").unit(r, five) for r in (10, 20, 60)] == [("b1",), ("b2",), ("b1",)]
    assert Growth(units="entire").unit(10, names) == tuple(names)
    assert Growth(units="layer").groups(names) == [(name,) for name in names]
    assert Growth().groups(["only", "two"]) == [("only",), ("two",)]


@pytest.mark.parametrize("wrong", [{"interval": 0}, {"stop": 0}, {"blocks": 0}, {"batch": 0}, {"share": 1.5}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Growth(**wrong)
