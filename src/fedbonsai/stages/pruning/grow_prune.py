"""The server's part of progressive pruning: a layer trades its least weights for its most wanted pruned ones.

FedTiny (Huang et al., ICDCS 2023, arXiv 2212.01977; specs/fedtiny §2.5), after RigL (Evci et al., ICML 2020).
Devices sent the largest gradients at pruned places (`top_gradients`); the places with the largest mean grow, and as many
active weights of the least magnitude are pruned. A layer's count never changes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedbonsai import tree
from fedbonsai.stages.codec.bits import Ints
from fedbonsai.stages.pruning.masks import Masks, keep_top
from fedbonsai.stages.pruning.places import Gradients
from fedbonsai.tree import Tree, Weights


def mean_gradients(answers: Sequence[tuple[float, Gradients]]) -> Gradients:
    """specs/fedtiny (8): the mean over devices by their shares, where a place that a device did not send counts as 0.

    Args:
        answers: a device's share, |D_k| / sum |D_j|, and what it sent.
    """
    found: dict[str, tuple[Ints, Tensor]] = {}
    for name in answers[0][1] if answers else ():
        places = np.concatenate([sent[name][0] for _, sent in answers])
        values = np.concatenate([share * sent[name][1].double().numpy() for share, sent in answers])
        distinct, which = np.unique(places, return_inverse=True)
        found[name] = distinct, torch.from_numpy(np.bincount(which, values, len(distinct)))
    return found


def shortened(answers: Sequence[tuple[float, Gradients]]) -> list[tuple[float, Gradients]]:
    """Shares so lowered that no device's gradients of a round count for more than the median of their norms."""
    norms = [math.sqrt(sum(tree.norm({"": v}) ** 2 for _, v in sent.values())) for _, sent in answers]
    most = statistics.median(norms) if norms else 0.0
    return [
        (share * most / norm if norm > most else share, sent)
        for (share, sent), norm in zip(answers, norms, strict=True)
    ]


@dataclass(frozen=True)
class Adjusted:
    """Weights and masks after growing and pruning, and how many weights grew: as many as were pruned."""

    weights: Weights
    masks: Masks
    regrown: int


def adjust(weights: Tree, masks: Tree, gradients: Gradients, counts: Mapping[str, int]) -> Adjusted:
    """Grow the places of largest |mean gradient|, prune as many of the smallest |weight| among those active before.

    Grown and pruned places come from disjoint sets, and both are left at exactly 0. Fewer distinct places than
    ``counts`` grow and prune that smaller number. Ties go to the lower place.
    """
    new_weights, new_masks, regrown = dict(weights), dict(masks), 0
    for name, (places, values) in gradients.items():
        count = min(counts[name], len(places))
        flat, active = weights[name].reshape(-1), masks[name].reshape(-1)
        grown = torch.from_numpy(places)[keep_top(values.abs(), count)]
        flipped = keep_top(torch.where(active, -flat.abs(), -torch.inf), count)
        flipped[grown] = True
        new_masks[name] = (active ^ flipped).reshape(masks[name].shape)
        new_weights[name] = torch.where(flipped, torch.zeros_like(flat), flat).reshape(weights[name].shape)
        regrown += count
    return Adjusted(new_weights, new_masks, regrown)
