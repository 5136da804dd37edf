"""Buffered rounds on a virtual clock: the earliest answers of all devices that work end a round, the others stay on their way.

A simulated device computes at once when it is asked; its answer, what it keeps and what all that cost are a `Flight`, which
arrives when the clock is there. Until then the device's memory is what it was, and the flight is what a checkpoint holds of
it, so that a resumed run goes on with the same devices at work. Bytes are booked in the round in which a device was asked,
seconds and joules in the one in which its answer came; what is still on its way when a run ends was sent for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fedbonsai.core import Answer, Answers, Device, Fleet, Memory, SavedMemory, Scope, Silence, Task
from fedbonsai.devices.clock import Macs, Times, joules
from fedbonsai.fleets.based import GIVEN
from fedbonsai.fleets.buffer import Buffer
from fedbonsai.fleets.costs import Costs
from fedbonsai.fleets.timed import Clock, Cost, Question, Timed, known_of
from fedbonsai.wire import OWN, decode, encode, message
from fedbonsai.work import Work

M = TypeVar("M")
R = TypeVar("R")

FLIGHT, HELD = "flight", "held"  # in a checkpoint: of a device that works, and what it held before


@message("fleet/flight@1")
class Flight:
    """An answer, or a silence, on its way to the server.

    Attributes:
        round: in which its device was asked, in attempt ``attempt``.
        arrives: simulated seconds since the run began.
        value: of the answer, encoded; empty where ``reason`` says why there is none.
        times: seconds of the way down, of computing, of the way up.
        macs: done, and those of kept weights.
        memory: what the device keeps from then on; None: what it held before.
    """

    round: int
    attempt: int
    arrives: float
    value: bytes
    reason: str
    down: int
    up: int
    forgot: bool
    lost: bool
    fault: str
    work: Work
    times: tuple[float, float, float]
    macs: tuple[int, int]
    peak: int
    dropped: bool
    memory: Memory | None


class Buffered(Timed):
    """A `Timed` fleet whose rounds end with the first answers of any round.

    Args:
        inner: a fleet that encodes its messages.
        clock: devices, links and rules; its deadline is that of one device's answer.
        costs: where it is booked.
        buffer: when a round ends.
    """

    def __init__(self, inner: Fleet, clock: Clock, costs: Costs, buffer: Buffer) -> None:
        super().__init__(inner, clock, costs)
        buffer.fits(len(inner.devices))
        self.buffer = buffer
        self._places = {device.id: place for place, device in enumerate(inner.devices)}
        self._vacant: Sequence[Device] | None = None  # None: all, as where a run begins
        self._flights: dict[str, Flight] = {}  # of this attempt
        self._accepted: dict[str, Flight] = {}  # when the last round was accepted
        self._memories: dict[str, SavedMemory] = {}  # the same, of devices that do not work
        self._came: dict[str, SavedMemory] = {}  # in this attempt

    @property
    def devices(self) -> Sequence[Device]:
        """In a round those that are to be asked, else all."""
        return self.inner.devices if self._vacant is None else self._vacant

    def open(self, scope: Scope) -> None:
        """Begin a round: draw who is to be asked in it."""
        super().open(scope)
        self._flights, self._came, self._vacant = dict(self._accepted), {}, None
        if scope.round >= 0:
            free = [device for device in self.inner.devices if device.id not in self._flights]
            away = self._away(scope, free, wait=not self._flights)
            unreachable = {device.id for device in away}
            self._vacant = self.buffer.vacancies(self.inner.devices, self._flights, unreachable, scope)

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Send the devices off, and give the answers with which the round ends, in the order in which they come."""
        if self._vacant is None or task in GIVEN:
            return super().ask(task, send, at_least)
        scope, number = self.where()
        self._depart(scope, number, task, send)
        return Answers(self._arrivals(scope), at_least)

    def _depart(self, scope: Scope, number: int, task: Task[Any, Any], send: Mapping[Device, Any]) -> None:
        asked = Question(scope, number, self.costs.now, known_of(scope, send), 0.0, 0)
        answers = self.inner.ask(task, send, 0)
        for answer in answers:
            self._leave(asked, answer, encode(answer.value))
        for silence in answers.silent.values():
            self._leave(asked, silence, b"")

    def _leave(self, asked: Question, item: Answer[Any] | Silence, value: bytes | bytearray) -> None:
        """Hold what came of a task until the clock is there; until then its device holds what it held."""
        id, scope = item.device.id, asked.scope
        cost = self._cost(asked, item)
        kept = self.inner.pending().get(id)
        self.inner.reject(item.device)
        silence = item if isinstance(item, Silence) else None
        late = bool(self.clock.deadline) and cost.times.total > self.clock.deadline
        times = cost.times.until(self.clock.deadline) if late else cost.times
        reason = (
            cost.failed or (f"late: {cost.times.total:.1f} s" if late else "") or (silence.reason if silence else "")
        )
        self._flights[id] = Flight(
            scope.round,
            scope.attempt,
            asked.sent + times.total,
            b"" if reason else bytes(value),
            reason,
            item.down,
            item.up,
            silence is not None and silence.forgot,
            silence is not None and silence.lost,
            silence.fault if silence else "",
            item.work,
            (times.down, times.compute, times.up),
            _done(cost, times),
            cost.peak,
            bool(cost.failed or cost.lost or late),
            kept.memory if kept and not reason else None,
        )

    def _arrivals(self, scope: Scope) -> Iterator[Answer[Any] | Silence]:
        """The next of all flights until the buffer is full, or none is left."""
        order = sorted(self._flights, key=lambda id: (self._flights[id].arrives, self._places[id]))
        heard = 0
        for id in order:
            if heard == self.buffer.size:
                break
            flight, device = self._flights.pop(id), self.inner.devices[self._places[id]]
            self.costs.pass_time(scope, max(0.0, flight.arrives - self.costs.now))
            self._enter(scope, id, flight)
            held = self._held(id) if flight.memory is None else flight.memory
            self._came[id] = SavedMemory(scope.round, scope.attempt, held)
            if flight.reason:
                yield Silence(
                    device, flight.reason, flight.down, flight.up, flight.forgot, flight.work, flight.lost, flight.fault
                )
                continue
            heard += 1
            stale = scope.round - flight.round
            value = decode(flight.value, OWN)
            yield Answer(device, value, flight.down, flight.up, flight.work, stale, self.buffer.weight(stale))

    def _enter(self, scope: Scope, id: str, flight: Flight) -> None:
        """Book what a flight took. Who works is never idle."""
        profile, spent = self.clock.profiles[id], Times(*flight.times)
        energy = joules(profile, spent, 0.0)
        entry = self.costs.book(scope, id, profile.name, spent, 0.0, energy, Macs(*flight.macs), flight.peak)
        entry.dropped += flight.dropped

    def reject(self, device: Device, why: str = "") -> None:
        """What the answer's device kept does not count: it holds what it held before."""
        super().reject(device, why)
        if device.id in self._came:
            self._came[device.id] = replace(self._came[device.id], memory=self._held(device.id))

    def _held(self, id: str) -> Memory:
        """What a device held when the last round was accepted."""
        return self._memories[id].memory if id in self._memories else {}

    def pending(self) -> Mapping[str, SavedMemory]:
        """What a checkpoint must hold of devices that this round sent off, or whose answers came."""
        off = {
            id: SavedMemory(flight.round, flight.attempt, {FLIGHT: flight, HELD: self._held(id)})
            for id, flight in self._flights.items()
            if self._accepted.get(id) is not flight
        }
        return {**self.inner.pending(), **self._came, **off}

    def commit(self) -> None:
        """Accept the round: who arrived holds what it kept, who left is at work."""
        self._memories |= {**self.inner.pending(), **self._came}
        self._accepted, self._came = dict(self._flights), {}
        self.inner.commit()
        self.inner.restore(self._memories)

    def abort(self) -> None:
        """Drop the round: who was at work before it still is."""
        super().abort()
        self._flights, self._came, self._vacant = dict(self._accepted), {}, None

    def restore(self, memories: Mapping[str, SavedMemory]) -> None:
        """Set accepted memories and who is at work, as a checkpoint held them."""
        self._accepted = {id: held.memory[FLIGHT] for id, held in memories.items() if FLIGHT in held.memory}
        self._memories = {
            id: replace(held, memory=held.memory[HELD]) if id in self._accepted else held
            for id, held in memories.items()
        }
        self._flights = dict(self._accepted)
        self.inner.restore(self._memories)


def _done(cost: Cost, times: Times) -> tuple[int, int]:
    """Operations of a task in the time that was spent on it."""
    part = times.compute / cost.compute if cost.compute else 1.0
    return round(part * cost.macs.done), round(part * cost.macs.kept)
