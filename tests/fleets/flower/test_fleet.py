"""The fleet over a Grid: order, memory, deadlines, and what broken devices and broken messages do."""

import ast
import random
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

import fedbonsai.fleets.flower
from fedbonsai.core import Scope, scope
from fedbonsai.errors import BadMessage, ConfigError, TaskFailed
from fedbonsai.fleets.envelope import Envelope, Receipt
from fedbonsai.fleets.flower import fleet as fleet_module
from fedbonsai.fleets.flower import hello, worker
from fedbonsai.fleets.flower.client import client_app
from fedbonsai.fleets.flower.compat import EXPIRED
from fedbonsai.fleets.flower.fleet import FlowerFleet
from fedbonsai.fleets.flower.frames import Reply, Request
from fedbonsai.fleets.flower.grid import InProcessGrid
from fedbonsai.fleets.flower.record import pack, packed
from fedbonsai.fleets.flower.spool import Spool
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Flaky, Metered
from fedbonsai.wire import decode, encode, message
from tests.fleets import tasks
from tests.fleets.flower.nodes import FORM, count, fleet_of, grid_of, workers
from tests.fleets.tasks import Question, clients
from tests.fleets.test_fleets import silences, talk

ROUND = Scope("r", 1, 0, 0)
ZERO = Question(torch.tensor(0.0))


class Clock:
    """The fleet's time: it passes only while the fleet sleeps, so no wait hangs on how fast this machine is."""

    def __init__(self):
        self.now, self.then = 0.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        for due in [each for each in self.then if each[0] <= self.now]:
            self.then.remove(due)
            due[1]()

    def after(self, seconds, happens):
        self.then.append((self.now + seconds, happens))


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(fleet_module, "time", made := Clock())
    return made


def calls(fleet, t=0, attempt=0, commit=True, at_least=1):
    """Count of each device that answers one ask of a round."""
    with scope(fleet, Scope("r", 1, t, attempt)):
        answers = fleet.ask(count, dict.fromkeys(fleet.devices, ZERO), at_least)
        heard = {answer.device.id: answer.value.calls for answer in answers}
        if commit:
            fleet.commit()
    return heard, {device.id: silence for device, silence in answers.silent.items()}


def test_answers_are_those_of_a_local_fleet_to_the_byte(tmp_path):
    assert talk(fleet_of(clients(), tmp_path)) == talk(LocalFleet(clients()))


def test_devices_are_sorted_by_their_own_ids_and_not_by_their_nodes(tmp_path):
    fleet = fleet_of(list(reversed(clients())), tmp_path)
    assert [device.id for device in fleet.devices] == ["00", "01", "02", "03", "04"]


def test_losses_by_seed_end_as_they_end_in_process(tmp_path):
    def heard(fleet):
        flaky = Flaky(fleet, 0.4)
        return [calls(flaky, t, at_least=0)[0] for t in range(4)]

    assert heard(fleet_of(clients(), tmp_path)) == heard(LocalFleet(clients()))


def test_memory_counts_only_when_the_round_is_committed(tmp_path):
    fleet = fleet_of(clients(1), tmp_path)
    done = [
        calls(fleet, t, a, commit)[0]["00"] for t, a, commit in ((0, 0, 1), (1, 0, 0), (1, 1, 0), (1, 2, 1), (2, 0, 1))
    ]
    assert done == [1, 2, 2, 2, 3]


def test_the_ledger_holds_the_bytes_of_head_and_payload(tmp_path):
    ledger = Ledger()
    fleet = Metered(fleet_of(clients(), tmp_path), ledger)
    with scope(fleet, ROUND):
        heard = list(fleet.ask(tasks.count, dict.fromkeys(fleet.devices, Question(torch.zeros(100)))))
    payload = len(encode(Question(torch.zeros(100))))
    assert all(payload < answer.down < payload + 400 for answer in heard)
    assert ledger.total == {way: sum(getattr(answer, way) for answer in heard) for way in ("down", "up")}


class Wire(InProcessGrid):
    """A Grid whose replies a test may hold back, change, or give twice."""

    def __init__(self, hands, change=lambda node, replies: replies):
        super().__init__(client_app(lambda context: hands[context.node_id]), {node: {} for node in hands})
        self.change, self.there = change, list(hands)

    def get_node_ids(self):
        return list(self.there)

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        return [out for reply in replies for out in self.change(reply.metadata.src_node_id, [reply])]


