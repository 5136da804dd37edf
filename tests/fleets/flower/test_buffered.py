"""Buffered rounds over a Grid: answers come in the round in which they come, and nobody who works is asked."""

import pytest
import torch

from fedbonsai.core import Scope, scope
from fedbonsai.fleets.buffer import Buffer
from fedbonsai.fleets.flower import buffered as buffered_module
from fedbonsai.fleets.flower import fleet as fleet_module
from fedbonsai.fleets.flower.buffered import BufferedFlowerFleet
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.wrappers import Metered
from fedbonsai.runs import recipes
from fedbonsai.runs.flower import behind
from fedbonsai.runs.folder import Folder
from fedbonsai.runs.loop import loop
from fedbonsai.runs.setup import clients as people_of
from fedbonsai.runs.setup import federation
from tests.fleets.flower.nodes import FORM, count, grid_of, workers
from tests.fleets.flower.test_fleet import Clock, Slow
from tests.fleets.tasks import Question, clients
from tests.fleets.test_buffered import SMALL
from tests.mortal import Killed, Mortal

ZERO = Question(torch.tensor(0.0))


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(fleet_module, "time", made)
    monkeypatch.setattr(buffered_module, "time", made)
    return made


def slow(folder, clock, delays, size=2, deadline=60.0, **more):
    hands = workers(clients(len(delays)), folder)
    nodes = {hand.device: node for node, hand in hands.items()}
    grid = Slow(hands, {nodes[id]: seconds for id, seconds in delays.items()}, clock)
    return BufferedFlowerFleet(
        grid, FORM, expect=len(delays), poll=0.01, deadline=deadline, buffer=Buffer(size, **more)
    )


def talk(fleet, t, attempt=0, accept=True):
    """A round: who was asked, what came (device, calls so far, rounds since, weight), who was silent."""
    with scope(fleet, Scope("r", 1, t, attempt)) as opened:
        asked = [device.id for device in opened.devices]
        heard = opened.ask(count, dict.fromkeys(opened.devices, ZERO), 0)
        came = [(answer.device.id, answer.value.calls, answer.stale, answer.weight) for answer in heard]
        if accept:
            opened.commit()
    return asked, came, {device.id: silence.reason for device, silence in heard.silent.items()}


def test_rounds_by_hand(tmp_path, clock):
    """Devices answer after 1, 2.1 and 5 seconds, a round ends with two answers.

    Round 0 ends at 2.1 with 0 and 1. Begun anew, 0 comes at 3.1 and 1 at 4.2: round 1. Then 2 comes at 5, begun in round 0,
    and 0 at 5.2: round 2.
    """
    fleet = slow(tmp_path, clock, {"00": 1.0, "01": 2.1, "02": 5.0})
    assert talk(fleet, 0) == (["00", "01", "02"], [("00", 1, 0, 1.0), ("01", 1, 0, 1.0)], {})
    assert talk(fleet, 1) == (["00", "01"], [("00", 2, 0, 1.0), ("01", 2, 0, 1.0)], {})
    assert talk(fleet, 2) == (["00", "01"], [("02", 1, 2, 3**-0.5), ("00", 3, 0, 1.0)], {})
    assert clock.now == pytest.approx(5.2, abs=0.2)
    assert [device.id for device in fleet.devices] == ["00", "01", "02"]


def test_what_came_beyond_a_round_is_the_next_ones(tmp_path, clock):
    fleet = slow(tmp_path, clock, {"00": 1.0, "01": 1.0, "02": 1.0}, size=1)
    assert talk(fleet, 0)[1] == [("00", 1, 0, 1.0)]
    assert talk(fleet, 1) == (["00"], [("01", 1, 1, 2**-0.5)], {})
    assert talk(fleet, 2) == (["01"], [("02", 1, 2, 3**-0.5)], {})


def test_who_does_not_answer_by_the_deadline_is_asked_again(tmp_path, clock):
    fleet = slow(tmp_path, clock, {"00": 1.0, "01": 30.0}, deadline=4.0)
    _, came, silent = talk(fleet, 0)
    assert (came, silent) == ([("00", 1, 0, 1.0)], {"01": "no answer within 4 s"})
    assert talk(fleet, 1)[0] == ["00", "01"]


def test_a_round_that_is_not_accepted_leaves_devices_with_what_they_held(tmp_path, clock):
    fleet = slow(tmp_path, clock, {"00": 1.0, "01": 2.0})
    talk(fleet, 0)
    assert talk(fleet, 1, accept=False)[1] == [("00", 2, 0, 1.0), ("01", 2, 0, 1.0)]
    assert talk(fleet, 1, attempt=1)[1] == [("00", 2, 0, 1.0), ("01", 2, 0, 1.0)]


def test_bytes_of_late_answers_are_booked_with_what_was_asked(tmp_path, clock):
    ledger = Ledger()
    fleet = Metered(slow(tmp_path, clock, {"00": 1.0, "01": 5.0}, size=1), ledger)
    for t in range(6):
        talk(fleet, t)
    rows = ledger.take()
    assert {row["client"] for row in rows if row["direction"] == "up"} == {"00", "01"}
    assert {row["kind"] for row in rows if row["direction"] == "down"} == {"test/question@1"}


@pytest.mark.slow
def test_a_run_learns_and_a_new_server_goes_on_where_one_was_killed(tmp_path):
    """Who worked when the server died is asked anew, from what lies in its folder."""
    small = {name: value for name, value in SMALL.items() if not name.startswith("clock")}
    on_devices = {"fleet.kind": "flower", "fleet.flower.devices": 6, "rounds": 12, "data.limit": 600}
    config = recipes.load("topk-ef", "", {**small, **on_devices})
    held = people_of(federation(config))

    def begun():
        return behind(grid_of(workers(held, tmp_path / "devices")))(config, None, None)

    made = begun()
    made.fleet = Mortal(made.fleet, 3, after=1)
    with pytest.raises(Killed):
        loop(config, made, "run", Folder(tmp_path / "run"))
    rows = loop(config, begun(), "run", Folder(tmp_path / "run")).rows
    assert [row["round"] for row in rows] == list(range(12))
    assert all(row["answered"] == 2 for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert any(row.get("stale_max") for row in rows)
