"""What a client's task waits with, when others train together with it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from torch import Tensor

from fedbonsai.core import Client, Samples
from fedbonsai.model import Model
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.own_loss import OwnLoss
from fedbonsai.training.steps import Ended, Hook
from fedbonsai.tree import Tree, Weights


@dataclass(frozen=True, eq=False)
class Order:
    """One client's local training; the fields are the arguments of `loop.train`, and of losses those that can be stacked."""

    model: Model
    me: Client
    sgd: Optimizer
    mask: Tree | None = None
    hook: Hook | None = None
    shift: Tree | None = None
    frozen: frozenset[str] = frozenset()
    loss: OwnLoss | None = None

    @cached_property
    def kind(self) -> tuple[object, ...]:
        """What orders that can be trained together have in common."""
        inputs, targets = self.me.train.stored, self.me.train.y
        return (
            *forms(self.model),
            self.sgd,
            self.sgd.rate(self.me.round),
            self.me.device,
            (inputs.shape[1:], inputs.dtype, self.me.train.kind, targets.shape[1:], targets.dtype, self.me.augment),
            tuple(self.mask or ()),
            self.shift is None,
            self.frozen,
            None if self.loss is None else self.loss.form,
        )


@dataclass(frozen=True, eq=False)
class Scan:
    """One client's pass over samples without a step: an evaluation, or a gradient (``slopes``).

    The fields are the arguments of `evaluate.evaluate` and `gradients.gradient`.
    """

    model: Model
    samples: Samples
    device: str
    batch: int
    training: bool = False
    slopes: bool = False

    @cached_property
    def kind(self) -> tuple[object, ...]:
        """What scans that can be done together have in common."""
        inputs, targets = self.samples.stored, self.samples.y
        return (
            *forms(self.model),
            (inputs.shape[1:], inputs.dtype, self.samples.kind, targets.shape[1:], targets.dtype),
            self.device,
            self.batch,
            self.training,
            self.slopes,
        )


@dataclass(frozen=True)
class Scanned:
    """What came of a `Scan`.

    Attributes:
        loss: sum of all losses.
        answers: what the objective keeps of outputs [samples, ...]; None where gradients were taken.
        slopes: gradients of ``loss`` by name, where they were.
    """

    loss: float
    answers: Tensor | None
    slopes: Weights


def forms(model: Model) -> tuple[object, object]:
    """By what stacks of networks go: the architecture, and names, shapes and types of weights."""
    weights = tuple((name, value.shape, value.dtype) for name, value in model.weights.items())
    return model.arch.key, weights


FEW = 32  # samples of a client; of more, a recurrent network was judged faster one after another

Hub = Callable[["Order | Scan"], "Ended | Scanned | None"]  # None: the task shall do it alone

_hub: ContextVar[Hub | None] = ContextVar("hub", default=None)


def handed(order: Order) -> Ended | None:
    """What came of an order that others train; None where there are no others, or the task shall train alone."""
    return cast("Ended | None", _given(order))


def scanned(scan: Scan) -> Scanned | None:
    """What came of a scan that is done with others'; None where there are none, or the task shall do it alone.

    It shall where it has many samples: a pass over them fills the machine already.
    """
    return cast("Scanned | None", _given(scan)) if len(scan.samples) <= FEW else None


def _given(order: Order | Scan) -> Ended | Scanned | None:
    hub = _hub.get()
    return None if hub is None else hub(order)


@contextmanager
def handing(to: Hub) -> Generator[None]:
    """Hand orders to a hub until the end of the block."""
    token = _hub.set(to)
    try:
        yield
    finally:
        _hub.reset(token)
