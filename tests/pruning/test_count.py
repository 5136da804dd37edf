"""Costs against counts by hand and against the numbers of specs/fedtiny §3 and specs/fl-pqsu §1.1."""

import math

import pytest
import torch
from torch import nn

from fedbonsai.arch import Arch, network
from fedbonsai.model import Model, cached_module
from fedbonsai.stages.pruning import count
from fedbonsai.zoo.parts import chain

IMAGE = (3, 32, 32)


@network("test-count")
def hand() -> nn.Module:
    """3x6x6 -> 4x6x6 -> 5x2x2 -> 7."""
    return chain(
        conv1=nn.Conv2d(3, 4, 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(4),
        conv2=nn.Conv2d(4, 5, 3, stride=2),
        relu=nn.ReLU(),
        flatten=nn.Flatten(),
        fc=nn.Linear(20, 7),
    )


HAND = {"conv1.weight": 6 * 6 * 4 * 27, "conv2.weight": 2 * 2 * 5 * 36, "fc.weight": 140}


def dense_ends(model: Model, density: float) -> dict[str, torch.Tensor]:
    """Uniform masks, first and last layer dense; the share is of all parameters, the dense ones inside the budget."""
    names = [name for name, value in cached_module(model).parameters.items() if value.ndim > 1][1:-1]
    everything, prunable = count.parameters(model), sum(model.weights[name].numel() for name in names)
    density = (density * everything - (everything - prunable)) / prunable
    masks = {}
    for name in names:
        mask = torch.zeros(model.weights[name].numel(), dtype=torch.bool)
        mask[: round(density * mask.numel())] = True
        masks[name] = mask.reshape(model.weights[name].shape)
    return masks


@pytest.fixture(scope="module")
def resnet():
    return Model.init(Arch("resnet18", {}), 0)


def test_a_small_network_by_hand():
    model, size = Model.init(Arch("test-count"), 0), (3, 6, 6)
    assert count.parameters(model) == 4 * 27 + 8 + 5 * 36 + 5 + 140 + 7
    assert count.layer_macs(model, size) == HAND
    assert count.macs(model, size) == sum(HAND.values()) == 3888 + 720 + 140
    assert count.flops(model, size) == 2 * 4748
    mask = torch.zeros(5, 4, 3, 3, dtype=torch.bool)
    mask[0] = True  # 36 of 180
    masks = {"conv2.weight": mask}
    assert count.flops(model, size, masks) == 2 * (3888 + 144 + 140)
    assert count.training_flops(model, size, masks) == 3 * 2 * (3888 + 144 + 140)
    assert count.training_flops(model, size, masks, ("conv2.weight",)) == 2 * (3 * (3888 + 140) + 2 * 144 + 720)
    # the mean over what a layer gives: 4x6x6 twice (conv1, norm), 20 twice (conv2, relu), 7; and the image
    assert count.activation_bytes(model, size, batch=10) == 40 * (108 + 2 * 144 + 2 * 20 + 7)


def test_counting_leaves_the_network_as_it_was():
    model = Model.init(Arch("test-count"), 0)
    net = cached_module(model)
    net.module.train()
    count.macs(model, (3, 6, 6))
    assert net.module.training
    assert all(torch.equal(value, model.weights[name]) for name, value in net.snapshot().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "size", "trained", "expected"),
    [
        ("vgg16", {}, (3, 32, 32), 33_642_442, 332_111_872),
        ("alexnet", {"channels": 1, "size": 28}, (1, 28, 28), 29_583_562, 170_259_968),
    ],
)
def test_networks_of_fl_pqsu(name, options, size, trained, expected):
    model = Model.init(Arch(name, options), 0)
    assert count.parameters(model) == trained
    assert count.macs(model, size) == expected


