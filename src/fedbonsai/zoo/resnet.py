"""Residual networks of basic blocks (He et al. 2016): two ResNet-18 and a tiny one for small devices."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fedbonsai.arch import network
from fedbonsai.zoo.parts import Norm, chain, cut, normalise, sides


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a normalised 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm1 = normalise(norm, width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = normalise(norm, width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            conv = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.shortcut = chain(conv=conv, norm=normalise(norm, width))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[samples, inputs, h, w] to [samples, width, h / stride, w / stride]."""
        inner = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(self.norm2(self.conv2(inner)) + self.shortcut(x))


@network("resnet18")
def resnet18(
    channels: int = 3, size: int = 32, classes: int = 10, norm: Norm = "batch", height: int = 0, width: int = 0
) -> nn.Module:
    """ResNet-18 with a 3x3 stem for small images: 11,173,962 parameters for CIFAR-10."""
    sides("resnet18", size, height, width, 8)
    return _residual(_stem3(channels, 64, norm), (64, 128, 256, 512), classes, norm)


@network("resnet18-7x7")
def resnet18_7x7(
    channels: int = 3, size: int = 224, classes: int = 100, norm: Norm = "batch", height: int = 0, width: int = 0
) -> nn.Module:
    """ResNet-18 as He et al. have it, with the 7x7 stem that halves twice: 11,227,812 parameters for 100 classes."""
    sides("resnet18-7x7", size, height, width, 32)
    stem = chain(
        conv=nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False),
        norm=normalise(norm, 64),
        relu=nn.ReLU(),
        pool=nn.MaxPool2d(3, 2, padding=1),
    )
    return _residual(stem, (64, 128, 256, 512), classes, norm)


@network("resnet-tiny")
def resnet_tiny(
    channels: int = 3, size: int = 32, classes: int = 10, norm: Norm = "batch", height: int = 0, width: int = 0
) -> nn.Module:
    """Three stages of two basic blocks, 16, 32 and 64 channels wide: 175,258 parameters for CIFAR-10."""
    sides("resnet-tiny", size, height, width, 4)
    return _residual(_stem3(channels, 16, norm), (16, 32, 64), classes, norm)


def _stem3(channels: int, width: int, norm: str) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    return chain(conv=conv, norm=normalise(norm, width), relu=nn.ReLU())


def _residual(stem: nn.Sequential, widths: Sequence[int], classes: int, norm: str) -> nn.Sequential:
    """Two blocks a stage, each stage after the first at half the resolution; convolutions Kaiming-normal by fan-out."""
    stages: dict[str, nn.Module] = {}
    inputs = widths[0]
    for number, width in enumerate(widths, 1):
        first = BasicBlock(inputs, width, 1 if number == 1 else 2, norm)
        stages[f"stage{number}"] = chain(block1=first, block2=BasicBlock(width, width, 1, norm))
        inputs = width
    features = chain(**stages, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    net = cut(stem, features, nn.Linear(inputs, classes))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return net
