"""A fleet with a virtual clock: what every answer would have taken on its device and its link. Nothing sleeps.

Devices work at the same time and the server waits for the slowest of them, for a deadline or for the first few. Its own
computing takes no time. Seconds follow from the bytes that were really encoded and the work that was really done, so
the clock needs the wire.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, TypeVar

from fedbonsai.core import Answer, Answers, Device, Fleet, Scope, Silence, Task
from fedbonsai.devices.clock import Macs, Times, compute_seconds, end, joules, macs
from fedbonsai.devices.link import Ask, Link
from fedbonsai.devices.memory import process_bytes
from fedbonsai.devices.profile import Profile
from fedbonsai.fleets.based import GIVEN
from fedbonsai.fleets.costs import Costs
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.tree import seed_of
from fedbonsai.wire import OWN, decode, encode

M = TypeVar("M")
R = TypeVar("R")

DAY = 86_400.0  # seconds


@dataclass(frozen=True)
class Clock:
    """What is known of the devices, and how long the server waits."""

    profiles: Mapping[str, Profile]
    """By device id."""
    links: Mapping[str, Link]
    """By device id."""
    deadline: float = 0.0
    """Seconds that an ask of a round is waited for at most; 0 is without end. The beginning of a run has none."""
    first: int = 0
    """Answers after which an ask of a round ends; 0 is all. The beginning of a run waits for all."""
    availability: float = 1.0
    """Share of the day in which a device can be reached; the hours are drawn for each device."""
    dropout: float = 0.0
    """Probability that a device gives up in the middle of an ask."""
    stragglers: float = 0.0
    """Probability that a device computes slowly in a round."""
    slowdown: float = 5.0
    """How much slower that is."""

    def away(self, seed: int, device: str, now: float) -> float:
        """Seconds until a device can be reached; 0 when it can be."""
        shift = fraction(seed, f"clock/hours {device}", -1, 0)
        hour = (now / DAY + shift) % 1.0
        return 0.0 if hour < self.availability else (1.0 - hour) * DAY


@dataclass(frozen=True)
class Question:
    """One ask: where the run stands, when it was sent, and what links know of it."""

    scope: Scope
    number: int
    sent: float
    """Simulated seconds since the run began."""
    link: Ask
    deadline: float
    first: int


@dataclass(frozen=True)
class Cost:
    """What one ask costs one device, if it is waited for."""

    device: Device
    times: Times
    compute: float
    """Seconds of the whole task, of which ``times`` has what was done before it failed."""
    macs: Macs
    peak: int
    failed: str = ""
    """Why no answer comes, though the task had one."""
    lost: bool = False
    """Whether its answer was sent and did not come."""


class Timed(Wrapper):
    """Counts seconds and joules, and drops what comes too late.

    Args:
        inner: a fleet that encodes its messages.
        clock: devices, links and rules.
        costs: where it is booked.
    """

    def __init__(self, inner: Fleet, clock: Clock, costs: Costs) -> None:
        super().__init__(inner)
        self.clock = clock
        self.costs = costs

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Ask those who can be reached; answers that come too late are silences, and what was kept does not count."""
        scope, number = self.where()
        away = self._away(scope, list(send), wait=task not in GIVEN)
        reached = {device: request for device, request in send.items() if device not in away}
        rules = (self.clock.deadline, self.clock.first) if scope.round >= 0 else (0.0, 0)
        asked = Question(scope, number, self.costs.now, known_of(scope, reached), *rules)
        answers = self.inner.ask(task, reached, 0)
        run = self._first(asked, answers) if asked.first else self._all(asked, answers)

        def rest() -> Iterator[Answer[R] | Silence]:
            yield from run
            yield from (Silence(device, f"away for {away[device] / 3600:.1f} hours") for device in away)

        return Answers(rest(), at_least)

    def _away(self, scope: Scope, devices: list[Device], wait: bool = True) -> dict[Device, float]:
        """Who cannot be reached, and for how long; when it is all of them, the server may wait for the first to return."""
        if self.clock.availability >= 1 or not devices:
            return {}
        hours = {device: self.clock.away(scope.seed, device.id, self.costs.now) for device in devices}
        if first := min(hours.values()) if wait else 0.0:
            self.costs.pass_time(scope, first)
        return {device: left - first for device, left in hours.items() if left > first}

    def _all(self, asked: Question, answers: Answers[R]) -> Iterator[Answer[R] | Silence]:
        """Answers as they come in the mapping's order: whether one is late does not depend on the others."""
        costs: list[Cost] = []
        for answer in answers:
            costs.append(cost := self._cost(asked, answer))
            if cost.failed or (asked.deadline and cost.times.total > asked.deadline):
                yield self._dropped(answer, cost.failed or f"late: {cost.times.total:.1f} s")
            else:
                yield answer
        silent = list(answers.silent.values())
        costs += [self._cost(asked, silence) for silence in silent]
        last = _end(asked, silent, costs)
        self._book(asked, costs, last, {cost.device for cost in costs if cost.times.total > last})
        yield from silent

    def _first(self, asked: Question, answers: Answers[R]) -> Iterator[Answer[R] | Silence]:
        """The earliest answers in the mapping's order; encoded, they wait on the disk until all have come."""
        came: list[tuple[Answer[Any], Cost, int]] = []
        with tempfile.TemporaryFile() as spool:
            for answer in answers:
                cost = self._cost(asked, answer)
                came.append((replace(answer, value=None), cost, spool.tell()))
                spool.write(encode(answer.value))
            silent = list(answers.silent.values())
            good = [cost.times.total for _, cost, _ in came if not cost.failed]
            costs = [cost for _, cost, _ in came] + [self._cost(asked, silence) for silence in silent]
            enough = len(good) >= asked.first
            last = end(good, asked.deadline, asked.first) if enough else _end(asked, silent, costs)
            there = [cost for _, cost, _ in came if not cost.failed and cost.times.total <= last]
            used = sorted(there, key=lambda cost: cost.times.total)[: asked.first]  # of equals the one asked earlier
            kept = {cost.device for cost in used}
            unused = {cost.device for _, cost, _ in came if cost.device not in kept}
            self._book(asked, costs, last, unused | {cost.device for cost in costs if cost.times.total > last})
            ends = [where for _, _, where in came[1:]] + [spool.tell()]
            for (answer, cost, begin), stop in zip(came, ends, strict=True):
                if cost.device not in kept:
                    yield self._dropped(answer, cost.failed or f"late: {cost.times.total:.1f} s")
                else:
                    yield replace(answer, value=_read(spool, begin, stop))
        yield from silent

    def _dropped(self, answer: Answer[Any], why: str) -> Silence:
        self.inner.reject(answer.device)
        return Silence(answer.device, why, answer.down, answer.up, work=answer.work)

    def _cost(self, asked: Question, item: Answer[Any] | Silence) -> Cost:
        id, clock, scope, link, now = item.device.id, self.clock, asked.scope, asked.link, asked.sent
        profile, carrier = clock.profiles[id], clock.links[id]
        slow = fraction(scope.seed, f"clock/slow {id}", scope.round, 0) < clock.stragglers
        down = carrier.seconds("down", item.down, now, id, link)
        compute = compute_seconds(profile, item.work) * (clock.slowdown if slow else 1.0)
        up = carrier.seconds("up", item.up, now + down + compute, id, link)
        times, peak, failed = Times(down, compute, up), process_bytes(profile, item.work), ""
        if peak > profile.memory.value:
            failed = f"out of memory: needs {peak / 1e6:.0f} MB, has {profile.memory.value / 1e6:.0f} MB"
            times = replace(times, up=0.0)
        elif fraction(scope.seed, f"clock/dropout {scope.attempt} {id}", scope.round, asked.number) < clock.dropout:
            failed = "dropped out"
            times = times.until(
                times.total * fraction(scope.seed, f"clock/moment {scope.attempt} {id}", scope.round, asked.number)
            )
        lost = isinstance(item, Silence) and item.lost and item.up > 0
        return Cost(item.device, times, compute, macs(item.work), peak, failed, lost)

    def _book(self, asked: Question, costs: list[Cost], last: float, unused: set[Device]) -> None:
        for cost in costs:
            id = cost.device.id
            spent = cost.times.until(last)
            idle = last - spent.total
            profile = self.clock.profiles[id]
            energy = joules(profile, spent, idle)
            part = spent.compute / cost.compute if cost.compute else 1.0
            done = Macs(round(part * cost.macs.done), round(part * cost.macs.kept))
            entry = self.costs.book(asked.scope, id, profile.name, spent, idle, energy, done, cost.peak)
            entry.dropped += bool(cost.failed or cost.lost or cost.device in unused)
        self.costs.pass_time(asked.scope, last)


