"""What goes round a message on its way to a client and back, and how a client turns one into the other.

A frame is an envelope and a payload, each a whole message of wire v1. The envelope names the last accepted memory of
its device, so that a replayed round, a late answer or a lost reply never spends a residual twice (``docs/adr/0003``).
"""

from __future__ import annotations

import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from fedbonsai import tree
from fedbonsai.arch import keeping
from fedbonsai.core import Client, Memory, Scope, Task
from fedbonsai.errors import Failed, Silent, said
from fedbonsai.wire import encode, message
from fedbonsai.work import Work, collecting, note, spent


@message("envelope@1")
class Envelope:
    """Head of a request: where the run stands, who is asked what, and from which memory the client starts."""

    run: str
    round: int
    attempt: int
    ask: int
    task: str
    device: str
    seed: int
    base: tuple[int, int]  # (round, attempt) of the accepted memory; (-2, 0) when there is none


@message("receipt@1")
class Receipt:
    """Head of a reply: which request it answers, and in ``silent`` why there is no answer."""

    run: str
    round: int
    attempt: int
    ask: int
    device: str
    silent: str = ""


def envelope(scope: Scope, ask: int, task: str, device: str, base: tuple[int, int]) -> Envelope:
    """Envelope of one request; its seed is that of this device, round and ask."""
    seed = tree.seed_of(scope.seed, device, scope.round, ask)
    return Envelope(scope.run, scope.round, scope.attempt, ask, task, device, seed, base)


def receipt(head: Envelope, silent: str = "") -> Receipt:
    """Receipt that answers an envelope."""
    return Receipt(head.run, head.round, head.attempt, head.ask, head.device, silent)


class Heads:
    """Bytes of the heads of one ask, encoded; they go by the lengths of a few fields, so that most are known already."""

    def __init__(self) -> None:
        self._known: dict[object, int] = {}

    def down(self, head: Envelope) -> int:
        """Bytes of a request's head."""
        key = len(head.device.encode()), head.seed.bit_length(), head.base
        return self._known[key] if key in self._known else self._known.setdefault(key, len(encode(head)))

    def up(self, head: Envelope, silent: str = "") -> int:
        """Bytes of the head of its reply."""
        key = len(head.device.encode()), silent
        return (
            self._known[key] if key in self._known else self._known.setdefault(key, len(encode(receipt(head, silent))))
        )


class Written(RuntimeError):
    """A task wrote into the message that it received."""


REASON = 400  # characters of an exception's text that a receipt carries


@contextmanager
def blamed() -> Generator[None]:
    """What a client's own code raises becomes its reason to be silent; a task that writes into its request does not.

    Raises:
        Failed: type and text of the exception on one line, and the traceback.
    """
    try:
        yield
    except (Silent, Written, KeyboardInterrupt):
        raise
    except BaseException as error:  # a network's code that leaves by sys.exit would end the run as if done
        raise failure(error) from error


def failure(error: BaseException) -> Failed:
    """The silence of a client whose task raised: what was raised on one line, its traceback, and what was computed."""
    failed = Failed(said(error, REASON), "".join(traceback.format_exception(error)))
    note(failed, list(spent(error)))
    return failed


def perform(
    task: Task[Any, Any],
    request: object,
    client: Client,
    head: Envelope,
    memory: Memory,
    sent: Sequence[Tensor] | None = None,
) -> tuple[Any, Memory, Work]:
    """Run a task on a client: its answer, the new memory, and what was computed.

    Args:
        task: to run.
        request: to it.
        client: on which.
        head: of the request.
        memory: of the client; the task may write into it.
        sent: all tensors of the request, where one that goes to many was looked through before.

    Raises:
        Silent: the task has no answer to give, or (`Failed`) raised; `work.spent` tells what it computed.
        Written: the task wrote into its request, which other clients share.
    """
    sent = list(tree.tensors(request)) if sent is None else sent
    before = [value._version for value in sent]
    with blamed(), keeping(), collecting() as done:
        answer: Any = None
        kept = dict(memory)
        failed: BaseException | None = None
        try:
            with tree.seeded(head.seed, client.device, every=False):  # whatever else a network draws, as in evaluation
                answer, kept = task.run(request, replace(client, seed=head.seed, round=max(0, head.round)), kept)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            note(failed := error, done)
        if before != [value._version for value in sent]:
            raise Written(f"task {task.name!r} wrote into a tensor of its request; copy before you write") from failed
        if failed is not None:
            raise failed
    return answer, kept, tuple(done)