def devices_and_wire(folder, count=3):
    hands = workers(clients(count), folder)
    grid = Wire(hands)
    fleet = FlowerFleet(grid, FORM, expect=count, poll=0.01, deadline=0.3, patience=0.5)
    nodes = {hand.device: node for node, hand in hands.items()}
    return fleet, grid, nodes, hands


def test_a_lost_reply_does_not_spend_what_the_device_kept(tmp_path):
    fleet, grid, nodes, _ = devices_and_wire(tmp_path)
    assert calls(fleet, 0)[0] == {"00": 1, "01": 1, "02": 1}
    grid.change = lambda node, replies: [] if node == nodes["01"] else replies
    heard, silent = calls(fleet, 1)
    assert heard == {"00": 2, "02": 2}
    assert "no answer within 0.3 s" in silent["01"].reason
    grid.change = lambda node, replies: replies
    assert calls(fleet, 2)[0] == {"00": 3, "01": 2, "02": 3}


def test_an_answer_that_comes_late_or_twice_is_dropped(tmp_path):
    fleet, grid, nodes, _ = devices_and_wire(tmp_path)
    held = []

    def late(node, replies):
        if node == nodes["00"]:
            held.extend(replies)
            return []
        return replies + replies

    grid.change = late
    assert calls(fleet, 0)[0] == {"01": 1, "02": 1}
    grid.change = lambda node, replies: [*held, *replies]
    assert calls(fleet, 1)[0] == {"00": 1, "01": 2, "02": 2}


def test_a_replayed_answer_is_not_taken_for_a_new_one(tmp_path):
    fleet, grid, nodes, _ = devices_and_wire(tmp_path)
    first = {}

    def replay(node, replies):
        (reply,) = replies
        old = first.setdefault(node, reply)
        if node == nodes["02"] and old is not reply:
            old.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
            return [old]
        return replies

    grid.change = replay
    assert len(calls(fleet, 0)[0]) == 3
    heard, silent = calls(fleet, 1)
    assert heard == {"00": 2, "01": 2}
    assert "another request" in silent["02"].reason


def test_an_answer_from_another_node_does_not_count(tmp_path):
    fleet, grid, nodes, _ = devices_and_wire(tmp_path)

    def foreign(node, replies):
        if node == nodes["02"]:
            replies[0].metadata.__dict__["_src_node_id"] = nodes["00"]
        return replies

    grid.change = foreign
    heard, silent = calls(fleet, 0)
    assert heard == {"00": 1, "01": 1}
    assert "another node" in silent["02"].reason


def test_what_a_device_says_is_one_short_line_of_the_log(tmp_path, caplog):
    hands = workers(clients(1), tmp_path)
    (hand,) = hands.values()

    def source(form):
        raise ConfigError("none\n2026 device 00 is in\x1b[2J" + "x" * 3000)

    hand._source = source
    with pytest.raises(ConfigError, match="0 devices can take part"):
        FlowerFleet(grid_of(hands), FORM, expect=1, patience=0.05, poll=0.01)
    (line,) = [record.getMessage() for record in caplog.records if "cannot take part" in record.getMessage()]
    assert "has no samples: none 2026 device 00 is in" in line
    assert line.isprintable()
    assert len(line) < 1200


def test_what_a_device_answers_cannot_write_lines_or_speak_to_a_terminal(tmp_path):
    fleet, grid, nodes, _ = devices_and_wire(tmp_path)
    nasty, spoilt = "why\n\x1b[2J" + "x" * 5000, {nodes["00"]}

    def spoil(node, replies):
        (reply,) = replies
        if node in spoilt:
            old = decode(reply.content["head"]["head"])
            head = bytes(encode(replace(old, receipt=replace(old.receipt, silent=nasty), fault=nasty)))
            reply.content = pack(head, packed(b""))
        elif node == nodes["01"]:
            reply.metadata.__dict__["_src_node_id"] = 7
        return replies

    grid.change = spoil
    _, silent = calls(fleet, 0)
    assert silent["00"].reason.startswith("why  [2J")
    assert all(silence.reason.isprintable() and len(silence.reason) <= 1000 for silence in silent.values())
    with scope(fleet, ROUND):  # one device alone does not end a run
        list(fleet.ask(count, {device: ZERO for device in fleet.devices if device.id == "00"}, 0))
    spoilt.update(nodes.values())
    with scope(fleet, ROUND), pytest.raises(TaskFailed) as caught:
        list(fleet.ask(count, dict.fromkeys(fleet.devices, ZERO), 0))
    said = str(caught.value) + caught.value.__notes__[0]
    assert "\x1b" not in said
    assert len(said) < 6000


