"""What several networks are made of: normalisation, the three named parts, sizes of pictures, small layers of series."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from fedbonsai.errors import ConfigError

Norm = Literal["batch", "group"]


def normalise(kind: str, width: int, dimensions: int = 2) -> nn.Module:
    """BatchNorm, or GroupNorm over groups of 16 channels or more (Wu and He 2018), which keeps no statistics of the data.

    Args:
        kind: ``batch`` or ``group``.
        width: channels.
        dimensions: 2 for pictures, 1 for series and tables.

    Raises:
        ConfigError: any other kind.
    """
    if kind == "batch":
        return nn.BatchNorm2d(width) if dimensions == 2 else nn.BatchNorm1d(width)
    if kind == "group":
        return nn.GroupNorm(next(n for n in range(max(1, width // 16), 0, -1) if width % n == 0), width)
    raise ConfigError(f"norm = {kind!r}: expected 'batch' or 'group'")


def chain(**layers: nn.Module) -> nn.Sequential:
    """Layers in a row, by name."""
    return nn.Sequential(OrderedDict(layers))


def cut(stem: nn.Module, features: nn.Module, classifier: nn.Linear) -> nn.Sequential:
    """The three parts that every network of this package has."""
    return chain(stem=stem, features=features, classifier=classifier)


def sides(name: str, size: int, height: int = 0, width: int = 0, least: int = 1) -> tuple[int, int]:
    """Height and width of pictures: ``size`` is both, where these are 0.

    Args:
        name: of the network, for the text.
        size: of square pictures, in pixels.
        height: of others.
        width: of others.
        least: smallest side at which every layer still has a pixel to look at.

    Raises:
        ConfigError: too small, or one of the two sides alone.
    """
    if bool(height) != bool(width):
        raise ConfigError(
            f"model {name!r}: height = {height}, width = {width}: expected both, or size alone for square pictures"
        )
    high, wide = (height, width) if height else (size, size)
    if min(high, wide) < least:
        raise ConfigError(
            f"model {name!r} needs images of at least {least}x{least} pixels, got {high}x{wide}; "
            "choose other data or a smaller network such as 'cnn-bn' or 'mlp'"
        )
    return high, wide


def positive(name: str, **options: int | tuple[int, ...]) -> None:
    """Refuse options below 1.

    Raises:
        ConfigError: by their names.
    """
    for option, value in options.items():
        if min(value if isinstance(value, tuple) else (value,), default=1) < 1:
            shown = list(value) if isinstance(value, tuple) else value
            raise ConfigError(f"model {name!r}: {option} = {shown}: expected {'each ' * (shown != value)}at least 1")


class Turned(nn.Module):
    """A series as convolutions take it."""

    def forward(self, x: Tensor) -> Tensor:
        """[samples, length, features] to [samples, features, length]."""
        return x.transpose(1, 2)


class Picture(nn.Module):
    """A series as a picture of one channel."""

    def forward(self, x: Tensor) -> Tensor:
        """[samples, length, features] to [samples, 1, length, features]."""
        return x.unsqueeze(1)


class Tokens(nn.Embedding):
    """A vector for each token."""

    def forward(self, input: Tensor) -> Tensor:
        """Whole numbers of any type [samples, length] to [samples, length, width]."""
        return super().forward(input if input.is_floating_point() else input.long())


class Last(nn.Module):
    """The last of a row of vectors."""

    def forward(self, x: Tensor) -> Tensor:
        """[samples, length, width] to [samples, width]."""
        return x[:, -1]


class Mean(nn.Module):
    """The mean of a row of vectors."""

    def forward(self, x: Tensor) -> Tensor:
        """[samples, length, width] to [samples, width]."""
        return x.mean(1)
