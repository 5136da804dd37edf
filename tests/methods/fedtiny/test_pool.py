"""Sizes and densities of the pool of candidates against the numbers of specs/fedtiny §1.1 and check 11."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbonsai.errors import ConfigError
from fedbonsai.methods.fedtiny.method import FedTiny, whole
from fedbonsai.methods.fedtiny.pool import pool, pool_size
from fedbonsai.model import Model
from tests.methods.fedtiny.pools import CNN, NAMES, drawn


def test_sizes_of_the_pool():
    densities = (0.1, 0.05, 0.02, 0.01, 0.005, 0.001, 1.0)
    assert [pool_size(density) for density in densities] == [1, 2, 5, 10, 20, 100, 1]


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 1), st.integers(1, 8), st.floats(0, 1), st.integers(0, 99))
def test_candidates_keep_exactly_the_budget_and_differ(density, count, noise, seed):
    forms = {"a": torch.zeros(16, 9), "b": torch.zeros(32, 16, 3, 3), "c": torch.zeros(10, 32)}
    total = sum(value.numel() for value in forms.values())
    budget = max(3, int(density * total))
    found = pool(forms, budget, count, noise, seed)
    assert 1 <= len(found) <= count
    assert all(each != other for k, each in enumerate(found) for other in found[:k])
    for each in found:
        assert sum(each.values()) == budget
        assert all(1 <= each[name] <= forms[name].numel() for name in forms)
    assert pool(forms, budget, count, noise, seed) == found
    uniform = {name: density * value.numel() for name, value in forms.items()}
    assert all(abs(found[0][name] - uniform[name]) <= 4 for name in forms)  # no noise in the first


def test_a_pool_around_the_kernels_densities():
    forms = {"a": torch.zeros(16, 9), "b": torch.zeros(32, 16, 3, 3), "c": torch.zeros(10, 32)}
    found = pool(forms, 507, 6, 0.5, 0, "erk")
    # sums of the dimensions are 25, 54 and 42: each gets as many of 507 / 121
    assert found[0] == {"a": 105, "b": 226, "c": 176}
    assert len(found) == 6
    assert {sum(each.values()) for each in found} == {507}
    full = pool(forms, 2000, 1, 0.5, 0, "erk")[0]
    assert (full["a"], full["c"], sum(full.values())) == (144, 320, 2000), (
        "small layers are full, the rest has the rest"
    )


def test_a_pool_of_ten_has_ten_and_another_seed_has_others():
    model = Model.init(CNN, 0)
    assert len(drawn(model, 10)) == 10
    assert drawn(model, 10, seed=2) != drawn(model, 10)
    with pytest.raises(ConfigError, match="another density"):
        pool({"a": torch.zeros(4), "b": torch.zeros(4)}, 1, 1, 0.5, 0)


def test_a_density_whose_product_is_whole_is_not_cut_by_one():
    assert [(d, n) for d in range(1, 100) for n in (100, 1000, 23040) if whole(d / 100, n) != d * n // 100] == []
    model = Model.init(CNN, 0)
    for strict, first, left in ((True, "pruned", 24058 - 23184), (True, "dense", 24058 - 23040), (False, "auto", 0)):
        forms, kept = FedTiny(density=0.35, strict=strict, input_layer=first).allowed(model)
        assert list(forms) == (NAMES if first == "dense" else ["stem.conv.weight", *NAMES])
        everything = 24058 if strict else 23184
        assert kept == 35 * everything // 100 - left
