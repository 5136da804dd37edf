"""The two memories of each client: the accepted one and the working one of the round in progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from fedbonsai.core import Answer, Answers, Device, Memory, SavedMemory, Scope, Silence, Task
from fedbonsai.fleets.faults import Faults

R = TypeVar("R")

NEVER = (-2, 0)


class Slots:
    """Client memories and the bookkeeping of a round, for fleets whose server process owns them."""

    def __init__(self) -> None:
        self.scope: Scope | None = None
        self._accepted: dict[str, SavedMemory] = {}
        self._working: dict[str, Memory] = {}
        self._asks = 0
        self._unread: Answers[object] | None = None

    def open(self, scope: Scope) -> None:
        """Begin a round."""
        self.abort()
        self.scope = scope

    def next_ask(self) -> tuple[Scope, int]:
        """Scope and number of the next ask.

        Raises:
            RuntimeError: no round is open, or the answers of the ask before were not read to the end.
        """
        if self.scope is None:
            raise RuntimeError("no round is open; use `with scope(fleet, Scope(...))`")
        self._all_read()
        self._asks += 1
        return self.scope, self._asks - 1

    def reading(self, answers: Answers[object]) -> None:
        """Remember the answers that must be read before the next ask."""
        self._unread = answers

    def memory(self, device: str) -> Memory:
        """Memory from which the device's next task starts."""
        if device in self._working:
            return self._working[device]
        return self._accepted[device].memory if device in self._accepted else {}

    def base(self, device: str) -> tuple[int, int]:
        """Round and attempt of the device's accepted memory."""
        held = self._accepted.get(device)
        return (held.round, held.attempt) if held else NEVER

    def keep(self, device: str, memory: Memory) -> None:
        """Set the working memory."""
        if memory or device in self._working or device in self._accepted:
            self._working[device] = memory

    def reject(self, device: str) -> None:
        """Drop the working memory: the answer that came with it was not used."""
        self._working.pop(device, None)

    def pending(self) -> Mapping[str, SavedMemory]:
        """Memories that this round changed."""
        if self.scope is None:
            return {}
        return {id: SavedMemory(self.scope.round, self.scope.attempt, memory) for id, memory in self._working.items()}

    def commit(self) -> None:
        """Accept the memories of this round."""
        self._all_read()
        self._accepted.update(self.pending())
        self._working = {}

    def abort(self) -> None:
        """Drop the memories of this round."""
        self.scope, self._working, self._asks, self._unread = None, {}, 0, None

    def restore(self, memories: Mapping[str, SavedMemory]) -> None:
        """Set accepted memories."""
        self._accepted = dict(memories)

    def _all_read(self) -> None:
        if self._unread is not None and not self._unread.finished:
            raise RuntimeError("answers of the ask before were not read to the end; iterate over all of them")
        self._unread = None


class Remembers:
    """The part of a fleet's port that concerns rounds and memories, for fleets whose server process owns them."""

    devices: Sequence[Device]

    def __init__(self) -> None:
        self._slots = Slots()
        self._faults = Faults()

    def _heard(
        self, task: Task[Any, R], items: Iterator[Answer[R] | Silence], at_least: int, clients: int = 0
    ) -> Answers[R]:
        """Answers of the ask that begins now, watched for a task that fails everywhere: on all devices, or so many."""
        answers = Answers[R](self._faults.watched(task.name, items, clients or len(self.devices)), at_least)
        self._slots.reading(cast("Answers[object]", answers))
        return answers

    def open(self, scope: Scope) -> None:
        """Begin a round."""
        self._slots.open(scope)

    def reject(self, device: Device, why: str = "") -> None:
        """Drop what the device kept in this round."""
        self._slots.reject(device.id)

    def pending(self) -> Mapping[str, SavedMemory]:
        """Memories that this round changed."""
        return self._slots.pending()

    def commit(self) -> None:
        """Accept the memories of this round."""
        self._slots.commit()

    def abort(self) -> None:
        """Drop the memories of this round."""
        self._slots.abort()

    def restore(self, memories: Mapping[str, SavedMemory]) -> None:
        """Set accepted memories."""
        self._slots.restore(memories)
