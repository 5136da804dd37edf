import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedbonsai import tree
from fedbonsai.tree import Mean

FLOATS = st.floats(-1e3, 1e3, width=32)


def test_mean_by_hand():
    mean = Mean()
    mean.add({"w": torch.tensor([1.0, 2.0]), "n": torch.tensor([1, 4])}, 1)
    mean.add({"w": torch.tensor([4.0, -1.0]), "n": torch.tensor([2, 8])}, 2)
    result = mean.result()
    assert torch.equal(result["w"], torch.tensor([3.0, 0.0]))
    assert torch.equal(result["n"], torch.tensor([2, 7]))
    assert result["n"].dtype == torch.int64


def test_mean_of_one_is_that_one_bit_for_bit_at_weight_one():
    value = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    mean = Mean()
    mean.add({"w": value}, 1)
    assert torch.equal(mean.result()["w"], value)


@pytest.mark.slow
@given(st.lists(st.tuples(FLOATS, st.integers(1, 1000)), min_size=1, max_size=20))
def test_mean_is_the_weighted_mean(pairs):
    mean = Mean()
    for value, weight in pairs:
        mean.add({"w": torch.tensor([value], dtype=torch.float64)}, weight)
    want = math.fsum(v * w for v, w in pairs) / sum(w for _, w in pairs)
    assert float(mean.result()["w"]) == pytest.approx(want, abs=1e-9)


def test_sixteen_bit_trees_accumulate_in_float32():
    mean = Mean()
    for _ in range(4096):
        mean.add({"w": torch.ones(1, dtype=torch.float16)}, 1)
    assert mean.result()["w"] == torch.ones(1, dtype=torch.float16)


def test_mean_never_writes_into_what_it_is_given():
    value = {"w": torch.ones(3)}
    mean = Mean()
    mean.add(value, 1)
    mean.add({"w": torch.zeros(3)}, 1)
    assert torch.equal(value["w"], torch.ones(3))


def test_mean_refuses_what_has_no_meaning():
    with pytest.raises(ValueError, match="mean of nothing"):
        Mean().result()
    mean = Mean()
    with pytest.raises(ValueError, match="weight"):
        mean.add({}, float("nan"))
    mean.add({"a": torch.ones(1)}, 0)
    with pytest.raises(ValueError, match="positive"):
        mean.result()
    with pytest.raises(ValueError, match="differ"):
        mean.add({"b": torch.ones(1)}, 1)


def test_arithmetic():
    a, b = {"w": torch.tensor([3.0, 4.0]), "n": torch.tensor(2)}, {"w": torch.tensor([1.0, 1.0]), "n": torch.tensor(1)}
    assert tree.subtract(a, b)["w"].tolist() == [2, 3]
    assert list(tree.subtract(a, b)) == ["w"]
    assert tree.add(a, {"w": torch.ones(2)}, -1)["w"].tolist() == [2, 3]
    assert tree.norm({"w": a["w"]}) == 5
    assert tree.size(a) == 3
    assert tree.finite(a)
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not tree.finite({"v": torch.ones(2), "w": torch.tensor([1.0, bad])})
    assert not tree.finite({"w": torch.tensor([float("inf"), -float("inf")])})
    assert tree.finite({"w": torch.full((4,), 3e38), "h": torch.full((4,), 6e4, dtype=torch.float16)})  # sums are not
    assert tree.finite({"w": torch.empty(0)})


def test_tensors_are_found_in_order_wherever_they_lie():
    @dataclass
    class Held:
        one: torch.Tensor
        name: str
        more: object

    a, b, c, d = (torch.tensor(i) for i in range(4))
    found = list(tree.tensors(Held(a, "x", {"l": [b, (c, None, 1.0)], "n": Held(d, "", ())})))
    assert all(one is other for one, other in zip(found, (a, b, c, d), strict=True))
    assert list(tree.tensors("text")) == list(tree.tensors(None)) == []


def test_seeds_are_stable_across_versions_and_spread():
    assert tree.seed_of(0, "7", 3, 0) == 8317923416637967688
    many = {
        tree.seed_of(s, c, r, a) for s in range(5) for c in ("0", "1", "10") for r in range(-1, 5) for a in range(4)
    }
    assert len(many) == 5 * 3 * 6 * 4
