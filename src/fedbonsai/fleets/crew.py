"""Tasks that run side by side in one process: each until it trains or judges, and then all who do so alike do it together.

Each task is a greenlet, so that its text is the same as when it runs alone. Whoever waits leaves the global generator to
the others and finds it again as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch

from fedbonsai.arch import keeping
from fedbonsai.training.stacked.orders import Order, Scan, Scanned, handing
from fedbonsai.training.steps import Ended

if TYPE_CHECKING:
    from greenlet import greenlet

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a call returned, or the exception that it raised."""

    value: T | None = None
    error: Exception | None = None

    def get(self) -> T:
        """The value.

        Raises:
            Exception: what the call raised.
        """
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


def crew_size(tasks: int, batch: int, workers: int = 1) -> int:
    """How many tasks run side by side: at most ``batch``, and about as many in each crew, so that no worker is idle.

    >>> crew_size(50, 16, workers=2), crew_size(10, 64, workers=2), crew_size(4, 3)
    (13, 5, 2)
    """
    crews = -(-tasks // batch)
    crews += -crews % workers
    return max(1, -(-tasks // max(1, crews)))


def side_by_side(calls: Sequence[Callable[[], T]]) -> list[Outcome[T]]:
    """Run calls side by side, in their order; what they train is stacked where it can be.

    An exception of one is its outcome; an interrupt ends all.
    """
    if len(calls) == 1:
        return [_alone(calls[0])]
    from greenlet import greenlet

    outcomes: list[Outcome[T]] = [Outcome() for _ in calls]
    drawing = torch.default_generator.get_state()

    def body(i: int) -> None:
        with handing(_wait):
            outcomes[i] = _alone(calls[i])

    waiting = {i: greenlet(body) for i in range(len(calls))}
    for one in waiting.values():
        one.gr_context = copy_context()
    given: dict[int, Any] = {i: i for i in waiting}
    try:
        while given:
            orders: dict[int, Order | Scan] = {}
            for i, value in given.items():
                torch.default_generator.set_state(drawing)
                order = waiting[i].switch(value)
                if waiting[i].dead:
                    del waiting[i]
                else:
                    orders[i] = order
            torch.default_generator.set_state(drawing)
            given = done_together(orders)
    finally:
        for one in waiting.values():  # a task that was interrupted, and those that waited for it
            if one:
                _end(one)
    return outcomes


def _alone(call: Callable[[], T]) -> Outcome[T]:
    try:
        return Outcome(call())
    except Exception as error:
        return Outcome(error=error)


def _wait(order: Order | Scan) -> Ended | Scanned | None:
    """Called by a task: let the others run until its order is done."""
    from greenlet import getcurrent

    drawing = torch.default_generator.get_state()
    hub = getcurrent().parent
    assert hub is not None
    done = hub.switch(order)
    torch.default_generator.set_state(drawing)
    if isinstance(done, Exception):
        raise done
    return done


def done_together(orders: dict[int, Order | Scan]) -> dict[int, Ended | Scanned | Exception | None]:
    """What came of each order; None where the task shall do it alone."""
    done: dict[int, Ended | Scanned | Exception | None] = dict.fromkeys(orders)
    groups: dict[object, list[int]] = {}
    with keeping():
        for i, order in orders.items():
            groups.setdefault((type(order), order.kind), []).append(i)
        for group in groups.values():
            if len(group) == 1:
                continue
            try:
                if (found := _stacked([orders[i] for i in group])) is not None:
                    done.update(zip(group, found, strict=True))
            except (
                Exception
            ) as error:  # whose fault it is shows where each does it alone; but no hook sees a step twice
                if any(isinstance(order := orders[i], Order) and order.hook is not None for i in group):
                    done.update(dict.fromkeys(group, error))
    return done


def _stacked(orders: Sequence[Order | Scan]) -> Sequence[Ended | Scanned] | None:
    """What came of orders of one kind; None where they cannot be stacked."""
    from fedbonsai.training.stacked.fit import fit_together  # a device alone needs none of it
    from fedbonsai.training.stacked.scan import scan_together
    from fedbonsai.training.stacked.stackable import refusal, scan_refusal

    if isinstance(orders[0], Scan):
        return None if scan_refusal(orders[0]) else scan_together(cast("Sequence[Scan]", orders))
    return None if refusal(orders[0]) else fit_together(cast("Sequence[Order]", orders))


def _end(task: greenlet) -> None:
    with suppress(BaseException):  # whatever it says on its way out: nobody listens
        task.throw()
