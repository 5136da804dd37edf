"""What several networks are made of: the normalisation layer, the three named parts, the check of the image's size."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from fedbonsai.errors import ConfigError

Norm = Literal["batch", "group"]


def normalise(kind: str, width: int) -> nn.Module:
    """BatchNorm, or GroupNorm over groups of 16 channels (Wu and He 2018), which keeps no statistics of the data.

    Raises:
        ConfigError: any other kind.
    """
    if kind == "batch":
        return nn.BatchNorm2d(width)
    if kind == "group":
        return nn.GroupNorm(max(1, width // 16), width)
    raise ConfigError(f"norm = {kind!r}: expected 'batch' or 'group'")


def chain(**layers: nn.Module) -> nn.Sequential:
    """Layers in a row, by name."""
    return nn.Sequential(OrderedDict(layers))


def cut(stem: nn.Module, features: nn.Module, classifier: nn.Linear) -> nn.Sequential:
    """The three parts that every network of this package has."""
    return chain(stem=stem, features=features, classifier=classifier)


def fits(name: str, size: int, least: int) -> None:
    """Check that images are large enough for a network.

    Args:
        name: of the network, for the text.
        size: of the square images, in pixels.
        least: smallest size at which every layer still has a pixel to look at.

    Raises:
        ConfigError: too small.
    """
    if size < least:
        raise ConfigError(
            f"model {name!r} needs images of at least {least}x{least} pixels, got {size}x{size}; "
            "choose other data or a smaller network such as 'cnn-bn' or 'mlp'"
        )
