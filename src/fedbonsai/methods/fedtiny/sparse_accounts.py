"""Size and cost of a model under masks, and the bytes that FedTiny's and FedRTS's papers count for it.

By the rules of `count`: each tensor in the cheapest format, 4 bytes a value, statistics of normalisation among them; what
really travels is in the ledger. specs/fedtiny §1.4 and §3, after FedRTS (arXiv 2501.19122, section F).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fedbonsai.methods.fedtiny.pool import Counts
from fedbonsai.stages.pruning import count
from fedbonsai.stages.updates import statistics_of
from fedbonsai.tree import Tree, size


def selection_bytes(weights: Tree, counts: Sequence[Counts], devices: int, by: str) -> tuple[int, int]:
    """Bytes down and up of the selection: down sum_c O_s(m_c) + C B_bn, up C B_bn + 4 C, for each device.

    Args:
        weights: of the model.
        counts: weights that each candidate keeps, by name.
        devices: that take part.
        by: ``adaptive``; ``vanilla`` moves no statistics; ``none`` nothing at all.
    """
    if by == "none":
        return 0, 0
    moved = 4 * size(statistics_of(weights)) * len(counts) * (by == "adaptive")
    down = sum(
        count.storage_bytes(weights, {name: torch.arange(weights[name].numel()) < k for name, k in each.items()})
        for each in counts
    )
    return devices * (down + moved), devices * (moved + 4 * len(counts))


def round_bytes(weights: Tree, masks: Tree, counts: Mapping[str, int], asked: int, answered: int) -> tuple[int, int]:
    """Bytes down and up of a round: O_s each way, and up O_xi for ``counts`` gradients where the round adjusts."""
    storage = count.storage_bytes(weights, masks)
    return asked * storage, answered * (storage + count.growth_bytes(weights, counts))
