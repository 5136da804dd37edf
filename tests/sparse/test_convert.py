"""Networks with sparse layers against the dense ones under the same masks."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("numba")

from fedbonsai import measured
from fedbonsai.cached_module import CachedModule
from fedbonsai.sparse.convert import SparseNet, chosen, sparse_net
from fedbonsai.sparse.layers import SparseConv2d
from fedbonsai.sparse.order import batch_last
from tests.sparse.nets import masked

BATCH = 6


def smooth(module):
    """Tanh for ReLU and means for maxima: a sum that differs in its last bit must not flip a unit or a choice."""
    for path, layer in list(module.named_modules()):
        parent, _, name = path.rpartition(".")
        if isinstance(layer, nn.ReLU):
            setattr(module.get_submodule(parent), name, nn.Tanh())
        elif isinstance(layer, nn.MaxPool2d):
            setattr(module.get_submodule(parent), name, nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding))
    return module


def gradients(module, parameters, shape):
    random = torch.Generator().manual_seed(3)
    x = torch.randn(BATCH, *shape, generator=random)
    loss = F.cross_entropy(module(x), torch.arange(BATCH))
    return loss.detach(), dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("mlp", "conv2", "lenet5")),
        *((name, {"norm": n}) for name in ("cnn-bn", "resnet-tiny", "wrn-16", "vgg11-bn") for n in ("batch", "group")),
    ],
)
def test_loss_gradients_and_statistics_are_those_of_the_dense_network(name, options):
    model, masks, shape = masked(name, 0.2, **options)
    dense, net = CachedModule(model.arch, model.weights).load(model.weights), SparseNet(model, masks, masks)
    assert set(net.layers) == set(masks)
    loss, expected = gradients(smooth(dense.module), dense.parameters, shape)
    found_loss, found = gradients(smooth(net.module), net.parameters, shape)
    torch.testing.assert_close(found_loss, loss, rtol=1e-5, atol=1e-6)
    for weight, value in net.compact(expected).items():
        scale = float(expected[weight].abs().max())
        torch.testing.assert_close(found[weight], value, rtol=1e-4, atol=1e-4 * scale + 1e-8, msg=weight)
    after, ours = dense.snapshot(), net.snapshot()
    assert list(after) == list(ours)
    for weight in after:
        torch.testing.assert_close(ours[weight], after[weight], rtol=1e-5, atol=1e-5)


def test_dense_layers_among_sparse_ones_give_the_same():
    model, masks, shape = masked("wrn-16", 0.2)
    dense, net = CachedModule(model.arch, model.weights).load(model.weights), SparseNet(model, masks, list(masks)[::2])
    _, expected = gradients(smooth(dense.module), dense.parameters, shape)
    _, found = gradients(smooth(net.module), net.parameters, shape)
    for weight, value in net.compact(expected).items():
        scale = float(expected[weight].abs().max())
        torch.testing.assert_close(found[weight], value, rtol=1e-4, atol=1e-4 * scale + 1e-8, msg=weight)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", ["resnet-tiny", "wrn-16", "vgg11-bn", "conv2"])
def test_the_order_of_memory_is_kept_from_the_first_layer_to_the_last(name, every):
    model, masks, shape = masked(name, 0.2)
    net = SparseNet(model, masks, list(masks)[::every])
    wrong, seen = [], []

    def watching(path):
        def watch(_, given, output):
            for x in (given[0], output):
                if x.dim() == 4 and x.shape[2] > 1:
                    (seen if batch_last(x) else wrong).append(path)

        return watch

    for path, layer in net.module.named_modules():
        if path and ".inner" not in path:
            layer.register_forward_hook(watching(path))
    net.module(torch.randn(BATCH, *shape))
    assert len(seen) > 6
    assert not wrong


def test_loading_other_masks_changes_the_places():
    model, masks, _ = masked("lenet5", 0.2)
    other, others, _ = masked("lenet5", 0.1, seed=1)
    net = SparseNet(model, masks, masks).load(other.weights, others)
    assert all(torch.equal(net.snapshot()[name], value) for name, value in other.weights.items())
    assert {name: len(layer.pattern) for name, layer in net.layers.items()} == {
        name: int(mask.sum()) for name, mask in others.items()
    }
    assert all(len(net.parameters[name]) == int(mask.sum()) for name, mask in others.items())


def test_auto_is_sparse_below_the_breakeven(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path))
    monkeypatch.setattr(measured, "SECONDS", 0.0)
    model, masks, shape = masked("mlp", 0.2, widths=(40, 30))
    chosen(model, masks, shape, 20)
    known = json.loads((tmp_path / "breakeven.json").read_text())
    assert len(known) == len(masks) == 3
    assert all(0 <= density <= 1 for density in known.values())
    (tmp_path / "breakeven.json").write_text(
        json.dumps({key: 0.3 if "in_features=40" in key else 0.1 for key in known})
    )
    monkeypatch.setattr(measured, "_known", {})
    assert chosen(model, masks, shape, 20) == ["features.fc2.weight"]


def test_a_network_is_kept_and_what_has_no_mask_stays_dense():
    model, masks, shape = masked("lenet5", 0.2)
    some = {name: mask for name, mask in masks.items() if "fc" in name or name.endswith("conv.weight")}
    net = sparse_net(model, some, shape, 20, "on")
    assert set(net.layers) == set(some)
    assert sparse_net(model, some, shape, 20, "on") is net
    assert isinstance(net.layers["features.conv.weight"], SparseConv2d)
    assert sparse_net(model, {}, shape, 20, "on") is None
