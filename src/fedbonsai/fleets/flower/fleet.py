"""The fleet behind a Flower Grid: own polling, deadline and first-k, stable device ids, memories that devices own.

What the server keeps of a device's memory is the name of its slot; that name is what a checkpoint holds, so a server
that was killed goes on with the memories that lie on the devices.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar, cast

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fedbonsai import bases
from fedbonsai.core import Answer, Answers, Device, SavedMemory, Scale, Scope, Silence, Task
from fedbonsai.errors import BadMessage, ConfigError
from fedbonsai.fleets.based import tensors_of
from fedbonsai.fleets.envelope import envelope, receipt
from fedbonsai.fleets.flower import hello
from fedbonsai.fleets.flower.compat import EXPIRED
from fedbonsai.fleets.flower.frames import FORMLESS, Form, Reply, Request, check, in_head, open_head
from fedbonsai.fleets.flower.letter import Letter
from fedbonsai.fleets.flower.logbook import Logbook
from fedbonsai.fleets.flower.memory import slot_of
from fedbonsai.fleets.flower.names import plain
from fedbonsai.fleets.flower.record import pack, packed, unpack
from fedbonsai.fleets.flower.spool import Spool
from fedbonsai.fleets.local import post
from fedbonsai.fleets.slots import Remembers
from fedbonsai.telling import doing, each
from fedbonsai.wire import LIMIT, decode, encode

M = TypeVar("M")
R = TypeVar("R")

TRAIN, QUERY = "train", "query"
AT_ONCE = 8  # replies that are pulled by one call: a Grid holds all of them in memory
NEAR = 256 << 20  # bytes of replies that wait in memory for their turn
GREETING = 60.0  # seconds in which a node must say who it is, once a run goes on
AGAIN = 20.0  # seconds until a node that cannot take part is asked again: somebody may have mended it
SHY = 600.0  # seconds until a node that did not say who it is, is asked again
AFTER = 60.0  # seconds for which Flower keeps a message beyond its deadline

FAULT = 4000  # characters of a task's error that are shown

log = logging.getLogger("fedbonsai")


class FlowerFleet(Remembers):
    """Devices behind a Grid. Who they are is settled when the fleet is made.

    Args:
        grid: Flower's, or `grid.InProcessGrid`.
        form: what samples must look like on every device.
        expect: number of devices to wait for.
        at_least: number that will do when the wait is over; 0 means all that are expected.
        patience: seconds to wait for them, and in a round for anybody at all.
        deadline: seconds in which the devices must answer an ask.
        first: if positive: an ask is over when so many have answered; all others are silent.
        codecs: optional codecs that the run uses.
        limit: bytes of the largest answer that is accepted.
        poll: seconds between looks for answers.
        who: if given: the names under which nodes were let in, so that none can say that it is another.
        logbook: where what is learned of devices is written down.
        sent: called when messages were handed to the Grid.

    Raises:
        ConfigError: too few devices came, or too few that can take part; the text says why, and what mends it.
    """

    def __init__(
        self,
        grid: Grid,
        form: Form,
        *,
        expect: int = 1,
        at_least: int = 0,
        patience: float = 300.0,
        deadline: float = 600.0,
        first: int = 0,
        codecs: Iterable[str] = (),
        limit: int = LIMIT,
        poll: float = 0.2,
        who: Callable[[], Mapping[int, str]] | None = None,
        logbook: Logbook | None = None,
        sent: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._grid, self._codecs, self._sent = grid, frozenset(codecs), sent
        self._form, self._rest = in_head(form)
        self._formless = False  # whether a device lost what of the form is in no head
        self._deadline, self._first, self._limit, self._poll = deadline, first, limit, poll
        self._who = who
        self._logbook, self._took = logbook or Logbook(), dict[str, float]()
        self._nodes: dict[str, int] = {}  # of each device
        self._known: dict[int, float] = {}  # nodes that were asked who they are, and when to ask again
        self._hailed: dict[str, int] = {}  # nodes that have not answered yet, by the id of the question
        self.refused: dict[str, str] = {}
        """Why a device cannot take part, by its id (or its node, where it has not said its id)."""
        self._patience = patience
        try:
            self._gather(expect, at_least or expect)
        finally:
            self._logbook.write()
        self.devices: Sequence[Device] = tuple(Device(id) for id in sorted(self._nodes))

    def _gather(self, expect: int, at_least: int) -> None:
        until = time.monotonic() + self._patience
        with doing(f"waiting up to {self._patience:g} s for devices", expect) as at:
            while True:
                self._hail(min(self._deadline, max(1.0, until - time.monotonic())))
                while self._hear():
                    pass
                at(len(self._nodes))
                if len(self._nodes) >= expect or time.monotonic() >= until:
                    break
                time.sleep(self._poll)
        if len(self._nodes) < at_least:
            why = hello.by_reason(self.refused)
            raise ConfigError(
                f"{len(self._nodes)} devices can take part, {at_least} are needed; "
                f"{why or 'start more: fedbonsai join'}"
            )

    def _hail(self, seconds: float) -> set[int]:
        """Ask nodes that are new here who they are, and do not wait for what they say."""
        now = time.monotonic()
        fresh = {node for node in self._grid.get_node_ids() if self._known.get(node, 0.0) <= now}
        if not fresh:
            return fresh
        head = pack(encode(hello.Hello(hello.VERSION, hello.WIRE, self._form)), packed(self._rest))
        sent = {node: Message(head, node, QUERY, ttl=seconds + AFTER) for node in fresh}
        taken = {id: node for id, node in zip(self._push(sent.values()), sent, strict=False) if id}
        self._hailed = {id: node for id, node in self._hailed.items() if node not in fresh} | taken
        self._known |= dict.fromkeys(taken.values(), now + seconds)
        return set(taken.values())

    def _hear(self) -> bool:
        """Take in what nodes said of themselves meanwhile; whether any did."""
        come = self._pull(self._hailed)
        for reply in come:
            node = self._hailed.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                met, again = self._meet(node, reply), time.monotonic() + AGAIN
                if reply.has_error() and reply.error.code == EXPIRED:
                    again = max(again, self._known.get(node, 0.0))  # Flower says so; the node says nothing, as before
                self._known[node] = math.inf if met else again
        return bool(come)

    def _meet(self, node: int, reply: Message) -> bool:
        """Take in what a node says of itself; whether it can take part."""
        try:
            if reply.has_error():
                raise BadMessage(f"failed: {reply.error.reason}")
            raw, _ = unpack(reply, self._limit)
            card = cast(hello.Card, open_head(raw, hello.Card))
        except BadMessage as error:
            return self._refuse(f"node {node}", str(error), node)
        if self._who is not None and (name := self._who().get(node)) != card.device:
            return self._refuse(
                f"node {node}",
                f"says it is {card.device!r}, its key was let in as {name!r}; there: join --name {name}",
                node,
            )
        self._logbook.met(card.device, card.version, card.machine, card.train, card.valid)
        if why := hello.mismatch(card, self._codecs):
            return self._refuse(card.device, why)
        if self._nodes.get(card.device, node) != node and self._nodes[card.device] in set(self._grid.get_node_ids()):
            # nobody takes another's place while that one is there
            return self._refuse(
                f"node {node}", f"says it is {card.device!r}, and so does another node; give each its own name", node
            )
        self.refused.pop(card.device, None)
        self._nodes[card.device] = node
        return True

    def _refuse(self, who: str, why: str, node: int = -1) -> bool:
        who, why = plain(who), plain(why)
        if self.refused.get(who) != why:
            log.warning("device %s cannot take part: it %s", who, why)
        self.refused[who] = why
        self._logbook.refused(self._who().get(node, who) if self._who else who, why)
        return False

    def open(self, scope: Scope) -> None:
        """Begin a round: not before somebody is there, and who came back as another node is met again."""
        super().open(scope)
        until = time.monotonic() + self._patience
        with doing(f"waiting up to {self._patience:g} s for a device to come back"):
            while (
                not (there := set(self._nodes.values()) & set(self._grid.get_node_ids())) and time.monotonic() < until
            ):
                self._meet_again()
                time.sleep(self._poll)
        if len(there) < len(self._nodes) or self._formless:
            self._formless = False
            self._meet_again()

    def _meet_again(self) -> None:
        known = list(self._nodes)
        fresh, until = self._hail(GREETING), time.monotonic() + GREETING
        while self._hear() or (fresh & set(self._hailed.values()) and time.monotonic() < until):
            time.sleep(self._poll)
        # no round waits for them a second time soon, but what they say is heard in passing
        self._known |= dict.fromkeys(fresh & set(self._hailed.values()), time.monotonic() + SHY)
        self._nodes = {id: self._nodes[id] for id in known}  # who is new waits for the next run

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Ask; all requests are sent at once, answers wait until it is their turn."""
        scope, ask = self._slots.next_ask()
        until = time.monotonic() + self._deadline
        letters = self._send(scope, ask, task, send)
        return self._heard(task, self._run(task, letters, until), at_least)

    def _heard(
        self, task: Task[Any, R], items: Iterator[Answer[R] | Silence], at_least: int, clients: int = 0
    ) -> Answers[R]:
        return super()._heard(task, self._logbook.heard(items, self._slots.scope, self._took), at_least, clients)

    def _send(self, scope: Scope, ask: int, task: Task[Any, Any], send: Mapping[Device, object]) -> list[Letter]:
        there = set(self._grid.get_node_ids())
        shared: dict[int, ArrayRecord] = {}
        letters: list[Letter] = []
        messages: list[Message] = []
        for (device, _), payload in zip(send.items(), post(send), strict=True):
            head = envelope(scope, ask, task.name, device.id, self._slots.base(device.id))
            node = self._nodes.get(device.id)
            if node not in there:
                letters.append(Letter(device, head, 0, trouble="not connected"))
                continue
            start = slot_of(self._slots.memory(device.id))
            raw = encode(Request(head, start, self._form, hello.VERSION))
            array = shared.get(id(payload)) or shared.setdefault(id(payload), packed(payload))
            letters.append(Letter(device, head, len(raw) + len(payload), node=node))
            messages.append(
                Message(pack(raw, array), node, TRAIN, ttl=self._deadline + AFTER, group_id=str(scope.round))
            )
        ids = iter(self._push(messages) if messages else ())
        for letter in letters:
            if not letter.trouble:
                letter.id, letter.sent = next(ids, None) or "", time.monotonic()
                letter.trouble = "" if letter.id else "Flower did not take the message"
        return letters

    def _run(self, task: Task[Any, Any], letters: list[Letter], until: float) -> Iterator[Answer[Any] | Silence]:
        outstanding = {letter.id: number for number, letter in enumerate(letters) if not letter.trouble}
        spool, heard = Spool(NEAR), 0
        try:
            for number, letter in enumerate(each("devices", letters)):
                while letter.id in outstanding:
                    come = self._pull(outstanding)
                    for reply in come:
                        heard += self._receive(letters, outstanding, spool, reply)
                    enough = self._first and heard >= self._first
                    if enough or (not come and time.monotonic() >= until):
                        why = "enough others answered" if enough else f"no answer within {self._deadline:g} s"
                        for late in outstanding.values():
                            letters[late].trouble = why
                        outstanding.clear()
                    elif not come:
                        time.sleep(self._poll)
                yield self._open(task, letter, spool.take(number) if letter.reply else b"")
        finally:
            spool.close()

    def _receive(self, letters: list[Letter], outstanding: dict[str, int], spool: Spool, reply: Message) -> bool:
        """Put a reply where its turn will find it; whether it is an answer."""
        number = outstanding.pop(reply.metadata.reply_to_message_id, None)
        if number is None:
            return False  # to nothing that was asked, or a second one
        letter = letters[number]
        self._took[letter.device.id] = time.monotonic() - letter.sent
        try:
            if reply.has_error():
                raise BadMessage(f"the app failed: {reply.error.reason}")
            if reply.metadata.src_node_id != letter.node:
                raise BadMessage("another node answered in its place")
            raw, payload = unpack(reply, self._limit)
            letter.up = len(raw) + len(payload)
            letter.reply = cast(Reply, open_head(raw, Reply))
            if letter.reply.receipt != receipt(letter.head, letter.reply.receipt.silent):
                letter.reply = None
                raise BadMessage("the reply is to another request")
        except BadMessage as error:
            letter.trouble, letter.refused = plain(str(error)), not reply.has_error()
            return False
        spool.put(number, payload)
        return not letter.reply.receipt.silent

    def _open(self, task: Task[Any, Any], letter: Letter, payload: bytes) -> Answer[Any] | Silence:
        """The answer in a letter, with what it says of the device's memory."""
        device, reply = letter.device, letter.reply
        if reply is None:
            return Silence(device, letter.trouble, letter.down, letter.up, refused=letter.refused)
        if reply.lost:
            self._slots.keep(device.id, {})  # what it had is gone: it begins anew
        if reply.receipt.silent:
            if reply.receipt.silent.startswith(FORMLESS):
                self._known.pop(letter.node, None)  # the next round begins with an introduction
                self._formless = True
            fault = "\n".join(plain(line) for line in reply.fault[-FAULT:].splitlines())
            return Silence(device, plain(reply.receipt.silent), letter.down, letter.up, reply.forgot, fault=fault)
        try:
            value = decode(payload, self._limit)
            check(task, value, "answer")
        except BadMessage as error:
            return Silence(device, plain(str(error)), letter.down, letter.up, refused=True)
        self._slots.keep(device.id, reply.kept.kept() if reply.kept else {})
        return Answer(device, value, letter.down, letter.up)

    def _push(self, messages: Iterable[Message]) -> list[str]:
        ids = list(self._grid.push_messages(messages))
        self._sent()
        return ids

    def _pull(self, ids: Iterable[str]) -> list[Message]:
        """Replies that came, a few at a time."""
        left = iter(ids)
        while few := list(islice(left, AT_ONCE)):
            if come := list(self._grid.pull_messages(few)):
                return come
        return []

    def abort(self) -> None:
        """End a round, and write down what was learned of devices."""
        super().abort()
        self._logbook.write()

    def restore(self, memories: Mapping[str, SavedMemory]) -> None:
        """Set what devices keep, as a checkpoint named it.

        Raises:
            ConfigError: the checkpoint holds memories themselves: a simulation wrote it.
        """
        if any(kept.memory.keys() - {"slot"} for kept in memories.values()):
            raise ConfigError("this run was begun as a simulation: its clients' memories are not on devices")
        super().restore(memories)

    def normalise(self, scale: Scale) -> None:
        """Set the scale of the devices' inputs: requests name it, `based.Based` sends it."""
        self._form = replace(self._form, scale=bases.digest(tensors_of(scale)))

    def close(self) -> None:
        """Nothing to give back: the Grid is Flower's."""