def _end(asked: Question, silent: list[Silence], costs: list[Cost]) -> float:
    """When all have come, or at the deadline; who never says anything is waited for until then."""
    mute = any(silence.lost or not silence.up for silence in silent) or any(cost.failed for cost in costs)
    if mute and asked.deadline:
        return asked.deadline
    return end([cost.times.total for cost in costs], asked.deadline)


def _read(spool: BinaryIO, begin: int, stop: int) -> Any:
    spool.seek(begin)
    return decode(spool.read(stop - begin), OWN)


def known_of(scope: Scope, send: Mapping[Device, object]) -> Ask:
    """What links may know of an ask."""
    return Ask(
        tuple(device.id for device in send),
        scope.seed,
        scope.round,
        len({id(request) for request in send.values()}) == 1,
        {device.id: hertz for device, request in send.items() if (hertz := granted(request)) is not None},
    )


def granted(request: object) -> float | None:
    """Hz that a request grants its device, where it or a part of it says so in an attribute ``bandwidth`` above 0."""
    values = [getattr(part, "bandwidth", None) for part in (request, *vars(request).values())]
    return next((float(value) for value in values if isinstance(value, int | float) and value > 0), None)


def fraction(seed: int, who: str, round: int, ask: int) -> float:
    """A number in [0, 1) by seed alone."""
    return seed_of(seed, who, round, ask) / (1 << 63)
