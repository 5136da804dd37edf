"""Rounds that fail by hand: what a skipped or retried round leaves behind, in the checkpoint, after resume, in the books."""

from dataclasses import replace
from itertools import accumulate

import pytest

from fedbonsai.core import Answers, Client, Device, Silence, task
from fedbonsai.errors import Unanswered
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.model import Model
from fedbonsai.runs import recipes
from fedbonsai.runs.folder import Checkpoint, Folder
from fedbonsai.runs.loop import loop
from fedbonsai.runs.setup import run_context
from fedbonsai.wire import encode, message

CONFIG = recipes.load(
    "fedavg",
    overrides={
        "rounds": 5,
        "retries": 1,
        "data.clients": 3,
        "data.limit": 90,
        "data.partition": "iid",
        "model.name": "mlp",
        "clock.devices": "raspberry-pi-4",
        "clock.link": "lte",
    },
)
BAD = {(1, 0), (1, 1), (2, 0), (4, 0), (4, 1)}  # rounds 1 and 4 are skipped, round 2 succeeds at its second attempt
COUNTS = {-1: 1, 0: 3, 1: 3, 2: 5, 3: 7, 4: 7}  # calls that a client's memory has after each round: one, then two each


@message("test-skipped/step@1")
class Step:
    number: int


@message("test-skipped/seen@1")
class Seen:
    calls: int


@message("test-skipped/state@1")
class State:
    model: Model
    done: tuple[int, ...]
    seen: tuple[int, ...]


@task("test-skipped/count")
def count(request: Step, me: Client, memory):
    calls = memory.get("calls", 0) + 1
    return Seen(calls), {"calls": calls}


class Counting:
    """A method that asks everybody once when it begins, and twice in a round."""

    def begin(self, model, fleet, server):
        self.all(fleet, -1)
        return State(model, (), ())

    def round(self, state, t, fleet):
        self.all(fleet, t)
        seen = self.all(fleet, t)
        return State(state.model, (*state.done, t), (*state.seen, *seen))

    def all(self, fleet, t):
        return {answer.value.calls for answer in fleet.ask(count, dict.fromkeys(fleet.devices, Step(t)))}

    def model(self, state):
        return state.model

    def metrics(self, state):
        return {"rounds": len(state.done)}


class Fails(Wrapper):
    """In bad attempts the second ask is heard by the clients, and nothing of it comes back."""

    def __init__(self, inner):
        super().__init__(inner)
        self.moved: dict[int, list[int]] = {}

    def ask(self, task, send, at_least=1):
        where, number = self.where()
        heard = list(answers := self.inner.ask(task, send, 0))
        booked = self.moved.setdefault(where.round, [0, 0])
        for item in [*heard, *answers.silent.values()]:
            booked[0] += item.down
            booked[1] += item.up
        lost = (where.round, where.attempt) in BAD and number == 1
        assert len(self.inner.pending()) == 3
        return Answers([Silence(a.device, "lost") for a in heard] if lost else heard, at_least)


def play(folder, rounds):
    """A loop in a process of its own, as it were: everything but the folder is new."""
    config = replace(CONFIG, rounds=rounds)
    made = run_context(config)
    fleet = Fails(made.fleet)
    ended = loop(config, replace(made, method=Counting(), fleet=fleet), "r", folder)
    return ended, fleet