@message("test/other@1")
class Other:
    value: torch.Tensor


def _content(head, payload):
    return pack(head, packed(payload))


BROKEN = {
    "nothing": lambda head, payload: RecordDict(),
    "a pickle": lambda head, payload: _content(head, b"\x80\x04cos\nsystem\n(S'true'\ntR."),
    "half a payload": lambda head, payload: _content(head, payload[: len(payload) // 2]),
    "a head of noise": lambda head, payload: _content(b"\xff" * 100, payload),
    "a huge head": lambda head, payload: _content(b"\0" * (1 << 17), payload),
    "a huge payload": lambda head, payload: _content(head, payload + bytes(2_000_000)),
    "another message": lambda head, payload: _content(head, bytes(encode(Other(torch.zeros(1))))),
    "another head": lambda head, payload: _content(bytes(encode(Receipt("r", 0, 0, 0, "01"))), payload),
    "plain numbers": lambda head, payload: RecordDict(
        {"head": ConfigRecord({"head": head}), "payload": ArrayRecord({"payload": Array("uint8", (1,), "x", b"a")})}
    ),
    "no array": lambda head, payload: RecordDict({"head": ConfigRecord({"head": head}), "payload": ArrayRecord({})}),
    "a number for a head": lambda head, payload: RecordDict(
        {"head": ConfigRecord({"head": 7}), "payload": packed(payload)}
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_answer_is_silence_and_the_others_count(tmp_path, how):
    hands = workers(clients(3), tmp_path)
    grid = Wire(hands)
    fleet = FlowerFleet(grid, FORM, expect=3, poll=0.01, deadline=0.3, limit=1_000_000)
    nodes = {hand.device: node for node, hand in hands.items()}

    def spoil(node, replies):
        (reply,) = replies
        if node == nodes["01"]:
            head = reply.content.config_records["head"]["head"]
            payload = reply.content.array_records["payload"]["payload"].data
            reply.content = BROKEN[how](head, payload)
        return [reply]

    grid.change = spoil
    heard, silent = calls(fleet, 0)
    assert heard == {"00": 1, "02": 1}
    assert silent["01"].reason
    grid.change = lambda node, replies: replies
    assert calls(fleet, 1)[0] == {"00": 2, "01": 1, "02": 2}


def test_a_device_that_fails_is_silent_and_a_task_that_fails_everywhere_raises(tmp_path):
    fleet, grid, nodes, _ = devices_and_wire(tmp_path)
    with scope(fleet, ROUND), pytest.raises(TaskFailed, match=r"all 3 clients .* a bug in a task") as caught:
        list(fleet.ask(tasks.broken, dict.fromkeys(fleet.devices, ZERO)))
    assert 'raise ZeroDivisionError("a bug in a task")' in caught.value.__notes__[0]
    grid.there.remove(nodes["01"])
    heard, silent = calls(fleet, 0)
    assert heard == {"00": 1, "02": 1}
    assert silent["01"].reason == "not connected"
    assert silent["01"].down == 0


def test_devices_whose_task_raises_are_silent_as_clients_in_process_are(tmp_path, caplog):
    reference, _ = silences(LocalFleet(clients()))
    with caplog.at_level("ERROR", "fedbonsai"):
        heard, booked = silences(fleet_of(clients(), tmp_path))
    assert heard == reference
    assert {row["client"] for row in booked if row["kind"] == "silent"} == {"01", "03", "04"}
    # each of the three has its own log, which has the traceback
    assert caplog.text.count("failed on this device in round 2") == 3
    assert caplog.text.count("Traceback") == 3


def test_a_device_that_returns_as_another_node_is_met_again(tmp_path):
    fleet, grid, nodes, hands = devices_and_wire(tmp_path)
    calls(fleet, 0)
    node = nodes["01"]
    hands[5] = hands.pop(node)
    grid.there.remove(node)
    grid.there.append(5)
    grid._contexts[5] = grid._contexts.pop(node)
    grid._contexts[5].node_id = 5
    assert calls(fleet, 1)[0] == {"00": 2, "01": 2, "02": 2}


def test_a_device_that_was_mended_is_met_while_the_server_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet_module, "AGAIN", 0.05)
    hands = workers(clients(2), tmp_path)
    first, asked = next(iter(hands.values())), []
    real = first.hello

    def at_first_old(raw, payload):
        asked.append(raw)
        card = decode(real(raw, payload))
        return bytes(encode(replace(card, version="0.0.1") if len(asked) < 3 else card))

    first.hello = at_first_old
    fleet = FlowerFleet(grid_of(hands), FORM, expect=2, patience=5, poll=0.01)
    assert (len(fleet.devices), len(asked), fleet.refused) == (2, 3, {})


def deaf(grid, *nodes):
    """Nodes that are there and never answer."""
    grid.change = lambda node, replies: [] if node in nodes else replies


def test_a_node_that_never_says_who_it_is_does_not_keep_the_others_waiting(tmp_path, clock):
    hands = workers(clients(3), tmp_path)
    grid = Wire(hands)
    first, second, third = hands
    deaf(grid, first)
    assert len(FlowerFleet(grid, FORM, expect=2, poll=0.01, patience=60).devices) == 2
    assert clock.now == 0
    grid.there = [first, second]  # and who comes later is met while it is waited for
    clock.after(0.2, lambda: grid.there.append(third))
    assert len(FlowerFleet(grid, FORM, expect=2, poll=0.01, patience=60).devices) == 2
    assert clock.now == pytest.approx(0.2)


def test_a_round_waits_once_for_a_strange_node_and_hears_it_later(tmp_path, monkeypatch, clock):
    hands = workers(clients(2), tmp_path)
    grid = Wire(hands)
    gone, strange = list(hands)
    grid.there = [gone]
    fleet = FlowerFleet(grid, FORM, expect=1, poll=0.01, patience=5)
    grid.there = [strange]
    held = []

    def late(node, replies):
        held.extend(replies)
        return []

    grid.change = late
    fleet._patience = 0.0
    asked, push = [], grid.push_messages
    monkeypatch.setattr(grid, "push_messages", lambda messages: push([asked.append(m) or m for m in messages]))
    calls(fleet, 0, at_least=0)
    waited = clock.now
    assert fleet_module.GREETING <= waited < fleet_module.GREETING + 1
    for t in (1, 2):
        calls(fleet, t, at_least=0)
    assert clock.now < waited + 1
    assert len(asked) == 1  # later rounds ask nobody, and so wait for nobody
    (hello_of_it,) = held
    assert len(fleet._hailed) == 1
    grid.change = lambda node, replies: replies
    monkeypatch.setattr(grid, "pull_messages", lambda ids: [hello_of_it] if hello_of_it else [])
    fleet.open(ROUND)
    assert fleet._hailed == {}


def test_a_question_that_expired_makes_no_round_wait_again(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet_module, "AGAIN", 0.0)
    gone, strange = hands = workers(clients(2), tmp_path)
    grid = Wire(hands)
    grid.there = [gone]
    fleet = FlowerFleet(grid, FORM, expect=1, poll=0.01, patience=5)
    grid.there, fleet._patience = [strange], 0.0
    deaf(grid, strange)
    asked, push = [], grid.push_messages
    monkeypatch.setattr(grid, "push_messages", lambda messages: push([asked.append(m) or m for m in messages]))
    calls(fleet, 0, at_least=0)
    (question,) = asked
    expired = Message(Error(EXPIRED, "its time is over"), reply_to=question)
    monkeypatch.setattr(grid, "pull_messages", lambda ids: [expired] if question.metadata.message_id in ids else [])
    calls(fleet, 1, at_least=0)
    assert not fleet._hailed
    calls(fleet, 2, at_least=0)
    assert asked == [question]  # nobody asks, or waits, again so soon


def test_a_round_waits_while_nobody_is_there(tmp_path, clock):
    hands = workers(clients(2), tmp_path)
    grid = Wire(hands)
    fleet = FlowerFleet(grid, FORM, expect=2, poll=0.01, patience=0.5)
    there, grid.there = grid.there, []
    clock.after(0.2, lambda: setattr(grid, "there", there))
    assert calls(fleet, 0)[0] == {"00": 1, "01": 1}
    assert clock.now == pytest.approx(0.2)
    grid.there = []
    heard, silent = calls(fleet, 1, at_least=0)
    assert clock.now == pytest.approx(0.2 + 0.5, abs=0.02)
    assert (heard, {silence.reason for silence in silent.values()}) == ({}, {"not connected"})


def test_a_device_with_an_older_memory_forgets_and_begins_anew(tmp_path):
    fleet, _, _, _ = devices_and_wire(tmp_path)
    calls(fleet, 0)
    shutil.copytree(tmp_path / "01", tmp_path / "backup")
    calls(fleet, 1)
    shutil.rmtree(tmp_path / "01")
    (tmp_path / "backup").rename(tmp_path / "01")
    heard, silent = calls(fleet, 2)
    assert heard == {"00": 3, "02": 3}
    assert silent["01"].forgot
    assert "round 1 is not here" in silent["01"].reason
    assert calls(fleet, 3)[0] == {"00": 4, "01": 1, "02": 4}


def test_a_device_whose_disk_is_full_is_silent(tmp_path):
    fleet, _, _, _ = devices_and_wire(tmp_path)
    calls(fleet, 0)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
    try:
        heard, silent = calls(fleet, 1, at_least=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert heard == {}
    assert all("free some space" in silence.reason for silence in silent.values())
    assert calls(fleet, 2)[0] == {"00": 2, "01": 2, "02": 2}


class Slow(InProcessGrid):
    """Replies of a node come a time after the request was sent."""

    def __init__(self, hands, delays, clock):
        super().__init__(client_app(lambda context: hands[context.node_id]), {node: {} for node in hands})
        self.delays, self.clock, self.sent = delays, clock, {}

    def push_messages(self, messages):
        messages = list(messages)
        ids = super().push_messages(messages)
        for id, letter in zip(ids, messages, strict=True):
            wait = self.delays.get(letter.metadata.dst_node_id, 0) if letter.metadata.message_type == "train" else 0
            self.sent[id] = self.clock.now + wait
        return ids

    def pull_messages(self, message_ids):
        return super().pull_messages([id for id in message_ids if self.sent[id] <= self.clock.now])


def slow(folder, clock, delays, **more):
    hands = workers(clients(3), folder)
    nodes = {hand.device: node for node, hand in hands.items()}
    grid = Slow(hands, {nodes[id]: seconds for id, seconds in delays.items()}, clock)
    return FlowerFleet(grid, FORM, expect=3, poll=0.01, **more)


def test_an_ask_ends_at_its_deadline(tmp_path, clock):
    fleet = slow(tmp_path, clock, {"00": 5.0, "02": 0.1}, deadline=0.4)
    heard, silent = calls(fleet, 0)
    assert clock.now == pytest.approx(0.4, abs=0.02)
    assert heard == {"01": 1, "02": 1}
    assert list(silent) == ["00"]


def test_an_ask_ends_when_enough_have_answered_and_answers_keep_their_order(tmp_path, clock):
    fleet = slow(tmp_path, clock, {"00": 0.2, "01": 5.0}, deadline=4.0, first=2)
    heard, silent = calls(fleet, 0)
    assert clock.now == pytest.approx(0.2, abs=0.02)
    assert list(heard) == ["00", "02"]
    assert silent["01"].reason == "enough others answered"


def test_who_cannot_understand_us_is_refused_with_what_mends_it(tmp_path, monkeypatch):
    def says(**facts):
        hands = workers(clients(2), tmp_path)
        first = next(iter(hands.values()))
        real = first.hello

        def other(raw, payload):
            card = decode(real(raw, payload))
            return bytes(encode(replace(card, **facts)))

        first.hello = other
        with pytest.raises(ConfigError) as caught:
            FlowerFleet(grid_of(hands), FORM, expect=2, patience=0.05, poll=0.01, codecs=["range"])
        return str(caught.value)

    everything = {"codecs": ("range",)}
    monkeypatch.setattr(worker, "codecs", lambda: ("range",))
    assert "1 devices can take part, 2 are needed" in says(version="0.0.1", **everything)
    assert f"pip install 'fedbonsai[flower]=={hello.VERSION}'" in says(version="0.0.1", **everything)
    assert "wire format v2" in says(wire=2)
    assert "lacks the tasks" in says(tasks=("averaging/train",))
    assert "fedbonsai[codecs]" in says(codecs=())
    assert "labels up to 12" in says(fault="labels up to 12, the task has 10 classes")
    assert "another node" in says(device="01")


def test_the_reasons_of_many_are_told_in_a_line():
    assert hello.by_reason({}) == ""
    assert hello.by_reason({"ann": "lacks x", "bob": "has y"}) == "ann lacks x; bob has y"
    many = {f"{number:03}": f"failed: {number % 2}" for number in range(200)}
    assert hello.by_reason(many) == "000, 002, 004 and 97 others failed: 0; 001, 003, 005 and 97 others failed: 1"
    told = hello.by_reason({str(number): f"failed: {number}" for number in range(200)})
    assert told.endswith("4 failed: 4; 195 other reasons")


def test_a_device_cannot_say_that_it_is_another(tmp_path):
    hands = workers(clients(2), tmp_path)
    let_in = {node: hand.device for node, hand in hands.items()}
    fleet = FlowerFleet(grid_of(hands), FORM, expect=2, poll=0.01, who=lambda: let_in)
    assert len(fleet.devices) == 2
    liar = max(hands)
    let_in[liar] = "02"
    with pytest.raises(ConfigError, match=r"let in as '02'; there: join --name 02"):
        FlowerFleet(grid_of(hands), FORM, expect=2, patience=0.05, poll=0.01, who=lambda: let_in)


def test_an_older_library_that_joined_later_refuses_requests(tmp_path, monkeypatch):
    fleet, _, _, _ = devices_and_wire(tmp_path)
    monkeypatch.setattr(worker, "VERSION", "0.0.1")
    _, silent = calls(fleet, 0, at_least=0)
    assert "0.0.1 here" in silent["00"].reason


def test_fewer_devices_will_do_when_the_wait_is_over(tmp_path):
    hands = workers(clients(2), tmp_path)
    fleet = FlowerFleet(grid_of(hands), FORM, expect=5, at_least=2, patience=0.05, poll=0.01)
    assert len(fleet.devices) == 2


def test_a_worker_answers_damaged_requests_or_refuses_them_but_never_falls(tmp_path):
    (hand,) = workers(clients(1), tmp_path).values()
    head = Envelope("r", 0, 0, 0, "test/typed-count", "00", 1, (-2, 0))
    raw = bytes(encode(Request(head, None, FORM, hello.VERSION)))
    payload = bytes(encode(ZERO))
    reply, _ = hand.perform(raw, payload)
    assert decode(reply).receipt.silent == ""
    draw = random.Random(0)
    seen = {"refused": 0, "silent": 0, "answered": 0}
    for _ in range(400):
        part = [bytearray(raw), bytearray(payload)]
        which = part[draw.random() < 0.5]
        for _ in range(draw.randint(1, 3)):
            which[draw.randrange(len(which))] = draw.randrange(256)
        if draw.random() < 0.2:
            del which[draw.randrange(len(which)) :]
        try:
            reply, _ = hand.perform(bytes(part[0]), bytes(part[1]))
        except BadMessage:
            seen["refused"] += 1
            continue
        reply = decode(reply)
        assert isinstance(reply, Reply)
        seen["silent" if reply.receipt.silent else "answered"] += 1
    assert all(seen.values()), seen


def test_a_run_of_a_simulation_cannot_be_continued_on_devices(tmp_path):
    local = LocalFleet(clients(1))
    with scope(local, ROUND):
        list(local.ask(tasks.count, {local.devices[0]: ZERO}))
        kept = dict(local.pending())
    with pytest.raises(ConfigError, match="begun as a simulation"):
        fleet_of(clients(1), tmp_path).restore(kept)


def test_replies_beyond_the_bound_wait_in_a_file():
    spool = Spool(10)
    for number in range(3):
        spool.put(number, bytes([number]) * 6)
    assert (len(spool._near), len(spool._far)) == (1, 2)
    assert [spool.take(number) for number in (2, 0, 1)] == [bytes([n]) * 6 for n in (2, 0, 1)]
    spool.put(4, b"x" * 10)
    assert len(spool._near) == 1
    spool.close()


def test_equal_payloads_are_one_object_for_flower(tmp_path):
    sent = []

    class Kept(InProcessGrid):
        def push_messages(self, messages):
            sent.extend(messages := list(messages))
            return super().push_messages(messages)

    hands = workers(clients(3), tmp_path)
    fleet = FlowerFleet(Kept(client_app(lambda c: hands[c.node_id]), {n: {} for n in hands}), FORM, expect=3)
    sent.clear()
    calls(fleet, 0)
    assert len({message.content["payload"].object_id for message in sent}) == 1
    assert len({message.content["head"].object_id for message in sent}) == 3


@pytest.mark.slow
def test_nothing_here_can_execute_what_came_over_the_wire():
    for file in Path(fedbonsai.fleets.flower.__file__).parent.rglob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
        names |= {
            name.name.split(".")[0]
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in node.names
        }
        assert not names & {"pickle", "marshal", "shelve", "eval", "exec", "dill", "cloudpickle"}, file
