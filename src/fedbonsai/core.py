"""Two verbs and one port: what a method is, what a fleet is, and what passes between them.

A `Method` is the server of a paper: ``begin`` and ``round`` ask a `Fleet`, and all that changes is in the state they
return. A `Task` is what runs on a client: a named module-level function. The reasons are in ``docs/adr/0001``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor

from fedbonsai.errors import ConfigError, Unanswered
from fedbonsai.identity import Identity
from fedbonsai.model import Model
from fedbonsai.wire import message
from fedbonsai.work import Work

M = TypeVar("M")
R = TypeVar("R")
S = TypeVar("S")

Memory = dict[str, Any]  # what a client keeps between rounds: anything that travels by the wire


@dataclass(frozen=True)
class Scale:
    """How stored inputs become what a network takes: ``(x - mean) / std`` in float32, broadcast over a sample."""

    mean: Tensor
    std: Tensor

    def __call__(self, stored: Tensor) -> Tensor:
        """Inputs of stored ones, [samples, ...]."""
        x = stored.to(torch.float32, copy=True)
        x -= self.mean.to(x.device)
        x /= self.std.to(x.device)
        return x


@dataclass(frozen=True)
class Samples:
    """Inputs and targets of one leading axis.

    Attributes:
        stored: [samples, ...] of any type, as small as the data are: the bytes of a picture, a window of a sensor, tokens.
        y: targets [samples, ...]: classes, numbers, tokens, as the objective wants them.
        scale: how stored inputs become those of a network; None where they are that already.
    """

    stored: Tensor
    y: Tensor
    scale: Scale | None = None

    def __len__(self) -> int:
        return self.y.shape[0]  # which is found sooner than the length of a tensor

    @property
    def x(self) -> Tensor:
        """Inputs of a network [samples, ...]. They are made anew at each look: take batches of samples first."""
        return self.stored if self.scale is None else self.scale(self.stored)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.stored.shape[1:])

    @property
    def size(self) -> tuple[int, ...]:
        """Of one input."""
        return self.shape

    @property
    def kind(self) -> torch.dtype:
        """Type of a network's inputs."""
        return self.stored.dtype if self.scale is None else torch.float32

    @property
    def bytes(self) -> int:
        """Bytes of all inputs as a network takes them."""
        return self.stored.numel() * self.kind.itemsize

    def blank(self, count: int = 1) -> Tensor:
        """Inputs of zeros, for a look at what a network does with them."""
        return torch.zeros(count, *self.shape, dtype=self.kind)

    def __getitem__(self, part: slice | Tensor) -> Samples:
        return Samples(self.stored[part], self.y[part], self.scale)

    def to(self, device: str) -> Samples:
        """The same samples on a torch device."""
        return self if device == "cpu" else Samples(self.stored.to(device), self.y.to(device), self.scale)

    def normalised(self, scale: Scale) -> Samples:
        """The same samples with another scale."""
        return Samples(self.stored, self.y, scale)

    def scaled(self) -> Samples:
        """The same samples with inputs as a network takes them."""
        return Samples(self.x, self.y)


def together(parts: Sequence[Samples]) -> Samples:
    """All samples of several parts of one data set, in their order."""
    scale = parts[0].scale
    return Samples(torch.cat([part.stored for part in parts]), torch.cat([part.y for part in parts]), scale)


@message("device@1")
class Device:
    """A client as the server knows it."""

    id: str


@dataclass(frozen=True)
class Client:
    """What a task may see: ``seed`` is already that of this client, round and ask (`tree.seed_of`).

    ``valid`` decides (early stops, losses that gate an upload); the common test set only reports.
    """

    id: str
    seed: int
    train: Samples
    valid: Samples
    device: str = "cpu"  # torch device
    augment: bool = False  # random crop and flip of training images
    round: int = 0  # by which schedules go
    identity: Identity | None = None  # to other devices; None where it is simulated

    def normalised(self, scale: Scale) -> Client:
        """The same client, whose inputs are normalised otherwise."""
        return replace(self, train=self.train.normalised(scale), valid=self.valid.normalised(scale))


@message("kept@1")
class SavedMemory:
    """A client's memory with the round and attempt in which it was accepted or is about to be."""

    round: int
    attempt: int
    memory: Memory


@message("scope@1")
class Scope:
    """Where a run stands: a round may be attempted several times, ``begin`` is round -1."""

    run: str
    seed: int
    round: int
    attempt: int


@dataclass(frozen=True)
class Task(Generic[M, R]):
    """A function that runs on a client, known to both ends by its name."""

    name: str
    run: Callable[[M, Client, Memory], tuple[R, Memory]]


_tasks: dict[str, Task[Any, Any]] = {}


def task(name: str) -> Callable[[Callable[[M, Client, Memory], tuple[R, Memory]]], Task[M, R]]:
    """Register a module-level function ``(request, me, memory) -> (answer, memory)`` as a task.

    Raises:
        ValueError: the function is a closure, or the name is taken.
    """

    def register(run: Callable[[M, Client, Memory], tuple[R, Memory]]) -> Task[M, R]:
        if "<locals>" in run.__qualname__:
            raise ValueError(f"task {name!r} must be a module-level function: what runs on a client is never a closure")
        held = _tasks.get(name)
        if held is not None and held.run.__module__ != run.__module__:
            raise ValueError(f"task name {name!r} is taken by {held.run.__module__}")
        _tasks[name] = made = Task(name, run)
        return made

    return register


