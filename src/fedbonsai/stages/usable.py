"""The one loop over answers that can be used; what comes from a device is never taken for good before it was looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from fedbonsai.core import Answer, Answers, Device, Fleet, Silence, forgetful
from fedbonsai.errors import BadMessage, NotFinite, Unanswered

A = TypeVar("A")
R = TypeVar("R")


class Usable(Generic[A, R]):
    """Answers that can be used, each with what it was opened to; others are dropped, with what their clients kept.

    Args:
        answers: of a fleet.
        fleet: that was asked.
        opened: what an answer says, or None where it does not fit; `BadMessage` or `NotFinite` tells why.
    """

    def __init__(self, answers: Iterable[Answer[A]], fleet: Fleet, opened: Callable[[Answer[A]], R | None]) -> None:
        self.refused: dict[Device, Silence] = {}
        self._answers, self._fleet, self._opened = answers, fleet, opened

    def __iter__(self) -> Iterator[tuple[Answer[A], R]]:
        for answer in self._answers:
            found, why = None, "its answer does not fit what was asked, or is not finite"
            try:
                found = self._opened(answer)
            except (BadMessage, NotFinite) as error:
                why = str(error)
            if found is None:
                self._fleet.reject(answer.device, why)
                self.refused[answer.device] = Silence(answer.device, why)
            else:
                yield answer, found

    @property
    def dropped(self) -> int:
        """Answers that could not be used."""
        return len(self.refused)

    @property
    def silent(self) -> dict[Device, Silence]:
        """Of whom there is nothing to use, and why: who did not answer, and whose answer was dropped."""
        return {**(self._answers.silent if isinstance(self._answers, Answers) else {}), **self.refused}

    def none(self, what: str = "update") -> Unanswered:
        """That none could be used, with who had lost what it held."""
        return Unanswered(f"no {what} could be used ({self.dropped} dropped)", forgetful(self.silent))
