"""A small MobileNetV2 (Sandler et al. 2018) for small pictures, with ReLU in place of ReLU6, which saturates."""

from __future__ import annotations

from torch import Tensor, nn

from fedbonsai.arch import network
from fedbonsai.errors import ConfigError
from fedbonsai.zoo.parts import Norm, chain, cut, normalise, sides

PLAN = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 32, 2, 2), (4, 64, 2, 2))  # expansion, width, blocks, stride of the first


class Inverted(nn.Module):
    """Wider by a 1x1 convolution, 3x3 for each channel, narrower again; added to what came in where the shape stays."""

    def __init__(self, inputs: int, width: int, expansion: int, stride: int, norm: str) -> None:
        super().__init__()
        hidden = expansion * inputs
        wider = chain(conv=nn.Conv2d(inputs, hidden, 1, bias=False), norm=normalise(norm, hidden), relu=nn.ReLU())
        self.wider: nn.Module = wider if expansion > 1 else nn.Identity()
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.norm1, self.relu = normalise(norm, hidden), nn.ReLU()
        self.narrower = nn.Conv2d(hidden, width, 1, bias=False)
        self.norm2 = normalise(norm, width)
        self.added = stride == 1 and inputs == width

    def forward(self, x: Tensor) -> Tensor:
        """[samples, inputs, h, w] to [samples, width, h / stride, w / stride]."""
        inner = self.relu(self.norm1(self.depthwise(self.wider(x))))
        out = self.norm2(self.narrower(inner))
        return x + out if self.added else out


@network("mobilenet-v2-small")
def mobilenet_v2_small(
    channels: int = 3,
    size: int = 32,
    classes: int = 10,
    multiplier: float = 1.0,
    norm: Norm = "batch",
    height: int = 0,
    width: int = 0,
) -> nn.Module:
    """A convolution and seven inverted residuals, 16 to 64 wide, then 128 channels: 86,922 parameters for CIFAR-10.

    Args:
        channels: of the pictures.
        size: of square pictures, in pixels.
        classes: number of them.
        multiplier: of all widths; they are whole numbers, 4 at least.
        norm: behind each convolution.
        height: of other pictures.
        width: of other pictures.

    Raises:
        ConfigError: pictures too small, or a multiplier that is not above 0.
    """
    sides("mobilenet-v2-small", size, height, width, 8)
    if multiplier <= 0:
        raise ConfigError(
            f"model 'mobilenet-v2-small': multiplier = {multiplier}: expected a number above 0, such as 0.5"
        )

    def wide(count: int) -> int:
        return max(4, round(multiplier * count))

    inputs, last = wide(16), wide(128)
    stem = chain(
        conv=nn.Conv2d(channels, inputs, 3, padding=1, bias=False), norm=normalise(norm, inputs), relu=nn.ReLU()
    )
    blocks: dict[str, nn.Module] = {}
    for expansion, outputs, count, stride in PLAN:
        for number in range(count):
            block = Inverted(inputs, wide(outputs), expansion, stride if number == 0 else 1, norm)
            blocks[f"block{len(blocks) + 1}"] = block
            inputs = wide(outputs)
    rest = chain(
        **blocks,
        conv=nn.Conv2d(inputs, last, 1, bias=False),
        norm=normalise(norm, last),
        relu=nn.ReLU(),
        average=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
    )
    net = cut(stem, rest, nn.Linear(last, classes))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return net
