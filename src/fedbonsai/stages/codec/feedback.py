"""Error feedback around a chain: what a client holds back, and what its server must hold for EF21.

``apply`` is the client's half of an uplink, ``receive`` the server's. Memory is a plain dict of tensors and a round
number, so it travels by the wire and lives where the fleet keeps it; neither half changes what it was given.
Sources: EF14, Seide et al. 2014 and Stich et al. (arXiv 1809.07599); EF21, Richtarik et al. (arXiv 2106.05203).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from fedbonsai.stages.codec.chain import Chain
from fedbonsai.stages.codec.pack import eligible
from fedbonsai.stages.codec.packed import Packed, Sparse, scatter
from fedbonsai.stages.codec.stages import EF14, EF21, Known, Sparsifier
from fedbonsai.tree import Tree, Weights

Memory = dict[str, Any]  # "residual" (EF14) or "estimate" (EF21): name -> tensor; "round": when they were last used


def apply(
    chain: Chain, tree: Tree, memory: Mapping[str, Any], seed: int, round: int | None = None, mask: Tree | None = None
) -> tuple[Packed, Memory]:
    """Compress an update, with the feedback that the chain asks for.

    EF14: x = D + e; send C(x); e = x - xhat, with xhat as the receiver decodes it, so that also the error of the
    quantizer returns; what is owed to a tensor that is now sent as it is, is sent with it. EF21: send C(D - g);
    g += xhat. Without feedback the memory comes back as it is.

    Args:
        chain: stages.
        tree: update D of this client.
        memory: what the last call returned; {} at first.
        seed: of this exchange.
        round: number of this round, for decay and reset; None where neither is wanted.
        mask: for ``known``, as in `Chain.pack`.

    Returns:
        What is sent, and the new memory.

    Raises:
        NotFinite: nothing was changed; the client's task reports.
    """
    stage = chain.feedback
    if stage is None:
        return chain.pack(tree, seed, mask), dict(memory)
    key = "residual" if isinstance(stage, EF14) else "estimate"
    held, missed = _held(memory, key, stage.reset, round, tree)
    names = fed_back(chain, tree, mask)
    if isinstance(stage, EF14):
        alpha = stage.decay if missed > 0 else 1.0
        owed = {name: torch.add(tree[name], value, alpha=alpha) for name, value in held.items()}
    else:
        owed = {name: tree[name] - held[name] for name in names if name in held}
    target: Weights = {**tree, **owed}
    packed = chain.pack(target, seed, mask)
    sent = packed.sparse(tree, mask)
    if isinstance(stage, EF14):
        kept = {name: _moved(target[name], sent[name], -1) for name in names}
    else:
        kept = {name: _moved(held.get(name, torch.zeros_like(tree[name])), sent[name], 1) for name in names}
    return packed, _remember(key, kept, round)


def receive(
    chain: Chain,
    packed: Packed,
    like: Tree,
    memory: Mapping[str, Any],
    round: int | None = None,
    mask: Tree | None = None,
) -> tuple[Weights, Memory]:
    """The server's half: the update that a client's packed one stands for, and what the server holds of that client.

    Only EF21 needs memory here, one estimate for each client, equal to the client's own to the bit.

    Args:
        chain: the client's.
        packed: from `apply`.
        like: names, types and shapes of the update.
        memory: of this client at the server; {} at first.
        round: as the client gave it.
        mask: as the client gave it.

    Raises:
        BadMessage: the payload is not one of this tree.
    """
    stage = chain.feedback
    if not isinstance(stage, EF21):
        return packed.dense(like, mask), dict(memory)
    held, _ = _held(memory, "estimate", stage.reset, round, like)
    sent = packed.sparse(like, mask)
    names = fed_back(chain, like, mask)
    kept = {name: _moved(held.get(name, torch.zeros_like(like[name])), sent[name], 1) for name in names}
    # a copy: what is kept is never handed out
    update = {name: kept[name].clone() if name in kept else scatter(sent[name], value) for name, value in like.items()}
    return update, _remember("estimate", kept, round)


def fed_back(chain: Chain, tree: Tree, mask: Tree | None = None) -> list[str]:
    """Names that are compressed with loss; both ends find the same ones."""
    sparsifier = chain.parts.get("sparsifier")
    assert sparsifier is None or isinstance(sparsifier, Sparsifier)
    whole = isinstance(sparsifier, Known)
    return [
        name
        for name, value in tree.items()
        if eligible(name, value, sparsifier) and not (whole and name not in (mask or {}))
    ]


def _held(memory: Mapping[str, Any], key: str, reset: int, round: int | None, tree: Tree) -> tuple[Tree, int]:
    """What the memory holds, unless too many rounds were missed, and how many were."""
    last = cast("int | None", memory.get("round"))
    missed = 0 if last is None or round is None else max(0, round - last - 1)
    if key == "estimate" and memory.get("residual"):
        raise ValueError("a residual of ef14 is held, the chain feeds back by ef21; drop the memory when it changes")
    held = cast("Tree", memory.get(key, {})) if not (reset and missed >= reset) else {}
    for name, value in held.items():
        if name not in tree or value.shape != tree[name].shape:
            now = list(tree[name].shape) if name in tree else "no such tensor"
            raise ValueError(
                f"{key} of {name!r} has shape {list(value.shape)}, the update {now}; "
                "drop the memory when the architecture changes"
            )
    return held, missed


def _moved(base: Tensor, sent: Sparse, sign: int) -> Tensor:
    """``base + sign * sent``, in new memory."""
    if sent.indices is None:
        return torch.add(base, sent.values.reshape(base.shape).to(base.device), alpha=sign)
    out = base.detach().clone().contiguous()
    flat = out.view(-1)
    places = sent.indices.to(base.device)
    flat[places] += sign * sent.values.to(base.device)
    return out


def _remember(key: str, kept: Weights, round: int | None) -> Memory:
    return {key: kept} if round is None else {key: kept, "round": round}
