"""The mean over those that kept a coordinate: by hand, and in its degenerate cases."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedbonsai.methods.wireless_pruning.aggregate import uncovered, union
from fedbonsai.stages.pruning.readjust import MaskedMean


def tensor(*values):
    return torch.tensor(values)


def bools(*values):
    return torch.tensor(values, dtype=torch.bool)


def test_by_hand():
    mean = MaskedMean()
    mean.add({"w": tensor(1.0, 0.0, 3.0, 0.0), "b": tensor(1.0)}, {"w": bools(1, 0, 1, 0)}, 3)
    mean.add({"w": tensor(5.0, 7.0, 0.0, 0.0), "b": tensor(5.0)}, {"w": bools(1, 1, 0, 0)}, 1)
    found = mean.result({"w": tensor(9.0, 9.0, 9.0, 9.0), "b": tensor(9.0)})
    assert found["w"].tolist() == [2.0, 7.0, 3.0, 9.0]
    assert found["b"].tolist() == [2.0]


def test_dividing_by_all_devices_would_shrink_what_some_left_out():
    """specs/wireless §1.5: the second coordinate stays, where a division by K halves it in every round."""
    value = tensor(1.0, 1.0)
    for _ in range(10):
        mean = MaskedMean()
        mean.add({"w": value}, {"w": bools(1, 1)}, 1)
        mean.add({"w": value * tensor(1.0, 0.0)}, {"w": bools(1, 0)}, 1)
        value = mean.result({"w": value})["w"]
    assert value.tolist() == [1.0, 1.0]


@given(st.integers(1, 2**29), st.integers(0, 1000))
def test_a_coordinate_of_one_device_is_its_value_exactly(count, seed):
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(64, generator=random)
    mask = torch.rand(64, generator=random) < 0.5
    mean = MaskedMean()
    mean.add({"w": values * mask}, {"w": mask}, count)
    mean.add({"w": values * ~mask}, {"w": ~mask}, 17)
    assert torch.equal(mean.result({"w": torch.zeros(64)})["w"], values)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=5), st.integers(0, 1000))
def test_untouched_models_leave_the_server_as_it_is(counts, seed):
    random = torch.Generator().manual_seed(seed)
    u = torch.randn(50, generator=random)
    mean = MaskedMean()
    for count in counts:
        mask = torch.rand(50, generator=random) < 0.6
        mean.add({"w": u * mask}, {"w": mask}, count)
    assert torch.equal(mean.result({"w": u})["w"], u)


def test_what_nobody_covers():
    now = {"w": bools(0, 0, 0, 0), "v": bools(0, 0)}
    assert uncovered(now) == 1.0
    now = union(now, {"w": bools(1, 0, 0, 0), "v": bools(1, 1)})
    assert uncovered(now) == 0.5
    now = union(now, {"w": bools(1, 1, 0, 0), "v": bools(0, 0)})
    assert uncovered(now) == pytest.approx(1 / 3)
    assert union(now, None) is None
    assert union(None, now) is None
    assert uncovered(None) == 0.0
