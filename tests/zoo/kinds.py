"""Networks of every kind of data, small, with a batch of their inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedbonsai.arch import Arch
from fedbonsai.model import Model
from fedbonsai.objectives import Tokens

KINDS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {  # network, options, shape of one input
    "cnn1d": ("cnn1d", {"length": 20, "features": 3, "classes": 4, "widths": (8, 12)}, (20, 3)),
    "ds-cnn": ("ds-cnn", {"length": 20, "features": 10, "classes": 4, "widths": (8, 8, 12)}, (20, 10)),
    "gru": ("gru", {"length": 9, "features": 3, "classes": 4, "hidden": 8, "layers": 2, "read": "mean"}, (9, 3)),
    "tabular-mlp": ("tabular-mlp", {"features": 7, "classes": 1, "widths": (12, 8)}, (7,)),
    "char-gru": ("char-gru", {"length": 9, "vocabulary": 11, "classes": 11, "hidden": 8}, (9,)),
    "tokens": (
        "tiny-transformer",
        {"length": 9, "vocabulary": 11, "classes": 11, "width": 8, "heads": 2, "hidden": 12},
        (9,),
    ),
    "series": (
        "tiny-transformer",
        {"length": 9, "features": 3, "classes": 4, "width": 8, "heads": 2, "hidden": 12},
        (9, 3),
    ),
    "mobilenet-v2-small": ("mobilenet-v2-small", {"size": 8, "classes": 4, "multiplier": 0.5}, (3, 8, 8)),
}
WORDS = ("char-gru", "tokens")  # kinds whose inputs are whole numbers


def model(kind: str, seed: int = 0, **more: int) -> Model:
    """Of a kind, with its initial weights; ``more`` are options in place of those above."""
    name, options, _ = KINDS[kind]
    options = options | more
    return Model.init(Arch(name, options, Tokens()) if kind in WORDS else Arch(name, options), seed)


def inputs(kind: str, count: int = 3, seed: int = 0, length: int = 0) -> Tensor:
    """A batch of a kind; rows of another length where one is given."""
    _, options, shape = KINDS[kind]
    shape = (length, *shape[1:]) if length else shape
    random = torch.Generator().manual_seed(seed)
    if kind in WORDS:
        return torch.randint(0, options["vocabulary"], (count, *shape), generator=random)
    return torch.randn(count, *shape, generator=random)
