"""Local optimisers: their settings, and one step of a handful of fused calls (``torch._foreach_*``), in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from typing import Any, ClassVar, Literal, TypeVar, cast, dataclass_transform

import torch
from torch import Tensor

from fedbonsai.choice import Choice, registered
from fedbonsai.settings import COUNT, NOT_NEGATIVE, PART, POSITIVE, PROBABILITY, Range, one_of, out_of_range, raise_all
from fedbonsai.wire import OPTIONAL, message

Schedule = Literal["constant", "step", "cosine"]
Precision = Literal["fp32", "bf16"]
Sparse = Literal["off", "auto", "on"]
C = TypeVar("C", bound="Optimizer")

FINITE = Range("a finite number >= 0", NOT_NEGATIVE.holds)
EPOCHS = Range("at least 1 (or set steps)", COUNT.holds)
DECAY = Range("a number in [0, 1)", PART.holds)
RANGES = {
    "lr": FINITE,
    "weight_decay": FINITE,
    "batch": COUNT,
    "steps": Range("0 (whole epochs), or a number of steps", NOT_NEGATIVE.holds),
    "proximal": FINITE,
    "clip": Range("0 (none), or a finite norm", NOT_NEGATIVE.holds),
    "precision": one_of("fp32", "bf16"),
    "sparse": one_of("off", "auto", "on"),
    "schedule": one_of("constant", "step", "cosine"),
    "rounds": NOT_NEGATIVE,
    "factor": Range("a share in [0, 1]", PROBABILITY.holds),
    "warmup": Range("a number of rounds >= 0", NOT_NEGATIVE.holds),
}


class Moving:
    """Parameters on their way: what an optimiser moves, and what it remembers of each while a client trains.

    Attributes:
        params: move in place.
        start: weights that the proximal term pulls to; empty without one.
        shifts: added to the gradients after the clip; empty where nothing is.
        slots: what the optimiser remembers, a list of tensors for each kind, zeros at first.
        counts: steps that each parameter has made, where an optimiser asks for them.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        slots: int,
        start: Sequence[Tensor] = (),
        shifts: Sequence[Tensor] = (),
    ) -> None:
        self.params, self.start, self.shifts = list(params), list(start), list(shifts)
        self.slots = [[torch.zeros_like(p) for p in params] for _ in range(slots)]
        self.counts = [0] * len(self.params)

    def only(self, which: Sequence[int]) -> Moving:
        """Some of the parameters, with their counts as they are now."""
        some = type(self)((), 0)
        some.params, some.start, some.shifts = (
            [every[i] for i in which] if every else [] for every in (self.params, self.start, self.shifts)
        )
        some.slots = [[slot[i] for i in which] for slot in self.slots]
        some.counts = [self.counts[i] for i in which]
        return some

    def clip(self, grads: list[Tensor], most: float) -> None:
        """Scale gradients, in place, to a norm of all of them of at most ``most``."""
        total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, (most / (total + 1e-6)).clamp(max=1.0))

    def move(self, how: Optimizer, grads: Sequence[Tensor | None], lr: float) -> None:
        """One step; what has no gradient is not moved, as in torch.optim. Gradients must be off, and are used up."""
        there = [grad for grad in grads if grad is not None]
        if not there:
            return
        used = range(len(grads)) if len(there) == len(grads) else [i for i, g in enumerate(grads) if g is not None]
        how.step(self if len(there) == len(grads) else self.only(used), there, lr)
        if how.adaptive:  # others do not ask how often
            for i in used:
                self.counts[i] += 1


