"""Networks for series [length, features]: windows of sensors, heart beats, frames of speech.

`ds_cnn` is the depthwise-separable network for keywords of Zhang et al., "Hello Edge", 2017; the other two are ours.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from fedbonsai.arch import network
from fedbonsai.errors import ConfigError
from fedbonsai.zoo.parts import Last, Mean, Norm, Picture, Turned, chain, cut, normalise, positive


@network("cnn1d")
def cnn1d(
    length: int = 100, features: int = 6, classes: int = 5, widths: tuple[int, ...] = (32, 48, 64), norm: Norm = "batch"
) -> nn.Module:
    """Convolutions over time, kernel 5, each normalised; halved between them, then averaged: 24,613 parameters by default.

    The average makes the number of parameters the same for series of any length.

    Raises:
        ConfigError: a width below 1, or a series that is too short to be halved so often.
    """
    positive("cnn1d", features=features, widths=tuple(widths))
    if not widths or length < 1 << (len(widths) - 1):
        raise ConfigError(
            f"model 'cnn1d' halves a series between its {len(widths)} convolutions: expected one at least, and a length of "
            f"{1 << max(0, len(widths) - 1)} or more, got {length}; give fewer widths"
        )
    blocks: list[dict[str, nn.Module]] = []
    for number, (inputs, outputs) in enumerate(pairwise((features, *widths)), 1):
        block: dict[str, nn.Module] = {
            f"conv{number}": nn.Conv1d(inputs, outputs, 5, padding=2, bias=False),
            f"norm{number}": normalise(norm, outputs, 1),
            f"relu{number}": nn.ReLU(),
        }
        last = number == len(widths)
        blocks.append(block | ({} if last else {f"pool{number}": nn.MaxPool1d(2)}))
    later = {name: layer for block in blocks[1:] for name, layer in block.items()}
    stem = chain(turn=Turned(), **blocks[0])
    rest = chain(**later, average=nn.AdaptiveAvgPool1d(1), flatten=nn.Flatten())
    return cut(stem, rest, nn.Linear(widths[-1], classes))


@network("ds-cnn")
def ds_cnn(
    length: int = 49,
    features: int = 10,
    classes: int = 40,
    widths: tuple[int, ...] = (48, 48, 48, 48),
    kernel: tuple[int, int] = (10, 4),
    norm: Norm = "batch",
) -> nn.Module:
    """A convolution and three depthwise-separable ones, then an average: 12,760 parameters for 40 keywords.

    The kernel of the first convolution is that of the paper, 10 frames by 4 coefficients at every second of both; the
    others are 3x3 for each channel and 1x1 across. No biases but the classifier's. Other widths and kernels give 12,760
    parameters too, such as 80 channels, one block and a kernel of 3x8; these are the ones with the paper's kernel.

    Args:
        length: of a series, in frames.
        features: of a frame.
        classes: number of them.
        widths: channels of the first convolution, and of each block.
        kernel: of the first convolution, frames and features.
        norm: behind each convolution.

    Raises:
        ConfigError: a width below 1, or a series that is smaller than the kernel.
    """
    positive("ds-cnn", widths=tuple(widths), kernel=tuple(kernel))
    padding = (kernel[0] // 2, (kernel[1] - 1) // 2)
    if not widths or any(n + 2 * p < k for n, p, k in zip((length, features), padding, kernel, strict=True)):
        raise ConfigError(
            f"model 'ds-cnn': series of {length}x{features}, kernel = {list(kernel)}, widths = {list(widths)}: expected a "
            "kernel that is not larger than a series with half of it on each side, and one width at least"
        )
    stem = chain(
        picture=Picture(),
        conv=nn.Conv2d(1, widths[0], kernel, 2, padding, bias=False),
        norm=normalise(norm, widths[0]),
        relu=nn.ReLU(),
    )
    blocks: dict[str, nn.Module] = {}
    for number, (inputs, outputs) in enumerate(pairwise(widths), 1):
        blocks[f"block{number}"] = chain(
            depthwise=nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
            norm1=normalise(norm, inputs),
            relu1=nn.ReLU(),
            pointwise=nn.Conv2d(inputs, outputs, 1, bias=False),
            norm2=normalise(norm, outputs),
            relu2=nn.ReLU(),
        )
    rest = chain(**blocks, average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    return cut(stem, rest, nn.Linear(widths[-1], classes))


class Recurrent(nn.Module):
    """One layer of gated recurrent units (Cho et al. 2014), of which all states go on."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(inputs, hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """[samples, length, inputs] to [samples, length, hidden]."""
        return self.gru(x)[0]


def recurrent(inputs: int, hidden: int, layers: int) -> dict[str, nn.Module]:
    """Layers of gated recurrent units in a row, by name."""
    return {f"rnn{number}": Recurrent(hidden if number > 1 else inputs, hidden) for number in range(1, layers + 1)}


@network("gru")
def gru(
    length: int = 100,
    features: int = 6,
    classes: int = 5,
    hidden: int = 64,
    layers: int = 1,
    read: Literal["last", "mean"] = "last",
) -> nn.Module:
    """Gated recurrent units, then the last state or the mean of all, and a linear layer: 14,149 parameters by default.

    They are as many for series of any length.

    Raises:
        ConfigError: an option below 1, or another way to read.
    """
    positive("gru", length=length, features=features, hidden=hidden, layers=layers)
    if read not in ("last", "mean"):
        raise ConfigError(f"model 'gru': read = {read!r}: expected 'last' or 'mean'")
    first, *rest = recurrent(features, hidden, layers).items()
    reads = Last() if read == "last" else Mean()
    return cut(chain(**dict([first])), chain(**dict(rest), read=reads), nn.Linear(hidden, classes))
