"""What a run learns of its devices, worked by hand: who came, who was refused, what moved, and how long it took."""

import json
import platform

import torch

from fedbonsai.core import Answer, Device, Scope, Silence, scope
from fedbonsai.fleets.flower import hello
from fedbonsai.fleets.flower.fleet import FlowerFleet
from fedbonsai.fleets.flower.logbook import MOST, TEXT, Logbook, entries_of
from tests.fleets import tasks
from tests.fleets.flower.nodes import FORM, grid_of, workers
from tests.fleets.tasks import clients
from tests.fleets.test_fleets import talk
from tests.moments import HANGS

A, B = Device("a"), Device("b")


def said(book, round, *items, took=None):
    return list(book.heard(iter(items), Scope("r", 1, round, 0), took or {}))


def test_what_moved_and_who_was_silent_is_added_up():
    book = Logbook()
    said(book, 0, Answer(A, 1, 100, 10), Silence(B, "no\x1b[31m answer", 100, 3), took={"a": 2.0})
    said(book, 0, Answer(A, 1, 50, 5), Answer(B, 1, 1, 1), took={"a": 4.0})
    a, b = book.entries["a"], book.entries["b"]
    assert (a.rounds, a.answers, a.down, a.up, a.seconds, a.silent, a.error) == (1, 2, 150, 15, 6.0, 0, "")
    assert (b.rounds, b.answers, b.down, b.up, b.silent, b.error) == (1, 1, 101, 4, 1, "no [31m answer")


def test_a_resumed_run_counts_on_and_a_round_that_is_replayed_counts_once(tmp_path):
    file = tmp_path / "job.devices.json"
    book = Logbook(file)
    book.met("a", "0.1", "aarch64", 90, 10)
    said(book, -1, Answer(A, 1))
    said(book, 0, Answer(A, 1))
    book.write()
    book = Logbook(file)
    said(book, 0, Answer(A, 1))
    said(book, 1, Answer(A, 1))
    entry = book.entries["a"]
    assert (entry.rounds, entry.answers, entry.machine, entry.train, entry.valid) == (2, 4, "aarch64", 90, 10)
    assert not list(tmp_path.glob("*.new"))


def test_a_damaged_file_is_begun_anew_and_what_devices_say_is_cut(tmp_path):
    file = tmp_path / "job.devices.json"
    for text in ("{", "[1]", '{"a": 1}', '{"a": {"met": 1}'):
        file.write_text(text)
        assert entries_of(file) == {}
    book = Logbook(file)
    book.met("a", "v" * 9000, "m", 1, 1)
    for number in range(MOST + 5):
        book.refused(f"node {number}", "<script>\n" * (900 if number == 1 else 1))
    book.write()
    held = entries_of(file)
    assert len(held) == MOST
    assert {len(held["a"].version), len(held["node 1"].refused)} == {TEXT}
    assert "\n" not in held["node 1"].refused


def test_a_disk_that_refuses_is_told_once_and_ends_no_round(tmp_path, caplog):
    book = Logbook(tmp_path / "gone" / "job.devices.json")
    book.write()
    book.write()
    assert sum("cannot be written" in record.message for record in caplog.records) == 1


def test_a_fleet_writes_who_came_and_what_moved_after_each_round(tmp_path):
    hands = workers(clients(2), tmp_path)
    book = Logbook(tmp_path / "job.devices.json")
    fleet = FlowerFleet(grid_of(hands), FORM, expect=2, poll=0.01, logbook=book)
    met = entries_of(tmp_path / "job.devices.json")["00"]
    assert (met.version, met.machine, met.rounds) == (hello.VERSION, platform.machine(), 0)
    assert met.train == len(clients(2)[0].train)
    with scope(fleet, Scope("r", 1, 0, 0)):
        heard = list(fleet.ask(tasks.count, dict.fromkeys(fleet.devices, tasks.Question(torch.tensor(0.0)))))
    entry = json.loads((tmp_path / "job.devices.json").read_text())["01"]
    assert (entry["rounds"], entry["down"], entry["up"]) == (1, heard[1].down, heard[1].up)
    assert 0 < entry["seconds"] < HANGS
    talk(fleet)
    assert book.entries["00"].answers > 1


def test_a_node_that_is_refused_stands_under_the_name_that_its_key_has(tmp_path):
    hands = workers(clients(2), tmp_path)
    nodes = {hand.device: node for node, hand in hands.items()}
    book = Logbook()
    who = {nodes["00"]: "00", nodes["01"]: "pi"}
    FlowerFleet(grid_of(hands), FORM, expect=2, at_least=1, patience=0.0, poll=0.01, who=lambda: who, logbook=book)
    assert book.entries["pi"].refused.startswith("says it is '01', its key was let in as 'pi'")
    assert book.entries["00"].refused == ""
    assert "01" not in book.entries
