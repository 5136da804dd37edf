"""A coded way up under masks that both ends hold: changes of kept weights, by any chain, when a gate lets them through.

Between a method that prunes single weights and the codecs: positions cost nothing, since both ends know them (`Known`),
what the codecs lose stays in the client's memory (`codec.apply`), and a gate may close (`stages.selective`). Every value
that travels is coded, those of tensors without a mask too; running statistics of normalisation go as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fedbonsai import tree
from fedbonsai.core import Client, Memory
from fedbonsai.stages.codec import Chain, Known, Packed
from fedbonsai.stages.codec.pack import eligible
from fedbonsai.stages.codec.stages import FAMILIES
from fedbonsai.stages.pruning.gates import Gate, Use
from fedbonsai.stages.pruning.masks import Masks, masked
from fedbonsai.stages.selective import Rule, selected
from fedbonsai.stages.updates import FEEDBACK
from fedbonsai.tree import Tree, Weights
from fedbonsai.wire import message


@message("masked-upload/skip@1")
class Skip:
    """Nothing new: the mark alone."""


def rule_of(uplink: Chain, gate: Gate, t: int) -> Rule | None:
    """How clients send in round ``t``; None where weights travel as they are and always."""
    if not uplink.stages and gate.always:
        return None
    return Rule(under_masks(uplink), True, False, gate, 0.0, t)


def under_masks(uplink: Chain) -> Chain:
    """The chain with the masks as its sparsifier.

    Raises:
        ValueError: the stages make no sense together.
    """
    return Chain(tuple(sorted((*uplink.stages, Known()), key=lambda stage: FAMILIES.index(stage.family))))


def faults(uplink: Chain, gate: Gate) -> list[str]:
    """Reasons why a chain or a gate has no meaning under masks; empty if it has."""
    found: list[str] = []
    sparse = uplink.sparsifier
    if sparse is not None and sparse.masks:
        found.append("uplink: the method knows its masks and puts 'known' in by itself; leave it out")
    elif sparse is not None:
        found.append(
            f"uplink: {sparse.short} chooses positions anew, beside masks by which both ends know them already; leave it "
            "out and quantise the values, or use method 'averaging' for a dense model"
        )
    if uplink.estimates:
        found.append(
            "uplink: ef21 keeps an estimate of each client at both ends, which masks that change tear apart; use ef14"
        )
    found += gate.faults(Use(changes=True, cached=False, own=False, masked=True))
    if not found:
        try:
            under_masks(uplink)
        except ValueError as error:
            found.append(f"uplink under masks: {error}")
    return found


def everywhere(weights: Tree, masks: Tree) -> Masks:
    """The masks, and whole ones for what has none and can be coded; both ends find the same."""
    return {
        name: masks[name] if name in masks else torch.ones_like(value, dtype=torch.bool)
        for name, value in weights.items()
        if name in masks or eligible(name, value, None)
    }


def sent(
    rule: Rule, start: Tree, weights: Tree, masks: Tree, loss: float, memory: Memory, me: Client
) -> tuple[Packed | None, Memory]:
    """What a client sends of its change, or nothing, and its memory.

    What feedback owes to weights that have been pruned since is forgotten: nobody holds them any more.

    Args:
        rule: from `rule_of`.
        start: what it trained from, exactly zero where it is pruned.
        weights: what it came to, the same.
        masks: under which.
        loss: by which the gate judges.
        memory: of the client.
        me: whose seed draws.
    """
    held: Mapping[str, Any] | None = memory.get(FEEDBACK)
    if held is not None:
        memory = {**memory, FEEDBACK: {**held, "residual": masked(held["residual"], masks)}}
    return selected(rule, start, weights, loss, memory, me, everywhere(start, masks))


def changed(packed: Packed, start: Tree, masks: Tree) -> Weights:
    """The server's half: the weights that an upload stands for.

    Raises:
        BadMessage: it is damaged, or not under these masks.
    """
    return tree.add(start, packed.change(start, everywhere(start, masks)))