@pytest.mark.slow
def test_reference_counts_of_resnet18(resnet):
    assert count.parameters(resnet) == 11_173_962
    dense = count.flops(resnet, IMAGE)
    assert dense == pytest.approx(1.111e9, rel=5e-4)
    weights = {name: resnet.weights[name] for name in cached_module(resnet).parameters}
    whole = count.storage_bytes(weights)
    for density, share, bitmap, coordinates in (
        (0.2, 0.201, 0.231, 0.331),
        (0.1, 0.102, 0.131, 0.165),
        (0.05, 0.052, 0.081, 0.082),
        (0.01, 0.0117, 0.041, 0.0156),
    ):
        masks = dense_ends(resnet, density)
        assert count.flops(resnet, IMAGE, masks) / dense == pytest.approx(share, abs=5e-4 if density > 0.01 else 5e-5)
        # the few tensors that stay dense are within the third digit of these
        assert count.storage_bytes(weights, masks, ["bitmap"]) / whole == pytest.approx(bitmap, abs=3e-3)
        assert count.storage_bytes(weights, masks, ["coordinates"]) / whole == pytest.approx(coordinates, abs=3e-3)


@pytest.mark.slow
def test_reference_counts_of_the_other_two():
    model = Model.init(Arch("resnet18-7x7", {"classes": 10, "size": 32}), 0)
    dense = count.flops(model, IMAGE)
    assert dense == pytest.approx(0.074e9, rel=1e-2)
    assert count.flops(model, IMAGE, dense_ends(model, 0.01)) / dense == pytest.approx(0.0725, abs=1e-4)
    assert 4 * sum(value.numel() for value in model.weights.values()) == (11_181_642 + 9_600) * 4  # FedRTS's 44.76 MB
    assert count.training_bytes(model, IMAGE, batch=0) == pytest.approx(134.29e6, rel=1e-4)
    bitmap = count.storage_bytes(model.weights, dense_ends(model, 0.2), ["bitmap"])
    assert bitmap == pytest.approx(10.37e6, rel=5e-3)
    vgg = Model.init(Arch("vgg11-bn"), 0)
    assert count.parameters(vgg) == 9_228_362
    dense = count.flops(vgg, IMAGE)
    assert dense == pytest.approx(0.306e9, rel=2e-3)
    assert count.flops(vgg, IMAGE, dense_ends(vgg, 0.01)) / dense == pytest.approx(0.0202, abs=1e-4)


def test_bytes_of_batch_norm_statistics(resnet):
    def statistics(model: Model) -> int:
        return 4 * sum(value.numel() for name, value in model.weights.items() if "running" in name)

    assert statistics(resnet) == 38_400
    assert statistics(Model.init(Arch("vgg11-bn"), 0)) == 22_016


def test_formats_by_hand():
    shape = (64, 32, 3, 3)  # n = 18432, 15 bits; 288 columns, 9 bits
    assert count.tensor_bits(shape, 1000, "dense") == 18432 * 32
    assert count.tensor_bits(shape, 1000, "bitmap") == 18432 + 32_000
    assert count.tensor_bits(shape, 1000, "coordinates") == 1000 * 47
    assert count.tensor_bits(shape, 1000, "csr") == 1000 * 41 + 64 * 10
    mask = torch.zeros(shape, dtype=torch.bool)
    mask.view(-1)[:1000] = True
    tree = {"w": torch.zeros(shape), "b": torch.zeros(64)}
    assert count.storage_bytes(tree, {"w": mask}) == math.ceil((1000 * 41 + 640) / 8) + 256
    assert count.growth_bytes(tree, {"w": 10, "b": 3}) == math.ceil((10 * 47 + 3 * 38) / 8)


def test_the_crossover_of_bitmap_and_coordinates():
    n = 512 * 512 * 9
    below, above = (
        [count.tensor_bits((512, 4608), round(d * n), f) for f in ("bitmap", "coordinates")] for d in (0.044, 0.047)
    )
    assert below[1] < below[0]
    assert above[1] > above[0]


def test_buffers_and_activations_enter_the_memory():
    model = Model.init(Arch("test-count"), 0)
    plain = count.training_bytes(model, (3, 6, 6), 0)
    assert count.training_bytes(model, (3, 6, 6), 0, counts={"fc.weight": 5}) == plain + 40
    assert count.training_bytes(model, (3, 6, 6), 2) == plain + count.activation_bytes(model, (3, 6, 6), 2)
