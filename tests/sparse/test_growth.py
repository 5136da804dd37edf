"""Dense gradients of chosen layers, tile by tile, against those of the dense network."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("numba")

from fedbonsai.errors import ConfigError
from fedbonsai.sparse.convert import SparseNet
from fedbonsai.sparse.growth import keeping
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
    with keeping(net, names) as kept:
        torch.autograd.grad(F.cross_entropy(net.module(x), y), list(net.parameters.values()))
    for weight in names:
        row = expected[weight][0].numel()
        parts = []
        for first, tile in kept[weight].tiles(entries):
            assert first == sum(len(part) for part in parts)
            assert tile.numel() <= max(entries, row)
            parts.append(tile)
        scale = float(expected[weight].abs().max())
        torch.testing.assert_close(torch.cat(parts), expected[weight], rtol=1e-4, atol=1e-4 * scale)


def test_a_pass_that_is_missing_is_told():
    model, masks, shape = masked("lenet5", 0.2)
    net = SparseNet(model, masks, masks)
    with keeping(net, ["features.fc1.weight"]) as kept:
        net.module(torch.zeros(2, *shape))
    with pytest.raises(ConfigError, match="1 forward and 0 backward"):
        next(kept["features.fc1.weight"].tiles())


def test_a_dense_layer_has_its_gradient_anyway():
    model, masks, _ = masked("lenet5", 0.2)
    net = SparseNet(model, masks, ["features.fc1.weight"])
    with pytest.raises(ConfigError, match="dense anyway"), keeping(net, ["features.fc2.weight"]):
        pass