def task_named(name: str) -> Task[Any, Any]:
    """Look a task up.

    Raises:
        ConfigError: no method that is installed here has such a task.
    """
    if name not in _tasks:
        raise ConfigError(f"task {name!r} is not known here; install the same methods on both ends")
    return _tasks[name]


@dataclass(frozen=True)
class Answer(Generic[R]):
    """One device's answer, with what it cost in bytes (0 where nothing was encoded) and what the device computed."""

    device: Device
    value: R
    down: int = 0
    up: int = 0
    work: Work = ()
    stale: int = 0  # rounds since the device was asked, where rounds do not wait for those that they asked
    weight: float = 1.0  # how much it counts for that

    def of(self, value: S) -> Answer[S]:
        """The same answer with another value, such as what was made of it."""
        return cast("Answer[S]", replace(self, value=value))


@dataclass(frozen=True)
class Silence:
    """Why a device did not answer, the bytes that were spent on it, and what it computed all the same."""

    device: Device
    reason: str
    down: int = 0
    up: int = 0
    forgot: bool = False  # the client lost what it held: send it everything next time
    work: Work = ()
    lost: bool = False  # nothing arrived at the server, whatever was sent
    fault: str = ""  # traceback, where its task raised
    refused: bool = False  # an answer came, and the server does not take it


class Answers(Generic[R]):
    """Answers in the order of the question, lazily and once; afterwards `silent` tells who is missing and why."""

    def __init__(self, source: Iterable[Answer[R] | Silence], at_least: int = 1) -> None:
        self.silent: dict[Device, Silence] = {}
        self.finished = False
        self._source = iter(source)
        self._at_least = at_least
        self._started = False

    def __iter__(self) -> Iterator[Answer[R]]:
        if self._started:
            raise RuntimeError("answers come once; keep what you need of them")
        self._started = True
        count = 0
        for item in self._source:
            if isinstance(item, Silence):
                self.silent[item.device] = item
            else:
                count += 1
                yield item
        self.finished = True
        if count < self._at_least:
            reasons = "; ".join(f"{device.id}: {silence.reason}" for device, silence in list(self.silent.items())[:5])
            text = f"{count} answers, at least {self._at_least} needed ({reasons or 'nobody was asked'})"
            raise Unanswered(text, forgetful(self.silent))


def forgetful(silent: Mapping[Device, Silence]) -> tuple[str, ...]:
    """Ids of the devices that lost what they held."""
    return tuple(device.id for device, why in silent.items() if why.forgot)


class Fleet(Protocol):
    """The clients, wherever they run. A round is a scope: see `scope`."""

    @property
    def devices(self) -> Sequence[Device]:
        """All devices, in a fixed order."""
        ...

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Send each device its message and return the answers, in the mapping's order, lazily.

        One ask is open at a time; its answers must be read to the end. Fewer than ``at_least`` raise `Unanswered`.
        """
        ...

    def open(self, scope: Scope) -> None:
        """Begin a round: working memories start from the accepted ones."""
        ...

    def reject(self, device: Device, why: str = "") -> None:
        """Drop what a device kept in this round: its answer came too late or cannot be used; and why, for the log."""
        ...

    def pending(self) -> Mapping[str, SavedMemory]:
        """Client memories that this round changed and a checkpoint must hold, by device id."""
        ...

    def commit(self) -> None:
        """Accept the memories of this round. Called after the checkpoint is on disk."""
        ...

    def abort(self) -> None:
        """Drop the memories of this round."""
        ...

    def restore(self, memories: Mapping[str, SavedMemory]) -> None:
        """Set accepted memories, as a checkpoint held them."""
        ...

    def normalise(self, scale: Scale) -> None:
        """Clients normalise their inputs so from the next round on; who runs elsewhere is sent it when that begins."""
        ...

    def close(self) -> None:
        """Give back processes and files."""
        ...


@contextmanager
def scope(fleet: Fleet, where: Scope) -> Generator[Fleet]:
    """Open a round; the caller commits inside it, and whatever was not committed is dropped."""
    fleet.open(where)
    try:
        yield fleet
    finally:
        fleet.abort()


class Method(Protocol[S]):
    """A paper's server. Its fields are hyper-parameters; all that changes is in the state, itself a message."""

    def begin(self, model: Model, fleet: Fleet, server: Client) -> S:
        """State before the first round; may ask the fleet. ``server`` has the server's own data, if any, and seed."""
        ...

    def round(self, state: S, t: int, fleet: Fleet) -> S:
        """One round."""
        ...

    def model(self, state: S) -> Model:
        """The model that observers evaluate and export writes."""
        ...

    def metrics(self, state: S) -> Mapping[str, float]:
        """Figures of the last round that only the method knows, for the log."""
        ...