def folder(path):
    path.mkdir()
    return Folder(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Five rounds in one go: folder, outcome, and the bytes that the outermost fleet saw."""
    there = folder(tmp_path_factory.mktemp("run") / "whole")
    ended, fleet = play(there, 5)
    return there, ended, fleet.moved


@pytest.mark.parametrize("last", [1, 2, 4])
def test_a_checkpoint_has_the_state_and_memories_of_the_last_round_that_counted(tmp_path, last):
    there = folder(tmp_path / "a")
    ended, _ = play(there, last + 1)
    done = tuple(t for t in (0, 2, 3) if t <= last)
    assert ended.state.done == done
    assert ended.state.seen == tuple(COUNTS[t] for t in done)
    held = Checkpoint(there).load()
    assert held is not None
    at, state, memories = held
    assert (at, state.done) == (last, done)
    assert bytes(encode(state)) == bytes(encode(ended.state))
    assert {id: kept.memory for id, kept in memories.items()} == {
        id: {"calls": COUNTS[last]} for id in ("000", "001", "002")
    }
    assert {(kept.round, kept.attempt) for kept in memories.values()} == {(done[-1], int(done[-1] == 2))}
    rows = ended.rows
    assert [row["skipped"] for row in rows] == [False, True, False, False, True][: last + 1]
    assert [row["attempt"] for row in rows] == [0, 1, 1, 0, 1][: last + 1]
    assert [len(row.get("unanswered", ())) for row in rows] == [0, 2, 1, 0, 2][: last + 1]
    assert [row.get("rounds") for row in rows] == [1, None, 2, 3, None][: last + 1]


def test_what_clients_kept_of_the_beginning_is_there_after_a_death_in_the_first_round(tmp_path):
    there, made = folder(tmp_path / "a"), run_context(CONFIG)

    class Dies(Counting):
        def round(self, state, t, fleet):
            self.all(fleet, t)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop(CONFIG, replace(made, method=Dies()), "r", there)
    held = Checkpoint(there).load()
    assert held is not None
    assert held[0] == -1
    assert {id: kept.memory["calls"] for id, kept in held[2].items()} == {"000": 1, "001": 1, "002": 1}
    assert play(there, 1)[0].state.seen == (COUNTS[0],)


@pytest.mark.slow
def test_a_run_that_is_resumed_after_any_round_is_the_one_that_went_on(tmp_path, whole):
    there, once, _ = whole
    cut = folder(tmp_path / "cut")
    for rounds in range(1, 6):  # a new process for every round
        ended, _ = play(cut, rounds)
    assert bytes(encode(ended.state)) == bytes(encode(once.state))
    assert list(cut.ledger_rows()) == list(there.ledger_rows())
    assert list(cut.cost_rows()) == list(there.cost_rows())
    judged = ("seconds", "accuracy", "loss", "layers", "valid_", "client_")  # every process evaluates its last round
    for a, b in zip(ended.rows, once.rows, strict=True):
        left, right = ({n: v for n, v in row.items() if not n.startswith(judged)} for row in (a, b))
        assert left == right


def test_bytes_of_every_round_are_its_own_with_all_attempts_and_sum_to_the_totals(whole):
    there, ended, moved = whole
    rows = ended.rows
    assert len({tuple(pair) for pair in moved.values()}) > 2
    for place, way in enumerate(("down", "up")):
        own = [moved[t][place] for t in range(5)]
        assert [row[f"bytes_{way}"] for row in rows] == own
        so_far = list(accumulate(own, initial=moved[-1][place]))[1:]  # what the beginning took is in the totals
        assert [row[f"total_bytes_{way}"] for row in rows] == so_far
        booked = {}
        for row in there.ledger_rows():
            if row["direction"] == way:
                booked[row["round"]] = booked.get(row["round"], 0) + row["bytes"]
        assert booked == {t: pair[place] for t, pair in moved.items()}
    attempts = {(row["round"], row["attempt"]) for row in there.ledger_rows()}
    assert attempts == {(-1, 0), (0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (4, 0), (4, 1)}


def test_seconds_and_joules_of_every_round_are_its_own_with_all_attempts(whole):
    there, ended, _ = whole
    costs = list(there.cost_rows())
    for own, so_far, column in (
        ("round_seconds", "simulated_seconds", "elapsed"),
        ("joules", "total_joules", "joules"),
        ("round_macs", "total_macs", "macs"),
    ):
        each = [sum(row[column] for row in costs if row["round"] == t) for t in range(-1, 5)]
        assert [row[own] for row in ended.rows] == pytest.approx(each[1:])
        assert [row[so_far] for row in ended.rows] == pytest.approx(list(accumulate(each))[1:])
    skipped, plain = ended.rows[1], ended.rows[0]
    assert skipped["round_seconds"] > 1.9 * plain["round_seconds"] > 0


def test_a_run_whose_beginning_is_never_answered_leaves_no_checkpoint(tmp_path):
    there = folder(tmp_path / "a")

    class Mute(Counting):
        def begin(self, model, fleet, server):
            self.all(fleet, -1)
            raise Unanswered("nobody")

    made = run_context(CONFIG)
    with pytest.raises(Unanswered, match="nobody"):
        loop(CONFIG, replace(made, method=Mute()), "r", there)
    assert Checkpoint(there).load() is None
    assert not made.fleet.pending()
    assert Device("000") in made.fleet.devices
