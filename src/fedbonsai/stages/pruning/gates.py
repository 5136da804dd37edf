"""Whether a client uploads at all: one bit for a client and round, decided on the device.

`Loss` is the gate of FL-PQSU (Xu et al., IEEE Access 2021; its authors' code), with two references that move on and so
cannot freeze; `Lazy` is the rule of LAQ (Sun et al. 2019/2022), `Agreement` that of CMFL (Wang et al., ICDCS 2019),
`Chance` what any of them must beat at the same rate. Every gate can be held to a bounded staleness by ``every``.
Distances and signs are of trained values: running statistics of normalisation, which are measured and have the scale of
the data, say nothing of what was learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, dataclass_transform

import torch

from fedbonsai import tree
from fedbonsai.choice import Choice
from fedbonsai.stages.updates import STATISTICS
from fedbonsai.tree import Tree, Weights, generator, seed_of
from fedbonsai.wire import message


@message("gate/seen@1")
class Seen:
    """What a client remembers: the loss to beat, and how many rounds in a row it has skipped.

    For gates that beat no loss the reference is the one at the last upload; None is a client that never uploaded.
    """

    reference: float | None = None
    skipped: int = 0


@dataclass(frozen=True)
class Evidence:
    """What a gate may look at; only what it asks for is computed.

    Attributes:
        loss: statistic of this round's training.
        draw: uniform in [0, 1), of this client and round.
        innovation: squared distance of this round's change, as it would be sent, to the one that was sent last.
        error: squared error of packing, of this change and of the one sent last together.
        moved: sum of xi_d ||w^(t+1-d) - w^(t-d)||^2 over the server's last D steps.
        agrees: share of this change's signs that are those of the global model's last one; None before there is one.
        t: round, from 0.
    """

    loss: float
    draw: Callable[[], float]
    innovation: Callable[[], float]
    error: Callable[[], float]
    moved: float
    agrees: Callable[[], float | None]
    t: int


class Gate(Choice):
    """When a client uploads."""

    every: int = 0  # at least one upload in this many rounds; 0 forces none


@dataclass_transform(frozen_default=True)
def _gate(name: str) -> Any:
    """Register a gate: a choice of the configuration that travels in requests as it is."""

    def register(cls: type[Gate]) -> type[Gate]:
        made = message(f"gate/{name}@1")(cls)
        made.choice_name = name
        made.choices[name] = made
        return made

    return register


@_gate("open")
class Open(Gate):
    """Always."""


@_gate("loss")
class Loss(Gate):
    """If the loss is below a remembered one."""

    rule: Literal["best", "previous", "smoothed"] = "smoothed"
    """The loss at the last upload; of the last round; or the running average of all rounds."""
    statistic: Literal["last", "mean", "valid"] = "mean"
    """Loss of the last mini-batch, before its step; mean over the round; or of the result on the validation part."""
    initial: float = 100.0
    """The loss to beat at first."""
    memory: float = 0.7
    """smoothed: weight of the average against this round's loss."""
    slack: float = 0.0
    """How far above the remembered loss, as a share of it, still passes."""
    every: int = 4
    """At least one upload in this many rounds; 0 forces none."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if not self.initial > 0 or not 0 <= self.memory < 1 or self.slack < 0 or self.every < 0:
            raise ValueError(
                f"initial = {self.initial}, memory = {self.memory}, slack = {self.slack}, every = {self.every}: "
                "expected initial > 0, memory in [0, 1), slack >= 0 and every >= 0"
            )


@_gate("lazy")
class Lazy(Gate):
    """LAQ: if the change is far enough from the one that was sent last, by how much the global model moves.

    A client that never uploaded does: there is nothing that the server could take again.
    """

    depth: int = 10
    """D: steps of the server that count."""
    xi: float = 0.08
    """Weight of each step."""
    every: int = 4
    """At least one upload in this many rounds; 0 forces none."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.depth < 1 or self.xi < 0 or self.every < 0:
            raise ValueError(
                f"depth = {self.depth}, xi = {self.xi}, every = {self.every}: expected depth >= 1, the others >= 0"
            )