class Optimizer(Choice):
    """How a client learns in a round: an optimiser, its rate by round, batches and epochs.

    What it remembers of the parameters begins anew in every round: it never travels and is never another client's. The fields
    are stated anew by each optimiser, since their order on the wire is its own; their help is said once, here.
    """

    lr: float
    """Learning rate."""
    weight_decay: float
    batch: int
    """Samples in a batch; the last one of an epoch may be shorter."""
    epochs: int
    """Passes over the client's training samples in a round."""
    steps: int
    """If positive: exactly this many steps instead of whole epochs."""
    proximal: float
    """FedProx: mu of the term mu/2 * ||w - w_received||^2."""
    clip: float
    """If positive: largest norm of a step's whole gradient."""
    precision: Precision
    """Arithmetic of the forward and backward pass; weights stay fp32."""
    channels_last: bool
    """Keep images and convolution weights in channels-last layout."""
    sparse: Sparse
    """Under a mask on a CPU, multiply kept weights alone: in layers that this machine has faster so, or in all."""
    schedule: Schedule
    """How the rate falls with the rounds: not, by steps, or as half a cosine."""
    rounds: int
    """step: rounds from one fall to the next. cosine: rounds until the last; 0 is the run's."""
    factor: float
    """step: what is left of the rate after each fall. cosine: what is left of it in the end."""
    warmup: int
    """First rounds over which the rate grows to its full size."""

    adaptive: ClassVar[bool] = False
    """Whether steps are not in proportion to gradients."""
    stays = (  # a rate and a decay belong to one optimiser, all else to how the method trains
        *("batch", "epochs", "steps", "proximal", "clip", "precision", "channels_last", "sparse"),
        *("schedule", "rounds", "factor", "warmup"),
    )

    def slots(self) -> int:
        """How many tensors it remembers for each parameter."""
        raise NotImplementedError

    @property
    def plain(self) -> bool:
        """Whether a weight's change is exactly the learning rate times the sum of its gradients, in every round."""
        return False

    @property
    def steady(self) -> bool:
        """Whether the rate is the same in all rounds."""
        return self.schedule == "constant" and not self.warmup

    def at(self, round: int) -> Optimizer:
        """It as it is in a round, without a schedule."""
        constant = {"schedule": "constant", "rounds": 0, "factor": 0.1, "warmup": 0}
        return self if self.steady else self.but(lr=self.rate(round), **constant)

    def but(self, **settings: object) -> Optimizer:
        """The same with other settings."""
        return replace(cast(Any, self), **settings)

    def step(self, moving: Moving, grads: list[Tensor], lr: float) -> None:
        """Move all of ``moving`` by its gradients, in place."""
        raise NotImplementedError

    def rate(self, round: int) -> float:
        """The learning rate of a round, from 0: grown over the warm-up, then as the schedule has it.

        >>> [round(SGD(lr=1, schedule="cosine", rounds=5, factor=0, warmup=1).rate(t), 3) for t in range(5)]
        [1.0, 1.0, 0.75, 0.25, 0.0]
        """
        if round < self.warmup:
            return self.lr * (round + 1) / self.warmup
        if self.schedule == "step":
            return self.lr * self.factor ** (round // max(1, self.rounds))
        if self.schedule == "cosine":
            at = min(1.0, (round - self.warmup) / max(1, self.rounds - 1 - self.warmup))
            return self.lr * (self.factor + (1 - self.factor) * (1 + math.cos(math.pi * at)) / 2)
        return self.lr

    def prepared(self, moving: Moving, grads: list[Tensor], decay: float) -> list[Tensor]:
        """Gradients with the proximal term, decay, clip and shifts."""
        if self.proximal:
            torch._foreach_add_(grads, torch._foreach_sub(moving.params, moving.start), alpha=self.proximal)
        if decay:
            torch._foreach_add_(grads, moving.params, alpha=decay)
        if self.clip:
            moving.clip(grads, self.clip)
        if moving.shifts:
            torch._foreach_add_(grads, moving.shifts)
        return grads

    def faults(self) -> list[str]:
        """Values that cannot be meant."""
        found = out_of_range(self, **RANGES, **({} if self.steps > 0 else {"epochs": EPOCHS}))
        if self.schedule == "constant" and (self.rounds or self.factor != 0.1):
            found.append(
                f"rounds = {self.rounds}, factor = {self.factor} have no effect: set schedule to step or cosine"
            )
        if self.schedule == "step" and self.rounds < 1:
            found.append("schedule = step needs rounds, after each of which the rate falls by factor")
        if self.sparse != "off":
            found += [
                f"{name} = {getattr(self, name)} with sparse = {self.sparse}: {why}; leave one of them out"
                for name, idle, why in (
                    ("clip", 0.0, "the norm is of the whole gradient, which sparse layers do not compute"),
                    ("precision", "fp32", "sparse layers compute in fp32"),
                    ("channels_last", False, "sparse layers have an order of their own"),
                )
                if getattr(self, name) != idle
            ]
        return found


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def optimizer(name: str) -> Callable[[type[C]], type[C]]:
    """Register an optimiser, one's own too: ``method.optimizer.name = NAME`` chooses it once its module is imported."""
    return lambda cls: registered(name, message(f"{name}@1")(cls))


def _later(default: Any) -> Any:
    """A field that travels only where it is not as by default, so that older devices understand all the rest."""
    return field(default=default, metadata=OPTIONAL)


@optimizer("sgd")
class SGD(Optimizer):
    """Local stochastic gradient descent."""

    lr: float = 0.1
    momentum: float = 0.0
    """Heavy-ball momentum; the buffer starts at zero in every round."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient."""
    batch: int = 20
    epochs: int = 1
    steps: int = 0
    proximal: float = 0.0
    clip: float = 0.0
    precision: Precision = "fp32"
    channels_last: bool = False
    sparse: Sparse = "off"
    schedule: Schedule = _later("constant")
    rounds: int = _later(0)
    factor: float = _later(0.1)
    warmup: int = _later(0)

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        raise_all(self.faults() + out_of_range(self, momentum=DECAY))

    def slots(self) -> int:
        """Momentum, where there is any."""
        return int(self.momentum > 0)

    @property
    def plain(self) -> bool:
        """Without momentum, decay, proximal term, clip and schedule."""
        return self.lr > 0 and self.steady and not (self.momentum or self.weight_decay or self.proximal or self.clip)

    def step(self, moving: Moving, grads: list[Tensor], lr: float) -> None:
        """One step of descent with heavy-ball momentum."""
        grads = self.prepared(moving, grads, self.weight_decay)
        if moving.slots:
            momentum = moving.slots[0]
            torch._foreach_mul_(momentum, self.momentum)
            torch._foreach_add_(momentum, grads)
            grads = momentum
        torch._foreach_add_(moving.params, grads, alpha=-lr)


@optimizer("adam")
class Adam(Optimizer):
    """Adam (Kingma, Ba, ICLR 2015); what it remembers begins anew in every round."""

    lr: float = 1e-3
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.999
    """Decay of the mean of their squares."""
    eps: float = 1e-8
    """Added to the root of the latter."""
    weight_decay: float = 0.0
    """Penalty added to the gradient."""
    batch: int = 20
    epochs: int = 1
    steps: int = 0
    proximal: float = 0.0
    clip: float = 0.0
    precision: Precision = "fp32"
    channels_last: bool = False
    sparse: Sparse = "off"
    schedule: Schedule = "constant"
    rounds: int = 0
    factor: float = 0.1
    warmup: int = 0

    adaptive: ClassVar[bool] = True
    decoupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        raise_all(self.faults() + out_of_range(self, beta1=DECAY, beta2=DECAY, eps=POSITIVE))

    def slots(self) -> int:
        """Means of gradients and of their squares."""
        return 2

    def step(self, moving: Moving, grads: list[Tensor], lr: float) -> None:
        """One step, as torch.optim has it; parameters of unequal numbers of steps are moved apart."""
        if len(set(moving.counts)) > 1:
            for count in sorted(set(moving.counts)):
                which = [i for i, steps in enumerate(moving.counts) if steps == count]
                self.step(moving.only(which), [grads[i] for i in which], lr)
            return
        count, (first, second) = moving.counts[0] + 1, moving.slots
        if self.decoupled and self.weight_decay:
            torch._foreach_mul_(moving.params, 1 - lr * self.weight_decay)
        grads = self.prepared(moving, grads, 0.0 if self.decoupled else self.weight_decay)
        torch._foreach_lerp_(first, grads, 1 - self.beta1)
        torch._foreach_mul_(second, self.beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - self.beta2)
        root = torch._foreach_sqrt(second)
        torch._foreach_div_(root, math.sqrt(1 - self.beta2**count))
        torch._foreach_add_(root, self.eps)
        torch._foreach_addcdiv_(moving.params, first, root, -lr / (1 - self.beta1**count))


@optimizer("adamw")
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov, Hutter, ICLR 2019)."""

    weight_decay: float = 0.01
    """Share of the weights, times the rate, that each step takes away."""

    decoupled: ClassVar[bool] = True
