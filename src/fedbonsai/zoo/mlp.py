"""Linear layers and ReLUs: the smallest network, 64-64-32-10 for the 8x8 digits."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from fedbonsai.arch import network
from fedbonsai.zoo.parts import chain, cut, positive, sides


@network("mlp")
def mlp(
    channels: int = 1,
    size: int = 8,
    classes: int = 10,
    widths: tuple[int, ...] = (64, 32),
    height: int = 0,
    width: int = 0,
) -> nn.Module:
    """Hidden layers of the given widths; the first of them is the stem. Without any it is logistic regression.

    Raises:
        ConfigError: a width below 1.
    """
    positive("mlp", widths=tuple(widths))
    high, wide = sides("mlp", size, height, width)
    sizes = [channels * high * wide, *widths]
    layers: list[dict[str, nn.Module]] = [
        {f"fc{number}": nn.Linear(inputs, outputs), f"relu{number}": nn.ReLU()}
        for number, (inputs, outputs) in enumerate(pairwise(sizes), 1)
    ]
    stem = chain(flatten=nn.Flatten(), **(layers[0] if layers else {}))
    features = chain(**{name: layer for pair in layers[1:] for name, layer in pair.items()})
    return cut(stem, features, nn.Linear(sizes[-1], classes))
