"""Linear layers for tables [features]."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import nn

from fedbonsai.arch import network
from fedbonsai.errors import ConfigError
from fedbonsai.zoo.parts import chain, cut, normalise, positive


@network("tabular-mlp")
def tabular_mlp(
    features: int = 23, classes: int = 1, widths: tuple[int, ...] = (64, 32), norm: Literal["batch", "none"] = "batch"
) -> nn.Module:
    """Hidden layers of the given widths, normalised by batch or not: 3,841 parameters by default.

    Raises:
        ConfigError: a width below 1, or another normalisation.
    """
    positive("tabular-mlp", features=features, widths=tuple(widths))
    if norm not in ("batch", "none"):
        raise ConfigError(f"model 'tabular-mlp': norm = {norm!r}: expected 'batch' or 'none'")
    blocks: list[dict[str, nn.Module]] = []
    for number, (inputs, outputs) in enumerate(pairwise((features, *widths)), 1):
        block: dict[str, nn.Module] = {f"fc{number}": nn.Linear(inputs, outputs)}
        if norm == "batch":
            block[f"norm{number}"] = normalise(norm, outputs, 1)
        blocks.append(block | {f"relu{number}": nn.ReLU()})
    rest = {name: layer for block in blocks[1:] for name, layer in block.items()}
    return cut(chain(**(blocks[0] if blocks else {})), chain(**rest), nn.Linear((features, *widths)[-1], classes))
