"""Tasks and clients that the tests of the fleets share; workers import this module by name."""

import os
import signal
import sys
from pathlib import Path

import torch

from fedbonsai.core import Client, Samples, task
from fedbonsai.errors import Forgotten
from fedbonsai.tree import generator
from fedbonsai.wire import message


def clients(count=5, samples=4):
    x = torch.arange(count * samples, dtype=torch.float32).reshape(-1, 1, 1, 1).clone()
    y = torch.zeros(count * samples, dtype=torch.int64)
    parts = [slice(i * samples, (i + 1) * samples) for i in range(count)]
    return [Client(f"{i:02d}", 0, Samples(x[p], y[p]), Samples(x[:0], y[:0])) for i, p in enumerate(parts)]


@message("test/question@1")
class Question:
    value: torch.Tensor
    folder: str = ""


@message("test/reply@1")
class Reply:
    value: torch.Tensor
    draw: float
    calls: int


@task("test/count")
def count(request: Question, me: Client, memory):
    """Sum of the samples plus the question; the memory counts calls."""
    calls = memory.get("calls", 0) + 1
    draw = float(torch.rand((), generator=generator(me.seed)))
    return Reply(me.train.x.sum() + request.value, draw, calls), {"calls": calls, "last": me.train.x.clone()}


@task("test/forget")
def forget(request: Question, me: Client, memory):
    if me.id == "02":
        raise Forgotten("it lost its mask")
    return Reply(request.value, 0.0, 0), memory


@task("test/write")
def write(request: Question, me: Client, memory):
    request.value.add_(1)
    return Reply(request.value, 0.0, 0), memory


@task("test/break")
def broken(request: Question, me: Client, memory):
    raise ZeroDivisionError("a bug in a task")


@task("test/write-and-break")
def write_and_break(request: Question, me: Client, memory):
    request.value.add_(1)
    raise ZeroDivisionError("a bug in a task")


@task("test/stumble")
def stumble(request: Question, me: Client, memory):
    """As `count`, with a memory that it writes into; the question says who fails, and how."""
    calls = memory.get("calls", torch.zeros(1))
    calls += 1
    if request.folder == "wrong":
        raise ValueError(f"client {me.id} has {len(me.train)} samples,\n  and a second line")
    if request.folder == "other":
        raise KeyError("no such layer")
    if request.folder == "exit":
        sys.exit(0)
    if request.folder == "place":
        raise ValueError("abc"[int(me.id)])
    return Reply(me.train.x.sum() + request.value, 0.0, int(calls)), {"calls": calls}


@task("test/interrupted")
def interrupted(request: Question, me: Client, memory):
    raise KeyboardInterrupt


@task("test/die-once")
def die_once(request: Question, me: Client, memory):
    """Client 01 kills its worker the first time, client 03 every time."""
    mark = Path(request.folder) / me.id
    if me.id == "03" or (me.id == "01" and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return count.run(request, me, memory)


@message("test/kept@1")
class KeptThere:
    calls: int


@task("test/keep-message")
def keep_message(request: Question, me: Client, memory):
    """The memory holds a message of this module, which a fresh worker does not know before it imports it."""
    if request.folder and me.id == "01" and not (mark := Path(request.folder) / "died").exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    calls = memory["kept"].calls + 1 if memory else 1
    return Reply(request.value, 0.0, calls), {"kept": KeptThere(calls)}


@task("test/keep-a-set")
def keep_a_set(request: Question, me: Client, memory):
    return Reply(request.value, 0.0, 0), {"kept": {1, 2}}
