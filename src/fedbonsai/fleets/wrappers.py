"""Fleets around fleets: since the port has one verb, what watches or disturbs a fleet is itself a fleet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

from fedbonsai.core import Answer, Answers, Device, Fleet, SavedMemory, Scale, Scope, Silence, Task
from fedbonsai.disk import writing
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.ledger import Ledger, Row
from fedbonsai.tree import seed_of
from fedbonsai.wire import OWN, decode, encode, name_of

M = TypeVar("M")
R = TypeVar("R")


class Wrapper:
    """Passes everything on; a subclass replaces what it is for."""

    def __init__(self, inner: Fleet) -> None:
        self.inner = inner
        self._scope: Scope | None = None
        self._asks = 0

    @property
    def devices(self) -> Sequence[Device]:
        """Devices of the fleet inside."""
        return self.inner.devices

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Ask the fleet inside."""
        return self.inner.ask(task, send, at_least)

    def open(self, scope: Scope) -> None:
        """Begin a round."""
        self._scope, self._asks = scope, 0
        self.inner.open(scope)

    def where(self) -> tuple[Scope, int]:
        """Scope and number of the ask that begins now."""
        if self._scope is None:
            raise RuntimeError("no round is open; use `with scope(fleet, Scope(...))`")
        self._asks += 1
        return self._scope, self._asks - 1

    def reject(self, device: Device, why: str = "") -> None:
        """Drop what the device kept in this round."""
        self.inner.reject(device, why)

    def pending(self) -> Mapping[str, SavedMemory]:
        """Memories that this round changed."""
        return self.inner.pending()

    def commit(self) -> None:
        """Accept the memories of this round."""
        self.inner.commit()

    def abort(self) -> None:
        """Drop the memories of this round."""
        self.inner.abort()

    def restore(self, memories: Mapping[str, SavedMemory]) -> None:
        """Set accepted memories."""
        self.inner.restore(memories)

    def normalise(self, scale: Scale) -> None:
        """Set the scale of the clients' inputs."""
        self.inner.normalise(scale)

    def close(self) -> None:
        """Close the fleet inside."""
        self.inner.close()


class Metered(Wrapper):
    """Books every byte: one row per client, round, direction and message class."""

    def __init__(self, inner: Fleet, ledger: Ledger) -> None:
        super().__init__(inner)
        self.ledger = ledger
        self._sent: dict[Device, str] = {}

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Ask, and book as the answers come, which may be to what was asked before."""
        scope, _ = self.where()
        self._sent |= {device: name_of(request) for device, request in send.items()}
        sent = dict(self._sent)

        answers = self.inner.ask(task, send, 0)

        def booked() -> Iterator[Answer[R] | Silence]:
            for answer in answers:
                self._book(scope, answer.device, sent[answer.device], answer.down, name_of(answer.value), answer.up)
                yield answer
            for silence in answers.silent.values():
                self._book(scope, silence.device, sent[silence.device], silence.down, "silent", silence.up)
                yield silence

        return Answers(booked(), at_least)

    def _book(self, scope: Scope, device: Device, sent: str, down: int, got: str, up: int) -> None:
        if down:
            self.ledger.add(Row(scope.round, scope.attempt, device.id, "down", sent, down))
        if up:
            self.ledger.add(Row(scope.round, scope.attempt, device.id, "up", got, up))


class Flaky(Wrapper):
    """Loses requests and replies, decided by the seed alone.

    Args:
        inner: the fleet to disturb.
        rate: probability that a device is silent in an ask. Half of the losses strike the request (the client never
            runs), half the reply (it ran, but its answer and what it kept do not count).
    """

    def __init__(self, inner: Fleet, rate: float) -> None:
        super().__init__(inner)
        if not 0 <= rate <= 1:
            raise ConfigError(f"fleet.flaky = {rate}: expected a probability in [0, 1]")
        self.rate = rate

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Ask those whom the request reaches."""
        scope, ask = self.where()
        lost = {
            device: fate / (self.rate * (1 << 63))
            for device in send
            if (fate := seed_of(scope.seed, f"flaky {scope.attempt} {device.id}", scope.round, ask))
            < self.rate * (1 << 63)
        }
        reached = {device: request for device, request in send.items() if lost.get(device, 1.0) >= 0.5}

        answers = self.inner.ask(task, reached, 0)

        def rest() -> Iterator[Answer[R] | Silence]:
            for answer in answers:
                if answer.device in lost:
                    self.inner.reject(answer.device)
                    yield Silence(answer.device, "reply lost", answer.down, answer.up, work=answer.work, lost=True)
                else:
                    yield answer
            yield from answers.silent.values()
            yield from (Silence(device, "request lost", lost=True) for device in send if device not in reached)

        return Answers(rest(), at_least)


