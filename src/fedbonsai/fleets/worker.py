"""A worker process of `PoolFleet`: one thread, clients' samples in shared memory, tasks by name."""

from __future__ import annotations

import importlib
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from fedbonsai import bases, tree
from fedbonsai.arch import bring
from fedbonsai.core import Client, Memory, Samples, Scale, task_named
from fedbonsai.errors import ConfigError, Failed, Forgotten, Silent
from fedbonsai.fleets.allocator import keep_memory
from fedbonsai.fleets.crew import side_by_side
from fedbonsai.fleets.envelope import Envelope, blamed, perform, receipt
from fedbonsai.tree import Weights
from fedbonsai.wire import OPTIONAL, OWN, decode, encode, message
from fedbonsai.work import Work, spent


@message("pool/job@1")
class Job:
    """What a worker is told to do with the payload that it was given last under ``payload``."""

    head: Envelope
    payload: int
    module: str  # where the task and its messages are defined
    memory: bytes  # encoded, or empty: its messages may be known only once that module is imported
    beside: int = 1  # jobs in a row, this one included, that are done side by side


@message("pool/done@2")
class Done:
    """What comes back: real reply bytes, the new memory, or why there is neither."""

    device: str
    serial: int
    head: int  # bytes of the receipt
    reply: bytes = b""
    memory: bytes = field(default=b"", metadata=OPTIONAL)
    silent: str = field(default="", metadata=OPTIONAL)
    forgot: bool = field(default=False, metadata=OPTIONAL)
    error: str = field(default="", metadata=OPTIONAL)
    work: bytes = b""  # encoded: that of one client is mostly that of the one before, and then not made or read again
    fault: str = field(default="", metadata=OPTIONAL)


@dataclass(frozen=True)
class View:
    """A tensor as a window on a shared storage, so that ten thousand clients share a handful of file descriptors."""

    storage: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, storages: Sequence[Tensor]) -> Tensor:
        """The tensor."""
        return storages[self.storage].as_strided(self.shape, self.stride, self.offset)


@dataclass(frozen=True)
class Seat:
    """A client without its tensors."""

    id: str
    device: str
    augment: bool
    train: tuple[View, View]
    valid: tuple[View, View]
    scale: Scale | None

    def client(self, storages: Sequence[Tensor]) -> Client:
        """The client, with tensors on shared storages."""
        train, valid = (Samples(x.of(storages), y.of(storages), self.scale) for x, y in (self.train, self.valid))
        return Client(self.id, 0, train, valid, self.device, self.augment)


def share(clients: Sequence[Client]) -> tuple[list[Tensor], list[Seat]]:
    """Move the clients' samples to shared memory, in place and each storage once."""
    storages: list[Tensor] = []
    known: dict[tuple[int, torch.dtype], int] = {}

    def view(value: Tensor) -> View:
        raw = value.untyped_storage()
        key = (raw.data_ptr(), value.dtype)
        if key not in known:
            known[key] = len(storages)
            storages.append(torch.empty(0, dtype=value.dtype).set_(raw).share_memory_())  # type: ignore[call-overload]
            known[(raw.data_ptr(), value.dtype)] = known[key]  # sharing moved the storage
        return View(known[key], tuple(value.shape), value.stride(), int(value.storage_offset()))

    seats = [
        Seat(
            c.id,
            c.device,
            c.augment,
            (view(c.train.stored), view(c.train.y)),
            (view(c.valid.stored), view(c.valid.y)),
            c.train.scale,
        )
        for c in clients
    ]
    return storages, seats


