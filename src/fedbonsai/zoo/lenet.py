"""LeNet-5 (LeCun et al. 1998) with the ReLUs and max-pools that are usual today."""

from __future__ import annotations

from torch import nn

from fedbonsai.arch import network
from fedbonsai.zoo.parts import chain, cut, sides


@network("lenet5")
def lenet5(channels: int = 1, size: int = 28, classes: int = 10, height: int = 0, width: int = 0) -> nn.Module:
    """Two 5x5 convolutions (6, 16) and linear layers of 120 and 84: 61,706 parameters for MNIST.

    Images below 32 pixels are padded by 2 on each side, as the 28x28 digits were for the original.
    """
    high, wide = sides("lenet5", size, height, width, 12)
    padding = (2 if high < 32 else 0, 2 if wide < 32 else 0)
    down, across = (((side + 2 * more - 4) // 2 - 4) // 2 for side, more in zip((high, wide), padding, strict=True))
    return cut(
        chain(conv=nn.Conv2d(channels, 6, 5, padding=padding), relu=nn.ReLU(), pool=nn.MaxPool2d(2)),
        chain(
            conv=nn.Conv2d(6, 16, 5),
            relu=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * down * across, 120),
            relu_fc1=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu_fc2=nn.ReLU(),
        ),
        nn.Linear(84, classes),
    )
