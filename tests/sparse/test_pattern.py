"""Patterns of masks: lists that agree with the dense mask, and what happens when a mask changes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba")

from fedbonsai.errors import ConfigError
from fedbonsai.sparse.pattern import Pattern, kept


def drawn(shape, density, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def test_lists_of_a_matrix_by_hand():
    pattern = Pattern.of(torch.tensor([[True, False, True], [False, False, False], [True, True, False]]))
    assert pattern.rows.starts.tolist() == [0, 2, 2, 4]
    assert pattern.rows.columns.tolist() == [0, 2, 0, 1]
    assert pattern.back.starts.tolist() == [0, 2, 3, 4]
    assert pattern.back.columns.tolist() == [0, 2, 2, 0]
    assert pattern.order.tolist() == [0, 2, 3, 1]
    assert pattern.density == 4 / 9


def test_taps_of_a_strided_kernel_are_listed_by_remainder():
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    pattern = Pattern.of(mask, (2, 2))
    lists = np.split(pattern.back.columns, pattern.back.starts[1:-1])
    assert [part.tolist() for part in lists] == [[0, 2, 6, 8], [1, 7], [3, 5], [4]]


shapes = st.one_of(
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)),
)


@given(
    shapes, st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.tuples(st.integers(1, 3), st.integers(1, 2)), st.integers(0, 9)
)
def test_a_mask_comes_back(shape, density, stride, seed):
    mask = drawn(shape, density, seed)
    pattern = Pattern.of(mask, stride)
    weight = torch.randn(shape) * mask
    assert torch.equal(pattern.dense(pattern.gathered(weight)), weight)
    assert pattern.same(mask)
    assert len(pattern) == int(mask.sum())
    other = mask.clone()
    other.view(-1)[seed % mask.numel()] ^= True
    assert not pattern.same(other)
    assert sorted(pattern.order.tolist()) == list(range(len(pattern)))


@pytest.mark.parametrize("shape", [(5, 131), (3, 64), (4, 7, 3, 3), (0, 40), (6, 0)])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
def test_a_mask_is_read_as_its_list_of_places(shape, density):
    mask = drawn(shape, density, 2)
    found, expected = Pattern.of(mask), Pattern.at(mask.view(-1).nonzero().view(-1).numpy(), shape)
    for name in ("rows", "back"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert np.array_equal(ours.starts, theirs.starts)
        assert np.array_equal(ours.columns, theirs.columns)
        assert ours.columns.dtype == np.int32
    assert np.array_equal(found.order, expected.order)
    assert kept(mask) == len(found)


def test_memory_is_in_proportion_to_what_is_kept():
    shape = (256, 256, 3, 3)
    few, many = Pattern.of(drawn(shape, 0.01, 0)), Pattern.of(drawn(shape, 0.1, 0))
    rows = 8 * (256 + 1) * 2
    assert few.bytes == 12 * len(few) + rows
    assert many.bytes == 12 * len(many) + rows


@pytest.mark.parametrize("places", [[3, 2], [1, 1], [0, 12], [-1, 4]])
def test_places_that_cannot_be_are_refused(places):
    with pytest.raises(ConfigError, match="ascending numbers below 12"):
        Pattern.at(np.array(places), (3, 4))
