"""Clients in this process, one after another; with the wire between, or without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from fedbonsai import tree
from fedbonsai.core import Answer, Answers, Client, Device, Memory, Scale, Scope, Silence, Task
from fedbonsai.errors import Failed, Forgotten, Silent
from fedbonsai.fleets.crew import crew_size, side_by_side
from fedbonsai.fleets.envelope import Envelope, Heads, blamed, envelope, perform
from fedbonsai.fleets.slots import Remembers
from fedbonsai.telling import each
from fedbonsai.wire import OWN, decode, encode
from fedbonsai.work import Work, spent

M = TypeVar("M")
R = TypeVar("R")


class LocalFleet(Remembers):
    """All clients in this process.

    Args:
        clients: in the order of their devices.
        wire: encode and decode every message, so that the ledger's bytes are real; without it nothing is encoded and
            bytes are 0.
        batch: so many tasks run side by side, and those that train alike train as one computation.
    """

    def __init__(self, clients: Sequence[Client], wire: bool = True, batch: int = 1) -> None:
        super().__init__()
        self.devices = tuple(Device(client.id) for client in clients)
        self._clients = {client.id: client for client in clients}
        self._wire, self._batch = wire, batch

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Ask; tasks run as their answers are read."""
        scope, ask = self._slots.next_ask()
        payloads = post(send) if self._wire else None
        return self._heard(task, self._run(scope, ask, task, send, payloads), at_least)

    def _run(
        self, scope: Scope, ask: int, task: Task[M, R], send: Mapping[Device, M], payloads: list[bytearray] | None
    ) -> Iterator[Answer[R] | Silence]:
        opened: tuple[object, Any, Sequence[Tensor]] = (None, None, ())  # equal messages are decoded once
        crew: list[_Call] = []
        heads = Heads()
        together = crew_size(len(send), self._batch)
        for index, (device, request) in enumerate(each("devices", send.items())):
            head = envelope(scope, ask, task.name, device.id, self._slots.base(device.id))
            down, source = 0, request if payloads is None else payloads[index]
            if opened[0] is not source:
                received: Any = request if payloads is None else decode(payloads[index], OWN)
                opened = (source, received, list(tree.tensors(received)))
            if payloads is not None:
                down = heads.down(head) + len(payloads[index])
            # a copy, so that a task which writes into it and then fails leaves it as it was
            held = self._slots.memory(device.id)
            memory = decode(encode(held), OWN) if held else {}
            crew.append(_Call(task, device, head, *opened[1:], memory, down, self._clients[device.id], self._wire))
            if len(crew) == together or index == len(send) - 1:
                yield from self._done(crew, heads)
                crew = []

    def _done(self, crew: Sequence[_Call], heads: Heads) -> Iterator[Answer[Any] | Silence]:
        for call, outcome in zip(crew, side_by_side([call.perform for call in crew]), strict=True):
            try:
                value, memory, work, reply = outcome.get()
            except Silent as error:
                up = heads.up(call.head, str(error)) if self._wire else 0
                trace = error.trace if isinstance(error, Failed) else ""
                forgot = isinstance(error, Forgotten)
                yield Silence(call.device, str(error), call.down, up, forgot, spent(error), fault=trace)
                continue
            up = 0
            if self._wire:
                up = heads.up(call.head) + len(reply)
                value = decode(reply, OWN)
            self._slots.keep(call.device.id, memory)
            yield Answer(call.device, value, call.down, up, work)

    def normalise(self, scale: Scale) -> None:
        """Set the scale of the clients' inputs."""
        self._clients = {id: client.normalised(scale) for id, client in self._clients.items()}

    def close(self) -> None:
        """Nothing to give back."""


@dataclass(frozen=True)
class _Call:
    """One device's task, ready to run."""

    task: Task[Any, Any]
    device: Device
    head: Envelope
    request: object
    sent: Sequence[Tensor]  # all of the request's
    memory: Memory
    down: int
    client: Client
    wire: bool

    def perform(self) -> tuple[Any, Memory, Work, bytes | bytearray]:
        """What comes of it: the answer, the new memory, what was computed, and the answer's bytes."""
        value, memory, work = perform(self.task, self.request, self.client, self.head, self.memory, self.sent)
        with blamed():
            return value, memory, work, encode(value) if self.wire else b""


def post(send: Mapping[Device, Any]) -> list[bytearray]:
    """Encode each message at once; one object sent to many is encoded once."""
    done: dict[int, bytearray] = {}
    return [
        done[id(request)] if id(request) in done else done.setdefault(id(request), encode(request))
        for request in send.values()
    ]
