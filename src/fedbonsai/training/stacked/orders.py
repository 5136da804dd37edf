"""What a client's task waits with, when others train together with it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from fedbonsai.core import Client
from fedbonsai.model import Model
from fedbonsai.training.optimizers import Optimizer
from fedbonsai.training.steps import Ended, Hook
from fedbonsai.tree import Tree


@dataclass(frozen=True, eq=False)
class Order:
    """One client's local training; the fields are the arguments of `loop.train`."""

    model: Model
    me: Client
    sgd: Optimizer
    mask: Tree | None = None
    hook: Hook | None = None
    shift: Tree | None = None
    frozen: frozenset[str] = frozenset()

    @property
    def kind(self) -> tuple[object, ...]:
        """What orders that can be trained together have in common."""
        inputs, targets = self.me.train.stored, self.me.train.y
        return (
            self.model.arch.key,
            tuple((name, value.shape, value.dtype) for name, value in self.model.weights.items()),
            self.sgd,
            self.sgd.rate(self.me.round),
            self.me.device,
            (inputs.shape[1:], inputs.dtype, self.me.train.kind, targets.shape[1:], targets.dtype, self.me.augment),
            tuple(self.mask or ()),
            self.shift is None,
            self.frozen,
        )


Hub = Callable[[Order], Ended | None]  # None: the task shall train alone

_hub: ContextVar[Hub | None] = ContextVar("hub", default=None)


def handed(order: Order) -> Ended | None:
    """What came of an order that others train; None where there are no others, or the task shall train alone."""
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
