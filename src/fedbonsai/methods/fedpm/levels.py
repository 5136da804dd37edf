"""Probabilities as whole steps of a scale: exact for a mean of few masks, and small behind an entropy coder."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedbonsai.errors import BadMessage
from fedbonsai.stages.codec import integers
from fedbonsai.stages.codec.cursor import Cursor
from fedbonsai.stages.codec.entropy import Entropy
from fedbonsai.tree import Tree, Weights

Coder = Literal["portable", "range"]
MOST = 255  # steps that a byte can tell


def rounded(ones: Tensor, total: int, steps: int) -> Tensor:
    """``ones / total`` in whole steps of ``1 / steps``, halves up.

    >>> rounded(torch.tensor([0, 1, 2, 3]), 3, 2).tolist()
    [0, 1, 1, 2]
    """
    return (2 * ones.long() * steps + total) // (2 * total)


def packed_levels(levels: Tree, steps: int, coder: Coder) -> dict[str, bytes]:
    """Whole numbers from 0 to ``steps``, by name."""
    entropy = Entropy("range" if coder == "range" else "zstd")
    found: dict[str, bytes] = {}
    for name, value in levels.items():
        how, parts = integers.encode(value.reshape(-1).numpy().astype(np.uint8), steps.bit_length(), entropy)
        found[name] = b"".join((bytes((how,)), *(bytes(part) for part in parts)))
    return found


def levels_of(packed: dict[str, bytes], steps: int, like: Tree) -> Weights:
    """Inverse of `packed_levels`.

    Raises:
        BadMessage: anything that it does not make.
    """
    if packed.keys() != like.keys() or not 0 < steps <= MOST:
        raise BadMessage(f"levels of {sorted(packed)} in {steps} steps, expected {sorted(like)} in 1 to {MOST}")
    found: Weights = {}
    for name, value in like.items():
        cursor = Cursor(memoryview(packed[name]))
        codes = integers.decode(cursor.byte(), cursor, value.numel(), steps.bit_length())
        if cursor.left or int(codes.max(initial=0)) > steps:
            raise BadMessage(f"levels of {name}: expected {value.numel()} whole numbers up to {steps} and nothing more")
        found[name] = torch.from_numpy(codes.astype(np.int64)).reshape(value.shape)
    return found
