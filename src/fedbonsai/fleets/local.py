"""Clients in this process, one after another; with the wire between, or without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fedbonsai.core import Answer, Answers, Client, Device, Scale, Scope, Silence, Task
from fedbonsai.errors import Failed, Forgotten, Silent
from fedbonsai.fleets.envelope import blamed, envelope, perform, receipt
from fedbonsai.fleets.slots import Remembers
from fedbonsai.telling import each
from fedbonsai.wire import OWN, decode, encode
from fedbonsai.work import spent

M = TypeVar("M")
R = TypeVar("R")


class LocalFleet(Remembers):
    """All clients in this process.

    Args:
        clients: in the order of their devices.
        wire: encode and decode every message, so that the ledger's bytes are real; without it nothing is encoded and
            bytes are 0.
    """

    def __init__(self, clients: Sequence[Client], wire: bool = True) -> None:
        super().__init__()
        self.devices = tuple(Device(client.id) for client in clients)
        self._clients = {client.id: client for client in clients}
        self._wire = wire

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Ask; tasks run as their answers are read."""
        scope, ask = self._slots.next_ask()
        payloads = post(send) if self._wire else None
        return self._heard(task, self._run(scope, ask, task, send, payloads), at_least)

    def _run(
        self, scope: Scope, ask: int, task: Task[M, R], send: Mapping[Device, M], payloads: list[bytearray] | None
    ) -> Iterator[Answer[R] | Silence]:
        opened: tuple[bytearray | None, Any] = (None, None)  # equal messages are decoded once
        for index, (device, request) in enumerate(each("devices", send.items())):
            head = envelope(scope, ask, task.name, device.id, self._slots.base(device.id))
            received: Any = request
            down = up = 0
            if payloads is not None:
                if opened[0] is not payloads[index]:
                    opened = (payloads[index], decode(payloads[index], OWN))
                received = opened[1]
                down = len(encode(head)) + len(payloads[index])
            reply = b""
            try:
                # a copy, so that a task which writes into it and then fails leaves it as it was
                before = decode(encode(self._slots.memory(device.id)), OWN)
                value, memory, work = perform(task, received, self._clients[device.id], head, before)
                with blamed():
                    reply = encode(value) if self._wire else b""
            except Silent as error:
                up = len(encode(receipt(head, str(error)))) if self._wire else 0
                trace = error.trace if isinstance(error, Failed) else ""
                yield Silence(device, str(error), down, up, isinstance(error, Forgotten), spent(error), fault=trace)
                continue
            if self._wire:
                up = len(encode(receipt(head))) + len(reply)
                value = decode(reply, OWN)
            self._slots.keep(device.id, memory)
            yield Answer(device, value, down, up, work)

    def normalise(self, scale: Scale) -> None:
        """Set the scale of the clients' inputs."""
        self._clients = {id: client.normalised(scale) for id, client in self._clients.items()}

    def close(self) -> None:
        """Nothing to give back."""


def post(send: Mapping[Device, Any]) -> list[bytearray]:
    """Encode each message at once; one object sent to many is encoded once."""
    done: dict[int, bytearray] = {}
    return [
        done[id(request)] if id(request) in done else done.setdefault(id(request), encode(request))
        for request in send.values()
    ]
