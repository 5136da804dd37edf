"""A device's work on requests: bytes in, bytes out. It knows nothing of Flower and crashes on no bytes."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from dataclasses import replace

from fedbonsai import bases
from fedbonsai.core import Client, Samples, Scale, task_named
from fedbonsai.data import survey
from fedbonsai.errors import BadMessage, ConfigError, Failed, Forgotten, Missing, Silent
from fedbonsai.fleets import based
from fedbonsai.fleets.envelope import failure, perform, receipt
from fedbonsai.fleets.faults import unnumbered
from fedbonsai.fleets.flower.frames import Form, Reply, Request, check, hold_form, open_head, whole
from fedbonsai.fleets.flower.hello import VERSION, WIRE, Card, Hello, codecs, tasks
from fedbonsai.fleets.flower.memory import Lost, Store
from fedbonsai.identity import Identity
from fedbonsai.wire import LIMIT, decode, encode

NOTHING = b""
TEXT = 4000  # characters of an error's text that travel

log = logging.getLogger("fedbonsai")
ALWAYS = (*based.GIVEN, survey.sums)  # tasks that a device knows whatever the method

Source = Callable[[Form], tuple[Samples, Samples]]
"""A device's data: samples to train on and to decide on, in the form that is asked for."""


class Worker:
    """One device.

    Args:
        device: its id, the same over its whole life.
        source: its data; raises `ConfigError` where they do not fit the form.
        store: its memory.
        torch_device: where it computes, such as ``cuda``.
        identity: to other devices; None where it is simulated.
    """

    def __init__(
        self, device: str, source: Source, store: Store, torch_device: str = "cpu", identity: Identity | None = None
    ) -> None:
        self.device, self.store, self._identity = device, store, identity
        bases.keep_in(store.bases)
        self._source, self._torch_device = source, torch_device
        self._held: tuple[Form, Client] | None = None
        self._told: set[str] = set()  # reasons whose traceback is in the log

    def hello(self, raw: bytes, payload: bytes = NOTHING) -> bytes:
        """Answer a `Hello` with a `Card`; the payload is a form that its head has no room for.

        Raises:
            BadMessage: it is none.
        """
        asked = open_head(raw, Hello)
        if payload:
            hold_form(asked.form, payload)
        card = Card(self.device, VERSION, WIRE, tasks(), codecs(), 0, 0, machine=platform.machine())
        try:
            client = self._client(replace(asked.form, scale=""))
        except (ConfigError, Missing) as error:
            log.warning("the server's task cannot be learned with the data of this device: %s", error)
            return bytes(encode(replace(card, fault=str(error)[:TEXT])))
        except Exception as error:  # of the function that gives the data: its text is for who wrote it
            log.exception("the data of this device cannot be read")
            return bytes(encode(replace(card, fault=f"{type(error).__name__}: {error}"[:TEXT])))
        return bytes(encode(replace(card, train=len(client.train), valid=len(client.valid))))

    def perform(self, raw: bytes, payload: bytes) -> tuple[bytes, bytes]:
        """Run a task: head and payload of the reply.

        Raises:
            BadMessage: the head is not a request to this device; a bad payload is answered instead.
        """
        request = open_head(raw, Request)
        head = request.head
        if head.device != self.device:
            raise BadMessage(f"a request to device {head.device[:80]!r}, this is {self.device!r}")
        if request.version != VERSION:
            return _silent(request, f"fedbonsai {VERSION} here, {request.version[:40]} on the server; update this end")
        try:
            task = task_named(head.task)
            memory = self.store.load(head.run, request.start)
            value = decode(payload, LIMIT)
            check(task, value, "request")
            # who is given what normalises the data may have lost it
            form = replace(request.form, scale="") if task in based.GIVEN else request.form
            answer, kept, _ = perform(task, value, self._client(form), head, memory)
            reply = bytes(encode(answer))
            slot = self.store.save(head, request.start, kept)
            self.store.tidy(head, request.start)
        except Failed as error:
            return self._failed(request, error)
        except Silent as error:
            return self._unanswered(
                request, str(error) or "no answer", isinstance(error, Forgotten), isinstance(error, Lost)
            )
        except (BadMessage, ConfigError, Missing) as error:
            return self._unanswered(request, str(error))
        except Exception as error:  # of the data, the answer or a write: one device alone does not end a run by it
            return self._failed(request, failure(error))
        return bytes(encode(Reply(receipt(head), slot))), reply

    def _unanswered(self, request: Request, why: str, forgot: bool = False, lost: bool = False) -> tuple[bytes, bytes]:
        log.warning("task %r has no answer here in round %d: %s", request.head.task, request.head.round + 1, why)
        return _silent(request, why, forgot, lost)

    def _failed(self, request: Request, error: Failed) -> tuple[bytes, bytes]:
        head, why = request.head, str(error)
        log.error("task %r failed on this device in round %d: %s", head.task, head.round + 1, why)
        if (kind := unnumbered(why)) not in self._told:
            log.error("%s", error.trace)
            self._told.add(kind)
        return bytes(encode(Reply(receipt(head, why), fault=error.trace[-TEXT:]))), NOTHING

    def _client(self, form: Form) -> Client:
        stored = replace(form, scale="")
        if self._held is None or self._held[0] != stored:
            train, valid = self._source(wanted := whole(stored))
            self._held = (
                stored,
                Client(self.device, 0, train, valid, self._torch_device, wanted.augment, identity=self._identity),
            )
        client = self._held[1]
        return client.normalised(_scale(form.scale)) if form.scale else client


def _scale(name: str) -> Scale:
    held = bases.of(name, based.UNSCALED)
    if held.keys() != {"mean", "std"}:
        raise BadMessage(f"{name[:40]} names nothing that normalises data")
    return Scale(**held)


def _silent(request: Request, why: str, forgot: bool = False, lost: bool = False) -> tuple[bytes, bytes]:
    return bytes(encode(Reply(receipt(request.head, why[:TEXT]), None, forgot, lost))), NOTHING
