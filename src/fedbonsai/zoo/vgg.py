"""VGG networks (Simonyan and Zisserman 2015) as three of the papers use them on 32x32 images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from fedbonsai.arch import network
from fedbonsai.zoo.parts import Norm, chain, cut, normalise, sides

POOL = 0
VGG11 = (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)
VGG16 = (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, 512, 512, 512, POOL, 512, 512, 512)


@network("vgg11")
def vgg11(channels: int = 3, size: int = 32, classes: int = 10, height: int = 0, width: int = 0) -> nn.Module:
    """VGG-11 of PruneFL: no normalisation, two hidden layers of 512, 9,750,922 parameters for CIFAR-10.

    Hidden linear layers start Kaiming-uniform by fan-in with gain sqrt(2), the last one by fan-out with slope 1.5,
    convolutions by PyTorch's default.
    """
    high, wide = sides("vgg11", size, height, width, 32)
    stem, features = _convolutions(VGG11, channels, None, bias=True)
    hidden = [nn.Linear(512 * (high // 32) * (wide // 32), 512), nn.Linear(512, 512)]
    classifier = nn.Linear(512, classes)
    for layer in hidden:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    nn.init.kaiming_uniform_(classifier.weight, a=1.5, mode="fan_out")
    features |= {"flatten": nn.Flatten()}
    features |= {"fc1": hidden[0], "relu_fc1": nn.ReLU(), "fc2": hidden[1], "relu_fc2": nn.ReLU()}
    return cut(stem, chain(**features), classifier)


@network("vgg11-bn")
def vgg11_bn(
    channels: int = 3, size: int = 32, classes: int = 10, norm: Norm = "batch", height: int = 0, width: int = 0
) -> nn.Module:
    """VGG-11 with normalisation and one linear layer, as FedTiny counts it: 9,228,362 parameters for CIFAR-10.

    Convolutions have no bias and start Kaiming-normal by fan-out.
    """
    high, wide = sides("vgg11-bn", size, height, width, 32)
    stem, features = _convolutions(VGG11, channels, norm, bias=False)
    net = cut(stem, chain(**features, flatten=nn.Flatten()), nn.Linear(512 * (high // 32) * (wide // 32), classes))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return net


@network("vgg16")
def vgg16(
    channels: int = 3,
    size: int = 32,
    classes: int = 10,
    norm: Norm = "batch",
    dropout: float = 0.5,
    height: int = 0,
    width: int = 0,
) -> nn.Module:
    """VGG-16 of FL-PQSU: four max-pools, an average, two hidden layers of 4,096; 33,642,442 parameters for CIFAR-10.

    Initial values are those of the authors' code: convolutions N(0, 2 / (9 outputs)), norm weights 0.5, linear layers
    N(0, 0.01**2) with zero bias.
    """
    high, wide = sides("vgg16", size, height, width, 32)
    stem, features = _convolutions(VGG16, channels, norm, bias=False)
    net = cut(
        stem,
        chain(
            **features,
            average=nn.AvgPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(512 * (high // 32) * (wide // 32), 4096),
            relu_fc1=nn.ReLU(),
            dropout1=nn.Dropout(dropout),
            fc2=nn.Linear(4096, 4096),
            relu_fc2=nn.ReLU(),
            dropout2=nn.Dropout(dropout),
        ),
        nn.Linear(4096, classes),
    )
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (9 * layer.out_channels)))
        elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.constant_(layer.weight, 0.5)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
    return net


def _convolutions(
    plan: Sequence[int], channels: int, norm: str | None, bias: bool
) -> tuple[nn.Sequential, dict[str, nn.Module]]:
    """The first convolution as a stem, and the layers after it by name, numbered as in the plan."""
    blocks: list[dict[str, nn.Module]] = []
    conv = pool = 0
    for width in plan:
        if width == POOL:
            pool += 1
            blocks.append({f"pool{pool}": nn.MaxPool2d(2)})
            continue
        conv += 1
        block: dict[str, nn.Module] = {f"conv{conv}": nn.Conv2d(channels, width, 3, padding=1, bias=bias)}
        if norm is not None:
            block[f"norm{conv}"] = normalise(norm, width)
        blocks.append(block | {f"relu{conv}": nn.ReLU()})
        channels = width
    return chain(**blocks[0]), {name: layer for block in blocks[1:] for name, layer in block.items()}
