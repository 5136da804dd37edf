"""A drawn mask on the wire, coded under the probabilities that both ends hold: about the entropy of each weight's own draw.

Weights are sorted by the level of their probability, and each level's bits are coded by themselves; where most are kept, the
places of those that are not are written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedbonsai.errors import BadMessage
from fedbonsai.methods.fedpm.levels import Coder
from fedbonsai.stages.pruning.masks import Masks
from fedbonsai.stages.pruning.places import packed_places, places_of
from fedbonsai.tree import Tree


def packed_draw(masks: Tree, levels: Tree, steps: int, coder: Coder) -> tuple[bytes, ...]:
    """Masks, as a part for each level from 0 to ``steps``; an empty one where no weight has it.

    Args:
        masks: by name.
        levels: whole steps of the probabilities, by the same names.
        steps: of the scale.
        coder: of places.
    """
    flat, level = _row({name: masks[name] for name in levels}), _row(levels)
    codec = "best" if coder == "range" else "auto"
    parts: list[bytes] = []
    for at in range(steps + 1):
        bits = flat[level == at] ^ (2 * at > steps)
        parts.append(packed_places(np.flatnonzero(bits.numpy()), len(bits), codec) if len(bits) else b"")
    return tuple(parts)


def draw_of(packed: Sequence[bytes], levels: Tree, steps: int) -> Masks:
    """Inverse of `packed_draw`.

    Raises:
        BadMessage: anything that it does not make.
    """
    level = _row(levels)
    flat = torch.zeros(level.shape, dtype=torch.bool)
    if len(packed) != steps + 1:
        raise BadMessage(f"a mask in {len(packed)} parts, expected {steps + 1}")
    for at, part in enumerate(packed):
        inside = level == at
        count = int(inside.sum())
        if not count and part:
            raise BadMessage(f"places of level {at}, which no weight has")
        bits = torch.zeros(count, dtype=torch.bool)
        if count:
            bits[torch.from_numpy(places_of(part, count))] = True
        flat[inside] = bits ^ (2 * at > steps)
    parts = flat.split([value.numel() for value in levels.values()])
    return {name: part.reshape(value.shape) for (name, value), part in zip(levels.items(), parts, strict=True)}


def _row(values: Tree) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values.values()])
