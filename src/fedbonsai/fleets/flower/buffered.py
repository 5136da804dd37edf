"""Buffered rounds on real devices: a round ends with the first answers of any round, whoever has not answered works on.

Which devices work is not in a checkpoint: a server that was killed cannot fetch what they will send, and asks them anew
from what they held before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from fedbonsai.core import Answer, Answers, Device, Scope, Silence, Task
from fedbonsai.fleets.based import GIVEN
from fedbonsai.fleets.buffer import Buffer
from fedbonsai.fleets.flower.fleet import NEAR, FlowerFleet
from fedbonsai.fleets.flower.letter import Letter
from fedbonsai.fleets.flower.spool import Spool

M = TypeVar("M")
R = TypeVar("R")


class BufferedFlowerFleet(FlowerFleet):
    """A `FlowerFleet` whose rounds end with ``buffer.size`` answers; in a round its devices are those to be asked."""

    def __init__(self, *args: Any, buffer: Buffer, **settings: Any) -> None:
        super().__init__(*args, **settings)
        buffer.fits(len(self.devices))
        self._buffer, self._all = buffer, self.devices
        self._flying: dict[str, tuple[Letter, float]] = {}  # by the message's id, and until when it is waited for
        self._landed: list[tuple[Letter, bytes]] = []  # replies that came and no round has taken yet

    def open(self, scope: Scope) -> None:
        """Begin a round: draw who is to be asked in it."""
        super().open(scope)
        if scope.round >= 0:
            working = {letter.device.id for letter, _ in [*self._flying.values(), *self._landed]}
            self.devices = self._buffer.vacancies(self._all, working, (), scope)

    def abort(self) -> None:
        """End a round; who works goes on."""
        super().abort()
        self.devices = self._all

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Send the devices off, and give the answers with which the round ends, as they come."""
        if self._slots.scope is None or self._slots.scope.round < 0 or task in GIVEN:
            return super().ask(task, send, at_least)
        scope, ask = self._slots.next_ask()
        letters = self._send(scope, ask, task, send)
        until = time.monotonic() + self._deadline
        self._flying |= {letter.id: (letter, until) for letter in letters if not letter.trouble}
        silent = [Silence(letter.device, letter.trouble, letter.down) for letter in letters if letter.trouble]
        return self._heard(task, self._arrivals(scope, task, silent), at_least, len(self._all))

    def _arrivals(self, scope: Scope, task: Task[Any, Any], silent: list[Silence]) -> Iterator[Answer[Any] | Silence]:
        """What came, until the buffer is full or nobody works; what came beyond it is the next round's."""
        yield from silent
        heard = 0
        while heard < self._buffer.size and (self._flying or self._landed):
            for letter in self._overdue():
                yield Silence(letter.device, f"no answer within {self._deadline:g} s", letter.down)
            if not self._landed and not self._land():
                time.sleep(self._poll)
            while self._landed and heard < self._buffer.size:
                letter, payload = self._landed.pop(0)
                item = self._open(task, letter, payload)
                if isinstance(item, Answer):
                    heard, stale = heard + 1, scope.round - letter.head.round
                    item = replace(item, stale=stale, weight=self._buffer.weight(stale))
                yield item

    def _overdue(self) -> list[Letter]:
        """Whose answer is waited for no longer."""
        now = time.monotonic()
        late = [id for id, (_, until) in self._flying.items() if until <= now]
        return [self._flying.pop(id)[0] for id in late]

    def _land(self) -> bool:
        """Take in replies that came meanwhile; whether any did."""
        come = self._pull(self._flying)
        for reply in come:
            if (found := self._flying.pop(reply.metadata.reply_to_message_id, None)) is not None:
                spool = Spool(NEAR)
                self._receive([found[0]], {found[0].id: 0}, spool, reply)
                self._landed.append((found[0], spool.take(0) if found[0].reply else b""))
        return bool(come)