def work(
    pipe: Connection,
    storages: Sequence[Tensor],
    seats: Sequence[Seat],
    held: dict[str, Weights],
    modules: Sequence[str],
) -> None:
    """Main loop of a worker; ends when the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    keep_memory()
    absent = _import(modules)
    bases.adopt(held)
    places = {seat.id: seat for seat in seats}
    inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    # a thread of its own drains the pipe, so that parent and worker never wait for each other to read
    threading.Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
    opened: Opened = (-1, None, [])  # equal messages are decoded once
    raw = b""  # the payload that came last
    crew: list[Callable[[], Done]] = []
    books = Books()
    while (frame := inbox.get()) is not None:
        order = decode(frame, limit=OWN)
        if isinstance(order, bytes):
            raw, opened = order, (-1, None, [])
            continue
        opened = _opened(order, raw, opened)
        crew.append(partial(_do, order, *opened[1:], places[order.head.device].client(storages), books))
        if len(crew) < order.beside:
            continue
        for outcome in side_by_side(crew):
            done = outcome.get()
            if done.error and absent:
                done = replace(done, error=f"{done.error}This worker lacks {'; '.join(absent)}")
            try:
                pipe.send_bytes(encode(done))
            except OSError:
                return
        crew = []


def _import(modules: Sequence[str]) -> list[str]:
    """Import what others' choices and networks stand in; what cannot be imported, which matters only to a task that needs it."""
    absent = []
    for module in modules:
        try:
            bring(module)
        except ConfigError as error:
            absent.append(str(error))
    return absent


def _listen(pipe: Connection, inbox: queue.SimpleQueue[bytes | None]) -> None:
    while True:
        try:
            inbox.put(pipe.recv_bytes())
        except (EOFError, OSError):
            inbox.put(None)
            return


Opened = tuple[int, Any, Sequence[Tensor]]


def _opened(job: Job, raw: bytes, opened: Opened) -> Opened:
    """A job's request, decoded with the module imported that defines it, or what came of that; number and tensors."""
    if opened[0] == job.payload:
        return opened
    try:
        importlib.import_module(job.module)
        request = decode(raw, limit=OWN)
        return job.payload, request, list(tree.tensors(request))
    except Exception:
        return -1, Unread(traceback.format_exc()), []


@dataclass(frozen=True)
class Unread:
    """A request that cannot be decoded, and why."""

    why: str


class Books:
    """Encodes what tasks computed, and decodes it; what is as it was the last time costs a comparison."""

    def __init__(self) -> None:
        self._last: tuple[Work, bytes] = (), bytes(encode(()))

    def encoded(self, done: Work) -> bytes:
        """The bytes of it."""
        if done != self._last[0]:
            self._last = done, bytes(encode(done))
        return self._last[1]

    def decoded(self, raw: bytes) -> Work:
        """What the bytes say."""
        if raw != self._last[1]:
            self._last = decode(raw, limit=OWN), raw
        return self._last[0]


def packed(memory: Memory) -> bytes:
    """A client's memory, encoded; nothing for the empty one."""
    return bytes(encode(memory)) if memory else b""


def unpacked(raw: bytes) -> Memory:
    """The memory that `packed` encoded."""
    return decode(raw, limit=OWN) if raw else {}


def _do(job: Job, request: object, sent: Sequence[Tensor], client: Client, books: Books) -> Done:
    """Do a job."""
    head = job.head
    if isinstance(request, Unread):
        return Done(head.device, job.payload, 0, error=request.why)
    try:
        before = unpacked(job.memory)
        value, memory, done = perform(task_named(head.task), request, client, head, before, sent)
        size = len(encode(receipt(head)))
        with blamed():
            reply, kept = bytes(encode(value)), packed(memory)
        return Done(head.device, job.payload, size, reply, kept, work=books.encoded(done))
    except Silent as error:
        size, why = len(encode(receipt(head, str(error)))), str(error) or "no answer"
        forgot, trace = isinstance(error, Forgotten), error.trace if isinstance(error, Failed) else ""
        known = books.encoded(spent(error))
        return Done(head.device, job.payload, size, silent=why, forgot=forgot, work=known, fault=trace)
    except Exception:  # a fault of ours, or of a task that wrote: the parent raises it, with the text it had here
        return Done(head.device, job.payload, 0, error=traceback.format_exc())
