"""Error feedback around a chain: what a client holds back, and what its server must hold for EF21.

``apply`` is the client's half of an uplink, ``receive`` the server's. Memory is a plain dict of tensors and a round
number, so it travels by the wire and lives where the fleet keeps it; neither half changes what it was given.
Sources: EF14, Seide et al. 2014 and Stich et al. (arXiv 1809.07599); EF21, Richtarik et al. (arXiv 2106.05203).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from fedbonsai.settings import raise_all, when
from fedbonsai.stages.codec.chain import Chain
from fedbonsai.stages.codec.pack import eligible
from fedbonsai.stages.codec.packed import Packed
from fedbonsai.stages.codec.registry import shipped
from fedbonsai.stages.codec.stages import Feedback
from fedbonsai.stages.codec.tensors import Sparse
from fedbonsai.tree import Tree, Weights

Memory = dict[str, Any]  # "residual" (EF14) or "estimate" (EF21): name -> tensor; "round": when they were last used


@shipped("ef14")
class EF14(Feedback):
    """Error feedback: what was not sent is added to the next update (Seide et al. 2014; Stich et al. 2018).

    x = D + e; send C(x); e = x - xhat, with xhat as the receiver decodes it, so that also the error of the quantizer
    returns; what is owed to a tensor that is now sent as it is, is sent with it.

    Attributes:
        decay: lambda_e, factor on the residual of a client that returns after missing a round.
        reset: R_max, missed rounds after which the residual is dropped; 0 keeps it for ever.
    """

    primary, key = "decay", "residual"
    decay: float = 1.0
    reset: int = 20

    def __post_init__(self) -> None:
        wrong = not 0 <= self.decay <= 1
        raise_all(when((wrong, f"decay = {self.decay}: expected 0 to 1, 1 forgets nothing")) + _reset(self.reset))

    def target(self, update: Tree, held: Tree, names: list[str], missed: int) -> Weights:
        """The update with what is owed."""
        alpha = self.decay if missed > 0 else 1.0
        return {name: torch.add(update[name], value, alpha=alpha) for name, value in held.items()}

    def kept(self, target: Tree, held: Tree, sent: Mapping[str, Sparse], names: list[str]) -> Weights:
        """What did not arrive."""
        return {name: sent[name].added(target[name], -1) for name in names}

    def withheld(self, kept: Tree) -> Tree:
        """All of it."""
        return kept


@shipped("ef21")
class EF21(Feedback):
    """Both ends keep an estimate g of the update, and C(update - g) is sent (Richtarik et al. 2021); g += xhat.

    Attributes:
        reset: missed rounds after which both ends drop g; 0 keeps it for ever.
    """

    primary, key, estimates = "reset", "estimate", True
    reset: int = 0

    def __post_init__(self) -> None:
        raise_all(_reset(self.reset))

    def target(self, update: Tree, held: Tree, names: list[str], missed: int) -> Weights:
        """The change of the estimate."""
        return {name: update[name] - held[name] for name in names if name in held}

    def kept(self, target: Tree, held: Tree, sent: Mapping[str, Sparse], names: list[str]) -> Weights:
        """The new estimate, equal at both ends to the bit."""
        return {name: sent[name].added(held.get(name, torch.zeros_like(target[name])), 1) for name in names}

    def check(self, memory: Mapping[str, Any]) -> None:
        """A residual is no estimate."""
        if memory.get(EF14.key):
            raise ValueError(
                "a residual of ef14 is held, the chain feeds back by ef21; drop the memory when it changes"
            )


def _reset(reset: int) -> list[str]:
    return when((reset < 0, f"reset = {reset}: expected missed rounds >= 0, 0 for never"))


def apply(
    chain: Chain, tree: Tree, memory: Mapping[str, Any], seed: int, round: int | None = None, mask: Tree | None = None
) -> tuple[Packed, Memory]:
    """Compress an update, with the feedback that the chain asks for; without it the memory comes back as it is.

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
    held, missed = _held(stage, memory, round, tree)
    names = names_with_feedback(chain, tree, mask)
    target: Weights = {**tree, **stage.target(tree, held, names, missed)}
    packed = chain.pack(target, seed, mask)
    return packed, _remember(stage, stage.kept(target, held, packed.sparse(tree, mask), names), round)


def receive(
    chain: Chain,
    packed: Packed,
    like: Tree,
    memory: Mapping[str, Any],
    round: int | None = None,
    mask: Tree | None = None,
) -> tuple[Weights, Memory]:
    """The server's half: the update that a client's packed one stands for, and what the server holds of that client.

    Only estimates need memory here, one for each client, equal to the client's own to the bit.

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
    if stage is None or not stage.estimates:
        return packed.dense(like, mask), dict(memory)
    held, _ = _held(stage, memory, round, like)
    sent = packed.sparse(like, mask)
    kept = stage.kept(like, held, sent, names_with_feedback(chain, like, mask))
    # a copy: what is kept is never handed out
    update = {name: kept[name].clone() if name in kept else sent[name].dense(value) for name, value in like.items()}
    return update, _remember(stage, kept, round)


def names_with_feedback(chain: Chain, tree: Tree, mask: Tree | None = None) -> list[str]:
    """Names that are compressed with loss; both ends find the same ones."""
    return [name for name, value in tree.items() if eligible(name, value, chain.members.sparsifier, mask)]


def _held(stage: Feedback, memory: Mapping[str, Any], round: int | None, tree: Tree) -> tuple[Tree, int]:
    """What the memory holds, unless too many rounds were missed, and how many were."""
    last = cast("int | None", memory.get("round"))
    missed = 0 if last is None or round is None else max(0, round - last - 1)
    stage.check(memory)
    held = cast("Tree", memory.get(stage.key, {})) if not (stage.reset and missed >= stage.reset) else {}
    for name, value in held.items():
        if name not in tree or value.shape != tree[name].shape:
            now = list(tree[name].shape) if name in tree else "no such tensor"
            raise ValueError(
                f"{stage.key} of {name!r} has shape {list(value.shape)}, the update {now}; "
                "drop the memory when the architecture changes"
            )
    return held, missed


def _remember(stage: Feedback, kept: Weights, round: int | None) -> Memory:
    return {stage.key: kept} if round is None else {stage.key: kept, "round": round}
