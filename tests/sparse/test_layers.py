"""Sparse layers against the dense layers under the same mask: outputs and all gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("numba")

from fedbonsai.errors import ConfigError
from fedbonsai.sparse import rows
from fedbonsai.sparse.geometry import evenly
from fedbonsai.sparse.layers import SparseConv2d, SparseLinear

densities = st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0])


def close(found, expected):
    """To 1e-5 of the largest entry."""
    found, expected = found.detach(), expected.detach()
    assert found.shape == expected.shape
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * largest + 1e-6)


def drawn(layer, density, seed, empty_rows):
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(layer.weight.shape, generator=random) < density
    if empty_rows:
        mask[::2] = False
        mask[:, ::3] = False
    layer.weight.data.mul_(mask)
    return mask


def same(dense, sparse, mask, x, seed):
    """Run both on a copy of the input each, backwards from one random gradient."""
    random = torch.Generator().manual_seed(seed)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, found = dense(theirs), sparse(ours)
    close(found, expected)
    grad = torch.randn(expected.shape, generator=random)
    expected.backward(grad)
    found.backward(grad)
    close(ours.grad, theirs.grad)
    close(sparse.values.grad, dense.weight.grad[mask])
    if dense.bias is not None:
        close(sparse.bias.grad, dense.bias.grad)
    assert torch.equal(sparse.dense(), dense.weight)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 40),
    batch=st.sampled_from([1, 2, 3, 5, 8, 16, 20, 21, 32, 47, 64, 100, 133]),
    density=densities,
    bias=st.booleans(),
    empty=st.booleans(),
    seed=st.integers(0, 99),
)
def test_linear(inputs, outputs, batch, density, bias, empty, seed):
    torch.manual_seed(seed)
    dense = nn.Linear(inputs, outputs, bias=bias)
    mask = drawn(dense, density, seed, empty)
    same(dense, SparseLinear.of(dense, mask), mask, torch.randn(batch, inputs), seed)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 3)),
    image=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    batch=st.sampled_from([1, 2, 7, 20, 32]),
    density=densities,
    bias=st.booleans(),
    empty=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_conv(inputs, outputs, kernel, stride, padding, image, batch, density, bias, empty, last, seed):
    torch.manual_seed(seed)
    dense = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias)
    mask = drawn(dense, density, seed, empty)
    x = torch.randn(batch, inputs, *image)
    if last:
        x = x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    same(dense, SparseConv2d.of(dense, mask), mask, x, seed)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads):
    torch.manual_seed(0)
    dense = nn.Conv2d(32, 48, 3, padding=1)
    mask = drawn(dense, 0.3, 0, True)
    x, grad = torch.randn(8, 32, 12, 12), torch.randn(8, 48, 12, 12)
    sparse = SparseConv2d.of(dense, mask)
    before = torch.get_num_threads()
    found = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            given = x.clone().requires_grad_()
            y = sparse(given)
            found.append([y, *torch.autograd.grad(y, [given, *sparse.parameters()], grad)])
    finally:
        torch.set_num_threads(before)
    assert len(sparse.pattern) * 12 * 12 * 8 > rows.LEAST
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_has_no_sparse_form_is_refused():
    with pytest.raises(ConfigError, match="one group"):
        SparseConv2d.of(nn.Conv2d(4, 4, 3, groups=2), torch.ones(4, 2, 3, 3, dtype=torch.bool))
    with pytest.raises(ConfigError, match="float32"):
        SparseLinear.of(nn.Linear(3, 2).double(), torch.ones(2, 3, dtype=torch.bool))


def test_a_linear_layer_takes_any_leading_shape():
    dense = nn.Linear(6, 5)
    mask = drawn(dense, 0.5, 0, False)
    x = torch.randn(2, 3, 6)
    close(SparseLinear.of(dense, mask)(x), dense(x))


def test_images_that_do_not_fit_are_refused():
    layer = nn.Conv2d(2, 2, 5)
    sparse = SparseConv2d.of(layer, torch.ones_like(layer.weight, dtype=torch.bool))
    with pytest.raises(ConfigError, match="smaller than the kernel"):
        sparse(torch.zeros(1, 2, 4, 8))
    with pytest.raises(ConfigError, match="31 bits"):
        evenly(1 << 20, 1 << 12)
