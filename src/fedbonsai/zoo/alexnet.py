"""The AlexNet of FL-PQSU for 28x28 images (its authors' code; a relative of Krizhevsky et al. 2012)."""

from __future__ import annotations

from torch import nn

from fedbonsai.arch import network
from fedbonsai.zoo.parts import chain, cut, sides


@network("alexnet")
def alexnet(
    channels: int = 1, size: int = 28, classes: int = 10, as_coded: bool = False, height: int = 0, width: int = 0
) -> nn.Module:
    """Five 3x3 convolutions and three linear layers, all with biases: 29,583,562 parameters for MNIST.

    Args:
        channels: of the images.
        size: of square images, in pixels.
        classes: number of them.
        as_coded: as the authors' code has it, without activations between the last three convolutions and between
            the linear layers, so that each group is one linear map; otherwise the missing ReLUs are there.
        height: of other images.
        width: of other images.
    """
    high, wide = sides("alexnet", size, height, width, 12)
    activation = nn.Identity if as_coded else nn.ReLU
    down, across = (high // 2 - 2) // 4, (wide // 2 - 2) // 4
    return cut(
        chain(conv=nn.Conv2d(channels, 96, 3, padding=1), pool=nn.MaxPool2d(2), relu=nn.ReLU()),
        chain(
            conv2=nn.Conv2d(96, 256, 3),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(256, 384, 3, padding=1),
            relu3=activation(),
            conv4=nn.Conv2d(384, 384, 3, padding=1),
            relu4=activation(),
            conv5=nn.Conv2d(384, 256, 3, padding=1),
            pool5=nn.MaxPool2d(2),
            relu5=nn.ReLU(),
            flatten=nn.Flatten(),
            fc6=nn.Linear(256 * down * across, 4096),
            relu6=activation(),
            fc7=nn.Linear(4096, 4096),
            relu7=activation(),
        ),
        nn.Linear(4096, classes),
    )
