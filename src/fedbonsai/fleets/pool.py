"""Clients in worker processes of one thread each: started once, samples shared, replaced when they die."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar, cast

from fedbonsai import bases, forked
from fedbonsai.arch import Arch, networks
from fedbonsai.choice import homes
from fedbonsai.core import Answer, Answers, Client, Device, Scale, Scope, Silence, Task
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.crew import crew_size
from fedbonsai.fleets.envelope import Heads, envelope
from fedbonsai.fleets.local import post
from fedbonsai.fleets.slots import Remembers
from fedbonsai.fleets.worker import Books, Done, Job, packed, share, unpacked, work
from fedbonsai.stages.codec.registry import by_name as codec_stages
from fedbonsai.telling import each
from fedbonsai.wire import OWN, decode, encode

M = TypeVar("M")
R = TypeVar("R")


@dataclass
class _Post:
    """One request on its way: where it stands in the order, with which others it is done, and how often it was tried."""

    index: int
    device: Device
    job: Job
    frame: bytearray  # payload
    crew: int  # index of the first of those that are done side by side
    tries: int = 0
    down: int = 0


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    payload: int = -1
    queue: deque[_Post] = field(default_factory=deque["_Post"])


def findable(arch: Arch) -> None:
    """Refuse a network that worker processes could not find again.

    Raises:
        ConfigError: it was defined in a session, such as a notebook, of which there is no file.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    if networks()[arch.name].__module__ == "__main__" and not (script and Path(script).is_file()):
        raise ConfigError(
            f"model {arch.name!r} was defined in this session, where worker processes cannot find it: put it into a module "
            "and name that in imports, or use fleet.kind = 'local'"
        )


