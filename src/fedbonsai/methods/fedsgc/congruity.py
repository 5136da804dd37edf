"""Which weights go and come when a device's direction is held against the global one.

Tian, Liu, Li, Cheung, Wang, "Gradient-Congruity Guided Federated Sparse Training", 2024 (FedSGC, arXiv 2405.01189).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedbonsai.stages.pruning.masks import Masks, keep_top, masked
from fedbonsai.stages.pruning.readjust import counts_of
from fedbonsai.tree import Tree, Weights


def two_parts(score: Tensor, first: Tensor, second: Tensor, count: int, share: float) -> Tensor:
    """The ``count`` best scores: floor(share x count) of the first set, the rest of the second; one gives what the other lacks.

    Args:
        score: of all places.
        first: places of the first set.
        second: places of the second; the two have none in common.
        count: in all, at most as many as both have.
        share: of the first.
    """
    size, other = int(first.sum()), int(second.sum())
    part = max(min(int(share * count), size), count - other)
    one, two = (torch.where(where, score.double(), -torch.inf) for where in (first, second))
    return keep_top(one, part) | keep_top(two, count - part)


def congruent(
    weights: Tree,
    start: Tree,
    masks: Tree,
    gradients: Tree,
    direction: Tree,
    fraction: float,
    opposed: float,
    agreed: float,
) -> tuple[Weights, Masks]:
    """Weights and masks after each layer has traded floor(fraction times what it keeps).

    Args:
        weights: trained under the masks.
        start: from which they were trained.
        masks: by name.
        gradients: at the trained weights, at pruned places too.
        direction: d, signs of the global model's last step; a zero says nothing.
        fraction: share of a layer that is traded.
        opposed: lambda, share of what goes that moved here against d; the smallest go.
        agreed: beta, share of what comes whose step here would be along d; the largest gradients come.
    """
    kept: Masks = {}
    found: Masks = {}
    for name, count in counts_of(masks, fraction).items():
        mask, d = masks[name], direction[name]
        own = torch.where(mask, (weights[name] - start[name]).sign(), -gradients[name].sign())
        against, along = (d != 0) & (own == -d), (d != 0) & (own == d)
        gone = two_parts(-weights[name].abs(), mask & against, mask & ~against, count, opposed)
        come = two_parts(gradients[name].abs(), ~mask & along, ~mask & ~along, count, agreed)
        kept[name] = mask & ~gone
        found[name] = kept[name] | come
    return masked(weights, kept), found
