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
from typing import ClassVar, Literal, TypeVar, dataclass_transform

import torch

from fedbonsai import tree
from fedbonsai.choice import Choice, registered
from fedbonsai.settings import COUNT, NOT_NEGATIVE, PART, POSITIVE, PROBABILITY, out_of_range, raise_all
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
        loss: of this round's training, by the gate's `Gate.statistic`.
        change: of the weights in this round, before it is packed.
        draw: uniform in [0, 1), of this client and round.
        innovation: squared distance of this round's change, as it would be sent, to the one that was sent last.
        error: squared error of packing, of this change and of the one sent last together.
        threshold: from the server's last steps (`Gate.threshold`).
        agrees: share of this change's signs that are those of the global model's last one; None before there is one.
        t: round, from 0.
    """

    loss: float
    change: Tree
    draw: Callable[[], float]
    innovation: Callable[[], float]
    error: Callable[[], float]
    threshold: float
    agrees: Callable[[], float | None]
    t: int


@dataclass(frozen=True)
class Use:
    """How a method uses what its clients upload.

    Attributes:
        changes: changes of the weights go up, not the weights themselves.
        cached: a client that skips counts with its last upload.
        own: a client that skipped trains on from a model of its own.
        masked: uploads are under masks that may change from round to round.
    """

    changes: bool
    cached: bool
    own: bool
    masked: bool


class Gate(Choice):
    """When a client uploads; a subclass says so in `passes`, everything else has a meaning by default."""

    every: int = 0  # at least one upload in this many rounds; 0 forces none
    statistic: Literal["last", "mean", "valid"] = "mean"  # which loss it is shown, as `Loss.statistic` has it
    depth: int = 0  # steps of the server that `threshold` is given
    always: ClassVar[bool] = False  # it never closes but on a loss that is not finite
    needs_last: ClassVar[bool] = False  # the client keeps its last upload, for `Evidence.innovation` and `error`
    needs_direction: ClassVar[bool] = False  # it keeps the global model and its last change, for `Evidence.agrees`

    def passes(self, found: Evidence, seen: Seen) -> bool:
        """Whether the upload is worth it."""
        raise NotImplementedError

    def reference(self, loss: float, uploads: bool, seen: Seen) -> float | None:
        """The loss to remember after a round in which it was ``loss``: here that of the last upload."""
        return loss if uploads else seen.reference

    def threshold(self, steps: Sequence[float]) -> float:
        """What `Evidence.threshold` is, from the squared norms of the server's last steps, latest first."""
        return 0.0

    def faults(self, use: Use) -> list[str]:
        """Reasons why it has no meaning where uploads are used so; empty if it has."""
        return []

    def decide(self, found: Evidence, seen: Seen) -> tuple[bool, Seen]:
        """Whether to upload, and what to remember of this round.

        A loss that is NaN or infinite closes every gate, forced uploads included.
        """
        if not math.isfinite(found.loss):
            return False, Seen(seen.reference, seen.skipped + 1)
        forced = self.every > 0 and seen.skipped + 1 >= self.every
        uploads = forced or self.passes(found, seen)
        return uploads, Seen(self.reference(found.loss, uploads, seen), 0 if uploads else seen.skipped + 1)

    def stepped(self, steps: tuple[float, ...], new: Tree, old: Tree) -> tuple[float, ...]:
        """The squared norms that `threshold` needs, with this round's step before those of earlier rounds."""
        return (squared(new, old), *steps)[: self.depth] if self.depth else ()


G = TypeVar("G", bound=type[Gate])


@dataclass_transform(frozen_default=True)
def gate(name: str) -> Callable[[G], G]:
    """Register a gate: a choice of the configuration that travels in requests as it is, as message ``gate/NAME@1``."""
    return lambda cls: registered(name, message(f"gate/{name}@1")(cls))


@gate("open")
class Open(Gate):
    """Always."""

    always: ClassVar[bool] = True

    def passes(self, found: Evidence, seen: Seen) -> bool:
        """Yes."""
        return True