class Recorded(Wrapper):
    """Writes what every ask answered into a folder, one file per ask, for `Replayed`."""

    def __init__(self, inner: Fleet, path: Path) -> None:
        super().__init__(inner)
        self.path = path

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Ask, and write when the last answer was read."""
        scope, ask = self.where()

        answers = self.inner.ask(task, send, 0)

        def kept() -> Iterator[Answer[R] | Silence]:
            lines: list[tuple[object, ...]] = []
            for answer in answers:
                lines.append(
                    (answer.device.id, answer.value, None, answer.down, answer.up, False, answer.work, False, "", False)
                )
                yield answer
            for silence in answers.silent.values():
                known = (
                    silence.reason,
                    silence.down,
                    silence.up,
                    silence.forgot,
                    silence.work,
                    silence.lost,
                    silence.fault,
                    silence.refused,
                )
                lines.append((silence.device.id, None, *known))
                yield silence
            file = recording(self.path, scope, ask)
            with writing(file):
                self.path.mkdir(exist_ok=True)
                file.write_bytes(encode((task.name, tuple(lines))))

        return Answers(kept(), at_least)


class Replayed(Wrapper):
    """Answers from a folder that `Recorded` wrote: a run without its clients."""

    def __init__(self, devices: Sequence[Device], path: Path) -> None:
        self._devices = tuple(devices)
        self.path = path
        self._scope, self._asks = None, 0

    @property
    def devices(self) -> Sequence[Device]:
        """The devices of the recorded fleet."""
        return self._devices

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Answers of the same ask of the recorded run.

        Raises:
            ConfigError: that ask was not recorded, or it asked something else.
        """
        scope, ask = self.where()
        file = recording(self.path, scope, ask)
        if not file.exists():
            raise ConfigError(f"{file} does not exist: round {scope.round}, ask {ask} was not recorded")
        name, lines = decode(file.read_bytes(), OWN)
        if name != task.name or {line[0] for line in lines} != {device.id for device in send}:
            raise ConfigError(f"{file} holds answers to {name!r} of other devices, asked now: {task.name!r}")
        items = (
            Silence(Device(id), reason, down, up, forgot, work, *more)
            if reason is not None
            else Answer(Device(id), cast("R", value), down, up, work)
            for id, value, reason, down, up, forgot, work, *more in lines  # of before: not lost, fault or refused
        )
        return Answers(items, at_least)

    def open(self, scope: Scope) -> None:
        """Begin a round."""
        self._scope, self._asks = scope, 0

    def reject(self, device: Device, why: str = "") -> None:
        """Recorded clients keep nothing."""

    def pending(self) -> Mapping[str, SavedMemory]:
        """Recorded clients keep nothing."""
        return {}

    def commit(self) -> None:
        """Recorded clients keep nothing."""

    def abort(self) -> None:
        """Recorded clients keep nothing."""

    def restore(self, memories: Mapping[str, SavedMemory]) -> None:
        """Recorded clients keep nothing."""

    def normalise(self, scale: Scale) -> None:
        """Recorded clients have no inputs."""

    def close(self) -> None:
        """Nothing to give back."""


def recording(path: Path, scope: Scope, ask: int) -> Path:
    """File of one ask."""
    return path / f"round-{scope.round:05d}-{scope.attempt}-{ask:05d}.msg"
