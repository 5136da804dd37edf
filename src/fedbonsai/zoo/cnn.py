"""Small convolutional networks for digits and letters.

`conv2` is the FEMNIST network of PruneFL (Jiang et al. 2022), `cnn_mnist` that of McMahan et al. 2017, which the
wireless experiments use; `cnn_bn` is ours, for methods that select by BatchNorm statistics.
"""

from __future__ import annotations

from torch import nn

from fedbonsai.arch import network
from fedbonsai.zoo.parts import Norm, chain, cut, normalise, sides


@network("conv2")
def conv2(channels: int = 1, size: int = 28, classes: int = 62, height: int = 0, width: int = 0) -> nn.Module:
    """Two 5x5 convolutions (32, 64) and 2,048 hidden units, no normalisation: 6,603,710 parameters for FEMNIST.

    Linear layers start Kaiming-uniform by fan-out with gain sqrt(2), convolutions by PyTorch's default.
    """
    net = _two_convolutions(channels, sides("conv2", size, height, width, 4), 2048, classes)
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, mode="fan_out", nonlinearity="relu")
    return net


@network("cnn-mnist")
def cnn_mnist(channels: int = 1, size: int = 28, classes: int = 10, height: int = 0, width: int = 0) -> nn.Module:
    """Two 5x5 convolutions (32, 64) and 512 hidden units: 1,663,370 parameters for MNIST."""
    return _two_convolutions(channels, sides("cnn-mnist", size, height, width, 4), 512, classes)


@network("cnn-small")
def cnn_small(channels: int = 1, size: int = 28, classes: int = 10, height: int = 0, width: int = 0) -> nn.Module:
    """Two 5x5 convolutions (16, 32), each halved by max-pooling, and one linear layer: 28,938 parameters for MNIST."""
    high, wide = sides("cnn-small", size, height, width, 4)
    return cut(
        chain(conv=nn.Conv2d(channels, 16, 5, padding=2), relu=nn.ReLU(), pool=nn.MaxPool2d(2)),
        chain(
            conv=nn.Conv2d(16, 32, 5, padding=2),
            relu=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
        ),
        nn.Linear(32 * (high // 4) * (wide // 4), classes),
    )


def _two_convolutions(channels: int, size: tuple[int, int], hidden: int, classes: int) -> nn.Sequential:
    return cut(
        chain(conv=nn.Conv2d(channels, 32, 5, padding=2), relu=nn.ReLU(), pool=nn.MaxPool2d(2)),
        chain(
            conv=nn.Conv2d(32, 64, 5, padding=2),
            relu1=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc=nn.Linear(64 * (size[0] // 4) * (size[1] // 4), hidden),
            relu2=nn.ReLU(),
        ),
        nn.Linear(hidden, classes),
    )


@network("cnn-bn")
def cnn_bn(
    channels: int = 1, size: int = 28, classes: int = 10, norm: Norm = "batch", height: int = 0, width: int = 0
) -> nn.Module:
    """Three 3x3 convolutions (16, 32, 64), each normalised; halved twice, then averaged over the image.

    The average makes the number of parameters, 24,058 for grey images of ten classes, the same for 8x8 and 28x28.
    """
    sides("cnn-bn", size, height, width, 4)
    return cut(
        chain(
            conv=nn.Conv2d(channels, 16, 3, padding=1, bias=False),
            norm=normalise(norm, 16),
            relu=nn.ReLU(),
            pool=nn.MaxPool2d(2),
        ),
        chain(
            conv1=nn.Conv2d(16, 32, 3, padding=1, bias=False),
            norm1=normalise(norm, 32),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 3, padding=1, bias=False),
            norm2=normalise(norm, 64),
            relu2=nn.ReLU(),
            pool2=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        ),
        nn.Linear(64, classes),
    )