@_gate("agreement")
class Agreement(Gate):
    """CMFL: if enough signs of the change are those of the global model's last change."""

    least: float = 0.6
    """v: the share."""
    falling: bool = False
    """v_t = v / sqrt(t) instead, with rounds counted from 1: the gate opens by and by."""
    every: int = 0
    """At least one upload in this many rounds; 0 forces none."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if not 0 <= self.least <= 1 or self.every < 0:
            raise ValueError(f"least = {self.least}, every = {self.every}: expected least in [0, 1], every >= 0")


@_gate("chance")
class Chance(Gate):
    """At random, but for a client's first upload: there would be nothing for the server to keep."""

    share: float = 0.5
    """Probability of an upload."""
    every: int = 0
    """At least one upload in this many rounds; 0 forces none."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if not 0 <= self.share <= 1 or self.every < 0:
            raise ValueError(f"share = {self.share}, every = {self.every}: expected share in [0, 1], every >= 0")


def decide(gate: Gate, found: Evidence, seen: Seen) -> tuple[bool, Seen]:
    """Whether to upload, and what to remember of this round.

    A loss that is NaN or infinite closes every gate, forced uploads included.
    """
    forced = gate.every > 0 and seen.skipped + 1 >= gate.every
    passes = math.isfinite(found.loss) and (forced or _passes(gate, found, seen))
    return passes, Seen(_reference(gate, found.loss, passes, seen), 0 if passes else seen.skipped + 1)


def _passes(gate: Gate, found: Evidence, seen: Seen) -> bool:
    how: Any = gate
    if isinstance(gate, Loss):
        return found.loss < (how.initial if seen.reference is None else seen.reference * (1 + how.slack))
    if isinstance(gate, Agreement):
        least = how.least / math.sqrt(found.t + 1) if how.falling else how.least
        return (agrees := found.agrees()) is None or agrees >= least
    if seen.reference is None:
        return True
    if isinstance(gate, Lazy):
        return found.innovation() > found.moved + 3 * found.error()
    return found.draw() < how.share if isinstance(gate, Chance) else True


def _reference(gate: Gate, loss: float, passes: bool, seen: Seen) -> float | None:
    how: Any = gate
    if not math.isfinite(loss):
        return seen.reference
    if not isinstance(gate, Loss) or how.rule == "best":
        return loss if passes else seen.reference
    if how.rule == "previous" or seen.reference is None:
        return loss
    return how.memory * seen.reference + (1 - how.memory) * loss


def agreement(change: Tree, other: Tree) -> float:
    """CMFL's relevance: share of trained values whose signs are equal in both; two zeros agree."""
    learned = _learned(change)
    same = sum(int((torch.sign(value) == torch.sign(other[name])).sum()) for name, value in learned.items())
    return same / max(1, tree.size(learned))


def moved(gate: Gate, steps: Sequence[float]) -> float:
    """LAQ's allowance from the squared norms of the server's last steps, latest first.

    With the mean of K changes for the server's step, the factor 1 / (alpha K)^2 of its sum form is one.
    """
    how: Any = gate
    return how.xi * math.fsum(steps[: how.depth]) if isinstance(gate, Lazy) else 0.0


def stepped(gate: Gate, steps: tuple[float, ...], new: Tree, old: Tree) -> tuple[float, ...]:
    """The squared norms that `moved` needs, with this round's step before those of earlier rounds."""
    how: Any = gate
    return (squared(new, old), *steps)[: how.depth] if isinstance(gate, Lazy) else ()


def draw(seed: int) -> float:
    """Uniform in [0, 1)."""
    return float(torch.rand((), generator=generator(seed_of(seed, "gate", 0, 0))))


def squared(left: Tree, right: Mapping[str, torch.Tensor]) -> float:
    """``||left - right||^2`` of trained values; names that ``right`` lacks count as zeros there."""
    learned = _learned(left)
    return tree.norm({name: value - right[name] if name in right else value for name, value in learned.items()}) ** 2


def _learned(weights: Tree) -> Weights:
    return {n: value for n, value in weights.items() if value.is_floating_point() and not n.endswith(STATISTICS)}
