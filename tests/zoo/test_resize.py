"""A pruned network, rebuilt from the shapes of its weights, computes what slicing by hand computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbonsai.arch import Arch, network
from fedbonsai.model import Model

torch.set_num_threads(1)


def channels(weights: dict[str, Tensor], layer: str, keep: Tensor, norm: str = "") -> None:
    """Keep some outputs of a layer and of the normalisation behind it."""
    for name in [f"{layer}.weight", f"{layer}.bias", *(f"{norm}.{part}" for part in PARTS if norm)]:
        if name in weights:
            weights[name] = weights[name][keep]


PARTS = ("weight", "bias", "running_mean", "running_var")


def test_conv2_without_some_filters_and_neurons() -> None:
    model = Model.init(Arch("conv2", {"size": 8, "classes": 10}), 0)
    w, x = dict(model.weights), torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second, hidden = torch.arange(0, 32, 2), torch.arange(5, 64, 3), torch.arange(100)
    channels(w, "stem.conv", first)
    w["features.conv.weight"] = w["features.conv.weight"][:, first]
    channels(w, "features.conv", second)
    w["features.fc.weight"] = w["features.fc.weight"].view(2048, 64, 4)[:, second].reshape(2048, -1)
    channels(w, "features.fc", hidden)
    w["classifier.weight"] = w["classifier.weight"][:, hidden]

    y = F.max_pool2d(F.relu(F.conv2d(x, w["stem.conv.weight"], w["stem.conv.bias"], padding=2)), 2)
    y = F.max_pool2d(F.relu(F.conv2d(y, w["features.conv.weight"], w["features.conv.bias"], padding=2)), 2)
    y = F.relu(F.linear(y.flatten(1), w["features.fc.weight"], w["features.fc.bias"]))
    y = F.linear(y, w["classifier.weight"], w["classifier.bias"])

    net = model.replace(w).build()
    torch.testing.assert_close(net(x), y)
    # and equal to the whole network with those filters and neurons silenced
    whole = dict(model.weights)
    for name, kept in (("stem.conv", first), ("features.conv", second), ("features.fc", hidden)):
        for part in ("weight", "bias"):
            mask = torch.zeros(len(whole[f"{name}.{part}"]), dtype=torch.bool)
            mask[kept] = True
            whole[f"{name}.{part}"] = whole[f"{name}.{part}"] * mask.view(-1, *[1] * (whole[f"{name}.{part}"].ndim - 1))
    torch.testing.assert_close(model.replace(whole).build()(x), y)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_vgg11_bn_without_some_filters(norm: str) -> None:
    model = Model.init(Arch("vgg11-bn", {"norm": norm}), 0)
    w, x = dict(model.weights), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names = ["stem.conv1", *(f"features.conv{number}" for number in range(2, 9))]
    before = torch.arange(3)
    for name in names:
        w[f"{name}.weight"] = w[f"{name}.weight"][:, before]
        before = torch.arange(0, len(w[f"{name}.weight"]), 4).repeat_interleave(2)  # a half, with repetition
        channels(w, name, before, name.replace("conv", "norm"))
    w["classifier.weight"] = w["classifier.weight"][:, before]

    y = x
    for number, name in enumerate(names, 1):
        part = name.replace("conv", "norm")
        scale, shift = w[f"{part}.weight"], w[f"{part}.bias"]
        y = F.conv2d(y, w[f"{name}.weight"], padding=1)
        if norm == "batch":
            y = F.batch_norm(y, w[f"{part}.running_mean"], w[f"{part}.running_var"], scale, shift)
        else:
            y = F.group_norm(y, len(model.weights[f"{part}.weight"]) // 16, scale, shift)
        y = F.relu(y)
        if number in (1, 2, 4, 6, 8):
            y = F.max_pool2d(y, 2)
    y = F.linear(y.flatten(1), w["classifier.weight"], w["classifier.bias"])
    net = model.replace(w).build().eval()
    torch.testing.assert_close(net(x), y)
    assert net.train()(x).shape == (2, 10)


def test_resnet_tiny_with_narrower_blocks() -> None:
    model = Model.init(Arch("resnet-tiny", {"size": 8, "channels": 1}), 0)
    w, x = dict(model.weights), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([0, 3, 7, 11, 30])
    block = "features.stage2.block1"
    channels(w, f"{block}.conv1", keep, f"{block}.norm1")
    w[f"{block}.conv2.weight"] = w[f"{block}.conv2.weight"][:, keep]
    net = model.replace(w).build().eval()
    assert net.get_submodule(f"{block}.conv1").out_channels == 5

    whole = dict(model.weights)
    silent = torch.ones(32, dtype=torch.bool)
    silent[keep] = False
    whole[f"{block}.conv2.weight"] = whole[f"{block}.conv2.weight"].clone()
    whole[f"{block}.conv2.weight"][:, silent] = 0
    torch.testing.assert_close(net(x), model.replace(whole).build().eval()(x))


@network("plain-norms")
def plain_norms(channels: int = 1, size: int = 8, classes: int = 10) -> nn.Module:
    """Normalisations without gains, with statistics and without."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3),
        nn.BatchNorm2d(6, affine=False),
        nn.Conv2d(6, 4, 3),
        nn.BatchNorm2d(4, affine=False, track_running_stats=False),
        nn.GroupNorm(2, 4, affine=False),
        nn.Flatten(),
        nn.Linear(4 * (size - 4) ** 2, classes),
    )


def test_normalisation_without_gains_is_rebuilt_and_narrowed() -> None:
    model, x = Model.init(Arch("plain-norms", {}), 0), torch.randn(3, 1, 8, 8)
    w, keep = dict(model.weights), torch.tensor([0, 2, 5])
    silent = torch.zeros(6).index_fill(0, keep, 1.0)
    for name in ("0.weight", "0.bias", "1.running_mean", "1.running_var"):
        w[name] = w[name][keep]
    w["2.weight"] = w["2.weight"][:, keep]
    net = model.replace(w).build().eval()
    assert net.get_submodule("1").num_features == 3
    whole = {**model.weights, "2.weight": model.weights["2.weight"] * silent[:, None, None]}
    torch.testing.assert_close(net(x), model.replace(whole).build().eval()(x))