@gate("loss")
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
        raise_all(out_of_range(self, initial=POSITIVE, memory=PART, slack=NOT_NEGATIVE, every=NOT_NEGATIVE))

    def passes(self, found: Evidence, seen: Seen) -> bool:
        """A loss below the remembered one and its slack."""
        return found.loss < (self.initial if seen.reference is None else seen.reference * (1 + self.slack))

    def reference(self, loss: float, uploads: bool, seen: Seen) -> float | None:
        """By ``rule``."""
        if self.rule == "best":
            return super().reference(loss, uploads, seen)
        if self.rule == "previous" or seen.reference is None:
            return loss
        return self.memory * seen.reference + (1 - self.memory) * loss


@gate("lazy")
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

    needs_last: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        raise_all(out_of_range(self, depth=COUNT, xi=NOT_NEGATIVE, every=NOT_NEGATIVE))

    def passes(self, found: Evidence, seen: Seen) -> bool:
        """An innovation above the threshold and three times the errors of packing."""
        return seen.reference is None or found.innovation() > found.threshold + 3 * found.error()

    def threshold(self, steps: Sequence[float]) -> float:
        """Sum of xi_d ||w^(t+1-d) - w^(t-d)||^2 over the server's last D steps.

        With the mean of K changes for the server's step, the factor 1 / (alpha K)^2 of its sum form is one.
        """
        return self.xi * math.fsum(steps[: self.depth])

    def faults(self, use: Use) -> list[str]:
        """It compares changes of two rounds."""
        if use.masked:
            return ["gate lazy compares a change with the one sent last, under masks that may have changed; use 'loss'"]
        if not (use.changes and use.cached):
            return ["gate lazy compares changes kept at both ends: set changes = true and skippers = 'cache'"]
        return []


@gate("agreement")
class Agreement(Gate):
    """CMFL: if enough signs of the change are those of the global model's last change."""

    least: float = 0.6
    """v: the share."""
    falling: bool = False
    """v_t = v / sqrt(t) instead, with rounds counted from 1: the gate opens by and by."""
    every: int = 0
    """At least one upload in this many rounds; 0 forces none."""

    needs_direction: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        raise_all(out_of_range(self, least=PROBABILITY, every=NOT_NEGATIVE))

    def passes(self, found: Evidence, seen: Seen) -> bool:
        """Enough signs that agree, or nothing yet to agree with."""
        least = self.least / math.sqrt(found.t + 1) if self.falling else self.least
        return (agrees := found.agrees()) is None or agrees >= least

    def faults(self, use: Use) -> list[str]:
        """It needs the global model's changes."""
        if use.own:
            return ["gate agreement compares with the global model's changes: set after_skip = 'global'"]
        return []


@gate("chance")
class Chance(Gate):
    """At random, but for a client's first upload: there would be nothing for the server to keep."""

    share: float = 0.5
    """Probability of an upload."""
    every: int = 0
    """At least one upload in this many rounds; 0 forces none."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        raise_all(out_of_range(self, share=PROBABILITY, every=NOT_NEGATIVE))

    def passes(self, found: Evidence, seen: Seen) -> bool:
        """A draw below the share."""
        return seen.reference is None or found.draw() < self.share


def agreement(change: Tree, other: Tree) -> float:
    """CMFL's relevance: share of trained values whose signs are equal in both; two zeros agree."""
    learned = _learned(change)
    same = sum(int((torch.sign(value) == torch.sign(other[name])).sum()) for name, value in learned.items())
    return same / max(1, tree.size(learned))


def draw(seed: int) -> float:
    """Uniform in [0, 1)."""
    return float(torch.rand((), generator=generator(seed_of(seed, "gate", 0, 0))))


def squared(left: Tree, right: Mapping[str, torch.Tensor]) -> float:
    """``||left - right||^2`` of trained values; names that ``right`` lacks count as zeros there."""
    learned = _learned(left)
    return tree.norm({name: value - right[name] if name in right else value for name, value in learned.items()}) ** 2


def _learned(weights: Tree) -> Weights:
    return {n: value for n, value in weights.items() if value.is_floating_point() and not n.endswith(STATISTICS)}
