"""Dense gradients of chosen layers, tile by tile, against those of the dense network."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("numba")

from fedbonsai.errors import ConfigError
from fedbonsai.sparse.convert import SparseNet
from fedbonsai.sparse.growth import tiles, watching
from fedbonsai.sparse.layers import SparseConv2d, SparseLinear
from fedbonsai.sparse.order import last
from tests.sparse.nets import masked


@pytest.mark.parametrize("name", ["lenet5", "resnet-tiny"])
@pytest.mark.parametrize("entries", [1, 700, 1 << 18])
def test_tiles_make_up_the_dense_gradient(name, entries):
    model, masks, shape = masked(name, 0.2)
    names = list(masks)
    net = SparseNet(model, masks, names)
    torch.manual_seed(0)
    x, y = torch.randn(6, *shape), torch.arange(6)
    dense = model.build()
    wanted = dict(dense.named_parameters())
    expected = dict(zip(wanted, torch.autograd.grad(F.cross_entropy(dense(x), y), list(wanted.values())), strict=True))
    parts = {weight: [] for weight in names}

    def see(weight, first, tile):
        assert first == sum(len(part) for part in parts[weight])
        assert tile.numel() <= max(entries, expected[weight][0].numel())
        parts[weight].append(tile)

    with watching(net, names, see, entries):
        torch.autograd.grad(F.cross_entropy(net.module(x), y), list(net.parameters.values()))
    for weight in names:
        scale = float(expected[weight].abs().max())
        torch.testing.assert_close(torch.cat(parts[weight]), expected[weight], rtol=1e-4, atol=1e-5 * scale)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([1, 3, 5]),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 6),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(1, 400),
)
def test_tiles_of_any_convolution(kernel, stride, padding, inputs, outputs, density, entries):
    torch.manual_seed(kernel)
    dense = nn.Conv2d(inputs, outputs, kernel, stride, padding)
    mask = torch.rand(dense.weight.shape) < density
    with torch.no_grad():
        dense.weight.mul_(mask)
    x = torch.randn(5, inputs, 7, 6)
    grad = torch.randn_like(dense(x))
    [expected] = torch.autograd.grad(dense(x), [dense.weight], grad)
    found = torch.cat([tile for _, tile in tiles(SparseConv2d.of(dense, mask), last(x), last(grad), entries)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 9), st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 60), st.booleans())
def test_tiles_of_any_linear_layer(inputs, outputs, density, entries, deep):
    torch.manual_seed(inputs)
    dense = nn.Linear(inputs, outputs)
    x = torch.randn(4, 3, inputs) if deep else torch.randn(12, inputs)
    grad = torch.randn_like(dense(x))
    [expected] = torch.autograd.grad(dense(x), [dense.weight], grad)
    layer = SparseLinear.of(dense, torch.rand(dense.weight.shape) < density)
    found = torch.cat([tile for _, tile in tiles(layer, x, grad, entries)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["convolution", "linear", "linear, deep"])
def test_an_activation_that_overwrites_the_output_hides_no_gradient(kind):
    torch.manual_seed(0)
    dense = nn.Conv2d(3, 4, 3, padding=1) if kind == "convolution" else nn.Linear(6, 4)
    shape = {"convolution": (5, 3, 7, 6), "linear": (5, 6), "linear, deep": (5, 3, 6)}[kind]
    mask = torch.rand(dense.weight.shape) < 0.5
    with torch.no_grad():
        dense.weight.mul_(mask)
    x = torch.randn(shape)
    [expected] = torch.autograd.grad(F.relu(dense(x)).square().sum(), [dense.weight])
    layer = (SparseConv2d if kind == "convolution" else SparseLinear).of(dense, mask)
    net, seen = SimpleNamespace(layers={"weight": layer}), []
    with watching(net, ["weight"], lambda name, first, tile: seen.append(tile)):
        torch.autograd.grad(F.relu(layer(x), inplace=True).square().sum(), [layer.values])
    torch.testing.assert_close(torch.cat(seen), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_nothing_is_shown_of_a_pass_without_gradients():
    model, masks, shape = masked("lenet5", 0.2)
    net, seen = SparseNet(model, masks, masks), []
    with watching(net, ["features.fc1.weight"], lambda *tile: seen.append(tile)), torch.no_grad():
        net.module(torch.zeros(2, *shape))
    loss = net.module(torch.zeros(2, *shape)).sum()
    torch.autograd.grad(loss, list(net.parameters.values()))  # nobody watches any more
    assert not seen


def test_a_dense_layer_has_its_gradient_anyway():
    model, masks, _ = masked("lenet5", 0.2)
    net = SparseNet(model, masks, ["features.fc1.weight"])
    with pytest.raises(ConfigError, match="dense anyway"), watching(net, ["features.fc2.weight"], print):
        pass
