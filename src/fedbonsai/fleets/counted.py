"""Who answered in a round, who was silent and why, whose answer the method did not use, and how much was trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from fedbonsai.core import Answer, Answers, Device, Fleet, Scope, Silence, Task
from fedbonsai.fleets.faults import unnumbered
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.work import Work

M = TypeVar("M")
R = TypeVar("R")

SHOWN = 3  # reasons in a line of the metrics
LONGEST = 200  # characters of a reason there


class Counted(Wrapper):
    """The outermost fleet of a run: it counts what a method sees, whatever lies below it."""

    def __init__(self, inner: Fleet) -> None:
        super().__init__(inner)
        self._forget()

    def _forget(self) -> None:
        self._answered: set[str] = set()  # in the last attempt
        self._silent: set[str] = set()
        self._rejected: set[str] = set()
        self._asked = False
        self._trained = 0
        self._stale: list[int] = []
        # texts by client, by whether its answer came and by the text without numbers
        self._reasons: dict[tuple[bool, str], dict[str, str]] = {}

    def open(self, scope: Scope) -> None:
        """Begin a round, or the next attempt of it."""
        super().open(scope)
        self._answered = set()

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Ask the fleet inside."""
        answers = self.inner.ask(task, send, 0)
        self._asked = self._asked or bool(send)

        def counted() -> Iterator[Answer[R] | Silence]:
            for answer in answers:
                self._answered.add(answer.device.id)
                self._trained += trained(answer.work)
                self._stale.append(answer.stale)
                yield answer
            for silence in answers.silent.values():
                (self._rejected if silence.refused else self._silent).add(silence.device.id)
                self._trained += trained(silence.work)
                self._note(silence.refused, silence.device, silence.reason)
                yield silence

        return Answers(counted(), at_least)

    def reject(self, device: Device, why: str = "") -> None:
        """The method does not use what the device sent, or what it kept."""
        super().reject(device, why)
        self._answered.discard(device.id)
        self._rejected.add(device.id)
        if why:
            self._note(True, device, why)

    def _note(self, came: bool, device: Device, why: str) -> None:
        self._reasons.setdefault((came, unnumbered(why)), {}).setdefault(device.id, why)

    def take(self) -> dict[str, Any]:
        """Columns of the round's line in the metrics, over all of its attempts; they are forgotten here.

        ``answered`` counts clients whose answer the last attempt used; without it, nobody was asked. ``silent`` counts
        clients that an ask heard nothing of, ``rejected`` those whose answers came and were not used. ``reasons`` has
        the first distinct reasons, with the number of clients, the first of them, and whether they were rejected.
        ``trained_examples`` counts samples by which devices took steps, each as often as it came, of answers that were
        not used too; there is none where no device said so, as on real ones. ``stale_mean`` and ``stale_max`` are how many
        rounds ago answers were asked for, where some were of earlier rounds.
        """
        found: dict[str, Any] = {"answered": len(self._answered)} if self._asked else {}
        found |= {"silent": len(self._silent), "rejected": len(self._rejected - self._silent)}
        found |= {"trained_examples": self._trained} if self._trained else {}
        if any(self._stale):
            found |= {"stale_mean": sum(self._stale) / len(self._stale), "stale_max": max(self._stale)}
        if self._reasons:
            found["reasons"] = [
                {"reason": next(iter(each.values()))[:LONGEST], "clients": len(each), "client": next(iter(each))}
                | ({"rejected": True} if came else {})
                for (came, _), each in list(self._reasons.items())[:SHOWN]
            ]
        self._forget()
        return found


def trained(work: Work) -> int:
    """Samples by which an optimiser took steps; behind a cut they are those that were counted before it."""
    return sum(episode.backward for episode in work if episode.steps and not episode.inward)
