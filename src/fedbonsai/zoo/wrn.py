"""Wide residual networks of depth 16 (Zagoruyko and Komodakis 2016), whole or as narrow sub-networks of FedDCT."""

from __future__ import annotations

from torch import Tensor, nn

from fedbonsai.arch import network
from fedbonsai.errors import ConfigError
from fedbonsai.zoo.parts import Norm, chain, cut, normalise, sides


class WideBlock(nn.Module):
    """Norm, ReLU and 3x3 convolution twice; where the shape changes the shortcut is a 1x1 convolution."""

    def __init__(self, inputs: int, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.norm1 = normalise(norm, inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm2 = normalise(norm, width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != width
        self.shortcut: nn.Module | None = nn.Conv2d(inputs, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """[samples, inputs, h, w] to [samples, width, h / stride, w / stride]."""
        ready = self.relu1(self.norm1(x))
        inner = self.conv2(self.relu2(self.norm2(self.conv1(ready))))
        return inner + (x if self.shortcut is None else self.shortcut(ready))


@network("wrn-16")
def wrn16(
    channels: int = 3,
    size: int = 32,
    classes: int = 10,
    widen: int = 4,
    norm: Norm = "batch",
    height: int = 0,
    width: int = 0,
) -> nn.Module:
    """WRN-16-k with k = ``widen``: 10,961,370 parameters for CIFAR-10 at 8, 2,748,890 at 4.

    The stem is the first convolution alone, of 16 channels whatever the factor: what crosses a cut behind it does not
    grow with the network. No dropout; convolutions start Kaiming-normal by fan-out.
    """
    sides("wrn-16", size, height, width, 4)
    if widen < 1:
        raise ConfigError(f"model 'wrn-16': widen = {widen}: expected at least 1, such as 4 for WRN-16-4")
    stages: dict[str, nn.Module] = {}
    inputs = 16
    for number, outputs in enumerate((16 * widen, 32 * widen, 64 * widen), 1):
        first = WideBlock(inputs, outputs, 1 if number == 1 else 2, norm)
        stages[f"stage{number}"] = chain(block1=first, block2=WideBlock(outputs, outputs, 1, norm))
        inputs = outputs
    features = chain(
        **stages, norm=normalise(norm, inputs), relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()
    )
    net = cut(chain(conv=nn.Conv2d(channels, 16, 3, padding=1, bias=False)), features, nn.Linear(inputs, classes))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return net
