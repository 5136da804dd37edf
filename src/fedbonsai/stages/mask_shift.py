"""A mask of which only a bounded part shifts from one round to the next (GlueFL: He et al., MLSys 2023, arXiv 2212.01523).

Where top-k chooses anew each time, a device that missed ten rounds may need nearly ten times k coordinates. Here (1 - shift) k
are chosen from those of the last change, and shift k from all others.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedbonsai.stages.codec import Chain, Sparse, Sparsifier
from fedbonsai.tree import Tree, Weights, add, subtract


def bounded(goal: Tree, replica: Tree, last: Mapping[str, Sparse], topk: Sparsifier, shift: float) -> Weights:
    """The replica with the goal's values in the coordinates that may move: a chain with ``topk`` chooses no others.

    Args:
        goal: weights of the server.
        replica: what devices hold.
        last: the last change.
        topk: of the chain, with a share.
        shift: part of the share for coordinates that the last change did not have.
    """
    share, change = topk.share or 1.0, subtract(goal, replica)
    inside = {name: _at(value, last.get(name)) for name, value in change.items()}
    stay = _kept(inside, topk.keeping(share * (1 - shift)))
    rest = {name: value.masked_fill(stay[name] != 0, 0) for name, value in change.items()}
    new = _kept(rest, topk.keeping(share * shift))
    return add(replica, {name: stay[name] + new[name] for name in change})


def _at(value: Tensor, sent: Sparse | None) -> Tensor:
    """The values in the coordinates that were sent, and zeros."""
    if sent is None or sent.indices is None:
        return value if sent is not None else torch.zeros_like(value)
    places = sent.indices.to(value.device)
    flat = torch.zeros_like(value, memory_format=torch.contiguous_format).reshape(-1)
    flat.scatter_(0, places, value.reshape(-1).index_select(0, places))
    return flat.reshape(value.shape)


def _kept(change: Tree, topk: Sparsifier) -> Weights:
    return Chain((topk,)).pack(change, 0).dense(change)
