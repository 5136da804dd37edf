"""Normalisation with the batch last in memory against torch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("numba")

from fedbonsai.sparse import rows
from fedbonsai.sparse.order import Norm, batch_last, last


def close(found, expected):
    """To 1e-5 of the largest entry."""
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * largest + 1e-6)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(4, 40), st.integers(1, 9), st.integers(2, 9), st.integers(2, 9)),
    mean=st.sampled_from([0.0, 3.0, -10.0]),
    momentum=st.sampled_from([0.1, None]),
    tracked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_batch_normalisation(shape, mean, momentum, tracked, seed):
    torch.manual_seed(seed)
    theirs = nn.BatchNorm2d(shape[1], momentum=momentum, track_running_stats=tracked)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours = nn.BatchNorm2d(shape[1], momentum=momentum, track_running_stats=tracked)
    ours.load_state_dict(theirs.state_dict())
    layer = Norm(ours)
    for _ in range(2):
        x = torch.randn(shape) + mean
        ours_x = x.clone().requires_grad_()
        theirs(x)  # moves its statistics
        found = layer(last(ours_x))
        assert batch_last(found)
        grad = torch.randn(shape)
        # against float64, where subtracting a large mean costs no digits
        exact = nn.BatchNorm2d(shape[1]).double()
        exact.weight.data.copy_(theirs.weight)
        exact.bias.data.copy_(theirs.bias)
        wide = x.double().requires_grad_()
        y = exact(wide)
        wanted = torch.autograd.grad(y, [wide, exact.weight, exact.bias], grad.double())
        close(found, y.float())
        ours_grads = torch.autograd.grad(found, [ours_x, ours.weight, ours.bias], grad)
        close(ours_grads[0], wanted[0].float())
        # sums whose terms cancel: what rounding may change is a part of the terms, not of the sum
        normed = (wide - wide.mean((0, 2, 3), keepdim=True)) / wide.std((0, 2, 3), keepdim=True)
        terms = (grad.abs() * (1 + normed.detach().abs())).sum((0, 2, 3))
        for one, other in zip(ours_grads[1:], wanted[1:], strict=True):
            assert ((one - other).abs() <= 1e-6 * terms).all()
    for name, value in theirs.state_dict().items():
        close(ours.state_dict()[name], value)


def test_threads_change_no_bit_of_a_normalisation():
    torch.manual_seed(0)
    layer, x, grad = Norm(nn.BatchNorm2d(24)), torch.randn(32, 24, 20, 20), torch.randn(32, 24, 20, 20)
    assert x.numel() > rows.LEAST
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            given = x.clone().requires_grad_()
            y = layer(last(given))
            found.append([y, *torch.autograd.grad(y, [given, *layer.parameters()], grad)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
