"""How far long work is: whoever may take more than two seconds says so, and whoever listens is told.

Work says `doing("initial pruning", 1000)` around itself and how far it is now and then; it is a look at a context variable
where nobody listens, and never touches what is computed. Work inside other work is told with it, the outermost first.
Processes of a pool have nobody that listens: there the parent tells how many have answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")

AFTER = 2.0  # seconds that work may take before anything is said
EVERY = 0.25  # seconds from one call of a listener to the next


class At(Protocol):
    """Takes how much is done, and of what, where that changes meanwhile."""

    def __call__(self, done: float, what: str = "") -> None:
        """It is so much now."""
        ...


@dataclass
class Part:
    """Some work, its place in the whole, and when it began on the listener's clock; a total of 0 is not known."""

    what: str
    total: float
    began: float
    done: float = 0.0

    def __str__(self) -> str:
        return f"{self.what} {self.done:,.0f}/{self.total:,.0f}" if self.total else self.what


@dataclass(frozen=True)
class Progress:
    """What is being done.

    Attributes:
        what: of the innermost work.
        done: of it.
        total: of it; 0 where it is not known.
        seconds: that it takes so far.
        phase: the outermost work that it is part of.
        text: all of it in words, the outermost first, such as ``rounds 3/30, answers 2/10, initial pruning 40/1,000``.
    """

    what: str
    done: float
    total: float
    seconds: float
    phase: str
    text: str

    @property
    def left(self) -> float:
        """Seconds that are left if it goes on so; not a number where that is not known."""
        return self.seconds * (self.total - self.done) / self.done if 0 < self.done <= self.total else float("nan")


class Teller:
    """What is being done now, and who is told of it.

    Args:
        hear: called in the working thread once work takes two seconds; what it raises ends the work. None where somebody
            asks with `now` instead.
        clock: seconds.
        every: seconds from one call to the next at least.
    """

    def __init__(
        self,
        hear: Callable[[Progress], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        every: float = EVERY,
    ) -> None:
        self._hear, self._clock, self._every = hear, clock, every
        self._parts: list[Part] = []
        self._last = float("-inf")
        self._raised: BaseException | None = None

    def now(self) -> Progress | None:
        """What is being done, if it takes two seconds already."""
        parts, time = list(self._parts), self._clock()  # another thread may ask
        if not parts or time - parts[0].began < AFTER:
            return None
        inner = parts[-1]
        return Progress(
            inner.what, inner.done, inner.total, time - inner.began, parts[0].what, ", ".join(map(str, parts))
        )

    def begin(self, what: str, total: float) -> Part:
        """Work begins inside what is being done."""
        self._parts.append(part := Part(what, total, self._clock()))
        self.told()
        return part

    def end(self, part: Part) -> None:
        """Work has ended, by whatever; answers that are read lazily may end it after what was around it."""
        self._parts = [other for other in self._parts if other is not part]

    def told(self) -> None:
        """Tell, if it is time.

        What the listener raised once is raised again: inside a client's task it would be that client's trouble.
        """
        if self._raised is not None:
            raise self._raised
        if self._hear is None or self._clock() - self._last < self._every or (now := self.now()) is None:
            return
        self._last = self._clock()
        try:
            self._hear(now)
        except BaseException as error:
            self._raised = error
            raise


_listening: ContextVar[Teller | None] = ContextVar("telling", default=None)


@contextmanager
def listening(teller: Teller) -> Generator[Teller]:
    """Inside which work tells this one, and no other."""
    token = _listening.set(teller)
    try:
        yield teller
    finally:
        _listening.reset(token)


@contextmanager
def doing(what: str, total: float = 0) -> Generator[At]:
    """Inside which this work is being done; what it gives takes how much of it is done.

    Args:
        what: in a few words, such as ``initial pruning``.
        total: steps, images, devices; 0 where it is not known.
    """
    teller = _listening.get()
    if teller is None:
        yield _nobody
        return
    part = teller.begin(what, total)

    def at(done: float, what: str = "") -> None:
        part.done, part.what = done, what or part.what
        teller.told()

    try:
        yield at
    finally:
        teller.end(part)


def _nobody(done: float, what: str = "") -> None:
    """Nobody listens."""


def each(what: str, items: Iterable[T], total: float = 0, first: int = 0) -> Iterator[T]:
    """The items from ``first`` on, and how many are done; ``total`` where they cannot tell their number."""
    with doing(what, total or (len(items) if isinstance(items, Sized) else 0)) as at:
        for done, item in enumerate(items):
            if done >= first:
                at(done)
                yield item