class PoolFleet(Remembers):
    """Clients in worker processes. A script that uses it needs the usual ``if __name__ == "__main__":``.

    Args:
        clients: in the order of their devices; their samples move to shared memory.
        workers: processes of one thread each; two of them beat one process of two threads on two cores.
        batch: as for `LocalFleet`; at most so many tasks go to a worker at a time.
    """

    def __init__(self, clients: Sequence[Client], workers: int = 2, batch: int = 1) -> None:
        if workers < 1:
            raise ConfigError(f"fleet.workers = {workers}: expected at least 1")
        super().__init__()
        self.devices = tuple(Device(client.id) for client in clients)
        self._shared = (*share(clients), bases.shared())
        self._context = forked.context()
        self._serial, self._batch, self._books = 0, batch, Books()
        self._workers = [self._start() for _ in range(workers)]

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        named = [*networks().values(), *codec_stages().values()]
        modules = sorted(({own.__module__ for own in named} | homes()) - {"__main__"})
        modules += [name for name in networks() if ":" in name]
        process = forked.process(self._context, work, theirs, *self._shared, modules, daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Ask; a bounded window of requests is under way, answers wait until it is their turn."""
        scope, ask = self._slots.next_ask()
        payloads = post(send)
        return self._heard(task, self._run(scope, ask, task, list(send), payloads), at_least)

    def _run(
        self, scope: Scope, ask: int, task: Task[Any, Any], devices: list[Device], payloads: list[bytearray]
    ) -> Iterator[Answer[Any] | Silence]:
        together = crew_size(len(devices), self._batch, len(self._workers))
        window = (2 * len(self._workers) + 2) * together
        waiting: dict[int, Answer[Any] | Silence] = {}
        serials: dict[int, int] = {}
        ahead, heads = 0, Heads()
        for turn in each("devices", range(len(devices))):
            while turn not in waiting:
                while ahead < min(len(devices), turn + window) and (free := self._idlest()) is not None:
                    crew: list[_Post] = []
                    for index in range(ahead, min(len(devices), ahead + together)):
                        device, frame = devices[index], payloads[index]
                        if id(frame) not in serials:
                            self._serial += 1
                            serials[id(frame)] = self._serial
                        head = envelope(scope, ask, task.name, device.id, self._slots.base(device.id))
                        memory = packed(self._slots.memory(device.id))
                        job = Job(head, serials[id(frame)], task.run.__module__, memory)
                        crew.append(_Post(index, device, job, frame, ahead, down=heads.down(head) + len(frame)))
                    self._give(free, crew)
                    ahead += len(crew)
                waiting.update(self._collect())
            yield waiting.pop(turn)

    def _idlest(self) -> _Worker | None:
        """Worker with the shortest queue: what is in progress and as much behind it keep it busy."""
        worker = min(self._workers, key=lambda worker: len(worker.queue))
        return worker if len({item.crew for item in worker.queue}) < 2 else None

    def _give(self, worker: _Worker, crew: Sequence[_Post]) -> None:
        worker.queue += crew
        try:
            for item in crew:
                if worker.payload != item.job.payload:
                    worker.pipe.send_bytes(encode(item.frame))
                    worker.payload = item.job.payload
                worker.pipe.send_bytes(encode(replace(item.job, beside=len(crew))))
        except OSError:
            pass  # it died; its queue is given to its successor when the pipe reports the end

    def _collect(self) -> dict[int, Answer[Any] | Silence]:
        """Wait for at least one event; what has come, by place in the order."""
        come: dict[int, Answer[Any] | Silence] = {}
        ready = wait([worker.pipe for worker in self._workers])
        for place, worker in enumerate(self._workers):
            if worker.pipe not in ready:
                continue
            try:
                done = cast(Done, decode(worker.pipe.recv_bytes(), limit=OWN))
            except (EOFError, OSError):
                come.update(self._replace(place))
                continue
            item = worker.queue.popleft()
            if done.device != item.device.id or done.serial != item.job.payload:
                raise RuntimeError(f"worker answered for {done.device}, expected {item.device.id}")
            come[item.index] = self._take(done, item)
        return come

    def _take(self, done: Done, item: _Post) -> Answer[Any] | Silence:
        if done.error:
            self._reset()
            raise RuntimeError(f"task {item.job.head.task!r} failed on client {item.device.id}:\n{done.error}")
        if done.silent:
            known = self._books.decoded(done.work)
            return Silence(item.device, done.silent, item.down, done.head, done.forgot, known, fault=done.fault)
        self._slots.keep(item.device.id, unpacked(done.memory))
        up, known = done.head + len(done.reply), self._books.decoded(done.work)
        return Answer(item.device, decode(done.reply, limit=OWN), item.down, up, known)

    def _replace(self, place: int) -> dict[int, Answer[Any] | Silence]:
        """Put a new worker in a dead one's place and give it the queue; each task in progress gets one more try, alone."""
        dead = self._workers[place]
        dead.pipe.close()
        dead.process.join()
        self._workers[place] = new = self._start()
        lost: dict[int, Answer[Any] | Silence] = {}
        crews: dict[int, list[_Post]] = {}
        for item in dead.queue:
            if item.crew == dead.queue[0].crew:
                item.tries += 1
                item.crew = item.index
            if item.tries > 1:
                lost[item.index] = Silence(
                    item.device, f"its worker died twice (exit {dead.process.exitcode})", item.down
                )
            else:
                crews.setdefault(item.crew, []).append(item)
        for crew in crews.values():
            self._give(new, crew)
        return lost

    def _reset(self) -> None:
        """Start over with idle workers: what is under way belongs to a round that was given up."""
        for place, worker in enumerate(self._workers):
            if worker.queue:
                worker.process.kill()
                worker.process.join()
                worker.pipe.close()
                self._workers[place] = self._start()

    def abort(self) -> None:
        """Drop the memories of this round."""
        self._reset()
        super().abort()

    def normalise(self, scale: Scale) -> None:
        """Set the scale of the clients' inputs: the workers, who were told another one, are started anew."""
        count = len(self._workers)
        self.close()
        storages, seats, held = self._shared
        self._shared = (storages, [replace(seat, scale=scale) for seat in seats], held)
        self._workers = [self._start() for _ in range(count)]

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.join(2)
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
        self._workers = []
