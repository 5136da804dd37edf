from dataclasses import replace
from random import Random

import pytest
import torch

from fedbonsai import wire
from fedbonsai.core import Device, Scope, scope
from fedbonsai.errors import ConfigError, TaskFailed, Unanswered, exit_code
from fedbonsai.fleets.crew import crew_size
from fedbonsai.fleets.envelope import Heads, Receipt, envelope, receipt
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.pool import PoolFleet
from fedbonsai.fleets.wrappers import Flaky, Metered, Recorded, Replayed
from fedbonsai.stages.pruning.gates import Gate
from fedbonsai.wire import OWN, decode, encode
from tests.fleets import tasks
from tests.fleets.tasks import Question, clients

ROUND = Scope("r", 1, 0, 0)
GONE = """
from fedbonsai.stages.pruning.gates import Gate, gate

@gate("gone")
class Gone(Gate):
    def passes(self, found, seen):
        return True
"""


@pytest.fixture(scope="module")
def pools():
    made = [PoolFleet(clients(), workers) for workers in (1, 3)]
    yield made
    for pool in made:
        pool.close()


def talk(fleet, rounds=3):
    """Bytes of all answers of a few rounds, two asks each."""
    seen = []
    for t in range(rounds):
        with scope(fleet, Scope("r", 1, t, 0)):
            for _ in range(2):
                same = Question(torch.tensor(float(t)))
                each = {d: same if int(d.id) % 2 else Question(torch.tensor(0.5)) for d in fleet.devices}
                seen += [(a.device.id, bytes(encode(a.value))) for a in fleet.ask(tasks.count, each)]
            fleet.commit()
    return seen


@pytest.mark.slow
def test_local_with_wire_without_it_and_pools_are_byte_equal(pools):
    reference = talk(LocalFleet(clients()))
    assert len(reference) == 30
    assert talk(LocalFleet(clients(), wire=False)) == reference
    for pool in pools:
        pool.restore({})
        assert talk(pool) == reference


def test_answers_come_in_order_lazily_and_once():
    fleet = LocalFleet(clients())
    order = [fleet.devices[i] for i in (3, 0, 4)]
    with scope(fleet, ROUND):
        answers = fleet.ask(tasks.count, dict.fromkeys(order, Question(torch.tensor(0.0))))
        reader = iter(answers)
        assert next(reader).device == order[0]
        with pytest.raises(RuntimeError, match="not read to the end"):
            fleet.ask(tasks.count, {})
        assert [a.device for a in reader] == order[1:]
        with pytest.raises(RuntimeError, match="come once"):
            iter(answers).__next__()


def test_an_ask_needs_a_round():
    with pytest.raises(RuntimeError, match="no round is open"):
        LocalFleet(clients()).ask(tasks.count, {})


def test_memory_counts_only_when_the_round_is_committed():
    fleet = LocalFleet(clients())

    def ask(t, attempt, commit):
        with scope(fleet, Scope("r", 1, t, attempt)):
            (answer,) = fleet.ask(tasks.count, {fleet.devices[0]: Question(torch.tensor(0.0))})
            if commit:
                assert list(fleet.pending()) == ["00"]
                fleet.commit()
        return answer.value.calls

    assert [ask(0, 0, True), ask(1, 0, False), ask(1, 1, False), ask(1, 2, True), ask(2, 0, True)] == [1, 2, 2, 2, 3]


@pytest.mark.slow
def test_restored_memories_are_where_the_next_round_starts(pools):
    for fleet in (LocalFleet(clients()), pools[1]):
        fleet.restore({})
        talk(fleet, 1)
        with scope(fleet, Scope("r", 1, 1, 0)):
            (a,) = fleet.ask(tasks.count, {fleet.devices[1]: Question(torch.tensor(0.0))})
            kept = dict(fleet.pending())
        fresh = LocalFleet(clients())
        fresh.restore(kept)
        with scope(fresh, Scope("r", 1, 2, 0)):
            (b,) = fresh.ask(tasks.count, {fresh.devices[1]: Question(torch.tensor(0.0))})
        assert (a.value.calls, b.value.calls) == (3, 4)
        assert kept["01"].round == 1


def test_seeds_differ_by_client_round_and_ask_but_not_by_attempt():
    def draws(t, attempt):
        fleet = LocalFleet(clients())
        with scope(fleet, Scope("r", 1, t, attempt)):
            ask = [
                list(fleet.ask(tasks.count, dict.fromkeys(fleet.devices, Question(torch.tensor(0.0))))) for _ in "ab"
            ]
        return [a.value.draw for answers in ask for a in answers]

    assert len(set(draws(0, 0) + draws(1, 0))) == 20
    assert draws(0, 0) == draws(0, 1)


@pytest.mark.parametrize("kind", ["local", "pool"])
def test_a_client_that_forgot_is_silent_and_says_why(kind, pools):
    fleet = LocalFleet(clients()) if kind == "local" else pools[1]
    with scope(fleet, ROUND):
        answers = fleet.ask(tasks.forget, dict.fromkeys(fleet.devices, Question(torch.tensor(0.0))))
        assert [a.device.id for a in answers] == ["00", "01", "03", "04"]
        assert answers.silent[Device("02")].reason == "it lost its mask"
        with pytest.raises(Unanswered, match="4 answers, at least 5"):
            list(fleet.ask(tasks.forget, dict.fromkeys(fleet.devices, Question(torch.tensor(0.0))), at_least=5))
        with pytest.raises(Unanswered, match="nobody was asked"):
            list(fleet.ask(tasks.forget, {}))


@pytest.mark.parametrize("wire", [True, False])
def test_a_task_that_writes_into_its_request_is_caught(wire):
    fleet = LocalFleet(clients(), wire)
    for task in (tasks.write, tasks.write_and_break):
        with scope(fleet, ROUND), pytest.raises(RuntimeError, match="wrote into"):
            list(fleet.ask(task, {fleet.devices[0]: Question(torch.zeros(3))}))


@pytest.mark.slow
def test_a_task_that_raises_on_all_clients_is_an_error_with_its_text_and_traceback(pools):
    for fleet in (LocalFleet(clients()), LocalFleet(clients(), wire=False), *pools):
        with scope(fleet, ROUND), pytest.raises(TaskFailed) as caught:
            list(fleet.ask(tasks.broken, dict.fromkeys(fleet.devices, Question(torch.zeros(1))), at_least=0))
        assert "'test/break' fails alike on all 5 clients" in str(caught.value)
        assert "on client 00: ZeroDivisionError: a bug in a task;" in str(caught.value)
        assert "\n" not in str(caught.value)
        (trace,) = caught.value.__notes__
        assert trace.startswith("Traceback")
        assert 'raise ZeroDivisionError("a bug in a task")' in trace
        assert exit_code(caught.value) == 2
        fleet.restore({})
        assert len(talk(fleet)) == 30  # it goes on


FAILING = {"01": "wrong", "03": "wrong", "04": "other"}


def silences(fleet):
    """What is heard of clients of which three fail in the second of three rounds, and what a ledger books."""
    seen, ledger = [], Ledger()
    metered = Metered(fleet, ledger)
    for t in range(3):
        with scope(metered, Scope("r", 1, t, 0)):
            say = {d: Question(torch.tensor(float(t)), FAILING.get(d.id, "") if t == 1 else "") for d in fleet.devices}
            answers = metered.ask(tasks.stumble, say)
            seen += [(t, a.device.id, bytes(encode(a.value))) for a in answers]
            seen += [(t, d.id, s.reason) for d, s in answers.silent.items()]
            metered.commit()
    return seen, ledger.take()


@pytest.mark.slow
def test_a_client_whose_task_raises_is_silent_with_its_reason_and_keeps_its_memory(pools, caplog):
    with caplog.at_level("INFO", "fedbonsai"):
        (seen, booked) = silences(LocalFleet(clients()))
    assert [who for t, who, what in seen if t == 1 and isinstance(what, bytes)] == ["00", "02"]
    reasons = {who: what for t, who, what in seen if t == 1 and isinstance(what, str)}
    assert reasons == {
        "01": "ValueError: client 01 has 4 samples, and a second line",
        "03": "ValueError: client 03 has 4 samples, and a second line",
        "04": "KeyError: 'no such layer'",
    }
    last = {who: decode(what, OWN).calls for t, who, what in seen if t == 2}
    assert last == {"00": 3, "01": 2, "02": 3, "03": 2, "04": 2}  # written into before the failure, and as it was
    up = {row["client"]: row["bytes"] for row in booked if row["kind"] == "silent"}
    assert up == {id: len(encode(Receipt("r", 1, 0, 0, id, why))) for id, why in reasons.items()}
    assert "stumble" in caplog.text
    assert "Traceback" in caplog.text
    assert [what for _, _, what in silences(LocalFleet(clients(), wire=False))[0]] == [what for _, _, what in seen]
    for pool in pools:
        pool.restore({})
        assert silences(pool) == (seen, booked)


@pytest.mark.parametrize(
    ("fail", "asked", "loud"),
    [
        ({0: "wrong", 1: "wrong", 2: "wrong", 3: "wrong", 4: "wrong"}, [[0, 1, 2, 3, 4]], True),
        ({0: "wrong", 1: "wrong", 2: "wrong", 3: "wrong", 4: "other"}, [[0, 1, 2, 3, 4]], False),  # not alike
        ({0: "wrong", 1: "wrong", 2: "wrong", 3: "wrong"}, [[0, 1, 2, 3, 4]], False),
        ({0: "wrong", 1: "wrong"}, [[0], [1], [2]], False),  # asked one after another until one can
        ({0: "wrong", 1: "wrong", 2: "wrong", 3: "wrong"}, [[0], [1], [2], [3]], False),
        ({0: "wrong", 1: "wrong", 2: "wrong", 3: "wrong", 4: "wrong"}, [[0], [1], [2], [3], [4]], True),
        ({0: "wrong", 1: "wrong", 2: "wrong", 3: "wrong"}, [[0, 1], [2, 3]], True),  # nobody was ever seen to do it
        ({0: "wrong", 1: "wrong", 2: "wrong"}, [[3], [0, 1, 2]], False),  # somebody was
        ({0: "wrong", 1: "wrong", 2: "wrong", 4: "wrong"}, [[3], [0, 1, 2, 4]], False),
        ({0: "place", 1: "place", 2: "place"}, [[0, 1, 2]], True),  # texts differ, the place is one
    ],
)
def test_only_a_task_that_nobody_can_do_is_at_fault(fail, asked, loud):
    fleet, found = LocalFleet(clients()), False
    for t, places in enumerate(asked):
        try:
            with scope(fleet, Scope("r", 1, t, 0)):
                say = {fleet.devices[i]: Question(torch.tensor(0.0), fail.get(i, "")) for i in places}
                list(fleet.ask(tasks.stumble, say, at_least=0))
        except TaskFailed:
            found = True
    assert found == loud


def test_an_interrupt_in_a_task_passes_and_an_exit_is_a_failure():
    fleet = LocalFleet(clients())
    with scope(fleet, ROUND):
        say = {d: Question(torch.zeros(1), "exit" if d.id == "02" else "") for d in fleet.devices}
        answers = fleet.ask(tasks.stumble, say)
        assert len(list(answers)) == 4
        assert answers.silent[Device("02")].reason == "SystemExit: 0"
    with scope(fleet, ROUND), pytest.raises(KeyboardInterrupt):
        list(fleet.ask(tasks.interrupted, dict.fromkeys(fleet.devices, Question(torch.zeros(1)))))


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_its_task_tried_once_more(pools, tmp_path):
    for number, pool in enumerate(pools):
        pool.restore({})
        folder = tmp_path / str(number)
        folder.mkdir()
        with scope(pool, ROUND):
            question = Question(torch.tensor(0.0), str(folder))
            answers = pool.ask(tasks.die_once, dict.fromkeys(pool.devices, question))
            assert [a.device.id for a in answers] == ["00", "01", "02", "04"]
            assert "died twice" in answers.silent[Device("03")].reason


@pytest.mark.slow
def test_ledger_has_real_bytes_by_client_round_direction_and_class(pools):
    tables = []
    for fleet in (LocalFleet(clients()), pools[1]):
        fleet.restore({})
        ledger = Ledger()
        metered = Metered(fleet, ledger)
        with scope(metered, ROUND):
            heard = list(metered.ask(tasks.count, dict.fromkeys(fleet.devices, Question(torch.zeros(100)))))
            metered.commit()
        rows = ledger.take()
        assert {(row["client"], row["direction"]) for row in rows} == {
            (d.id, w) for d in fleet.devices for w in ("up", "down")
        }
        assert (
            sum(row["bytes"] for row in rows if row["direction"] == "up")
            == sum(a.up for a in heard)
            == ledger.total["up"]
        )
        request = len(encode(Question(torch.zeros(100))))
        assert all(request < row["bytes"] < request + 150 for row in rows if row["kind"] == "test/question@1")
        assert ledger.take() == []
        tables.append(rows)
    assert tables[0] == tables[1]


def test_flaky_loses_requests_and_replies_by_seed_and_their_memory_does_not_count():
    def silent(rate, seed=1):
        fleet = Flaky(LocalFleet(clients(40)), rate)
        found = {}
        for t in range(3):
            with scope(fleet, Scope("r", seed, t, 0)):
                answers = fleet.ask(tasks.count, dict.fromkeys(fleet.devices, Question(torch.tensor(0.0))), at_least=0)
                heard = {a.device.id: a.value.calls for a in answers}
                assert set(fleet.pending()) == set(heard)
                found |= {(t, d.id): s.reason for d, s in answers.silent.items()}
                fleet.commit()
        return found

    assert silent(0.0) == {}
    assert len(silent(1.0)) == 120
    some = silent(0.3)
    assert 20 < len(some) < 55
    assert set(some.values()) == {"request lost", "reply lost"}
    assert silent(0.3) == some != silent(0.3, seed=2)
    with pytest.raises(ConfigError, match="probability"):
        Flaky(LocalFleet(clients()), 1.5)


def test_a_recorded_run_can_be_replayed_without_its_clients(tmp_path):
    reference = talk(Recorded(LocalFleet(clients()), tmp_path))
    fleet = Replayed(LocalFleet(clients()).devices, tmp_path)
    assert talk(fleet) == reference
    with pytest.raises(ConfigError, match="not recorded"):
        talk(fleet, 4)
    with scope(fleet, Scope("r", 1, 0, 0)), pytest.raises(ConfigError, match="asked now"):
        fleet.ask(tasks.forget, dict.fromkeys(fleet.devices, Question(torch.zeros(1))))


def test_a_recording_keeps_all_that_is_known_of_silent_devices(tmp_path):
    def silences(fleet):
        with scope(fleet, Scope("r", 1, 0, 0)):
            ways = zip(fleet.devices, ["", "wrong"] * len(fleet.devices), strict=False)
            answers = fleet.ask(tasks.stumble, {device: Question(torch.zeros(1), way) for device, way in ways}, 0)
            assert list(answers)
            return answers.silent

    kept = silences(Recorded(Flaky(LocalFleet(clients()), 0.5), tmp_path))
    assert {silence.lost for silence in kept.values()} == {True, False}
    assert any("Traceback" in silence.fault for silence in kept.values())
    assert silences(Replayed(LocalFleet(clients()).devices, tmp_path)) == kept
    (file,) = tmp_path.iterdir()
    name, lines = decode(file.read_bytes(), OWN)
    file.write_bytes(encode((name, tuple(line[:7] for line in lines))))  # as recordings were before
    old = silences(Replayed(LocalFleet(clients()).devices, tmp_path))
    assert old == {device: replace(silence, lost=False, fault="") for device, silence in kept.items()}


@pytest.mark.slow
def test_a_new_worker_understands_memories_of_methods_it_never_ran(pools, tmp_path):
    pool = pools[0]
    pool.restore({})
    for t, folder in enumerate(("", str(tmp_path))):
        with scope(pool, Scope("r", 1, t, 0)):
            question = Question(torch.tensor(0.0), folder)
            assert {a.value.calls for a in pool.ask(tasks.keep_message, dict.fromkeys(pool.devices, question))} == {
                t + 1
            }
            pool.commit()


def test_a_memory_that_does_not_travel_is_a_bug_and_not_a_silence(pools):
    for pool in pools:
        with scope(pool, ROUND), pytest.raises(TaskFailed, match="set does not travel"):
            list(pool.ask(tasks.keep_a_set, dict.fromkeys(pool.devices, Question(torch.zeros(1)))))


@pytest.mark.parametrize("wrap", [lambda f: Metered(f, Ledger()), lambda f: Flaky(f, 0.5)])
def test_wrappers_keep_the_rule_that_one_ask_is_open(wrap):
    fleet = wrap(LocalFleet(clients()))
    with scope(fleet, ROUND):
        fleet.ask(tasks.count, dict.fromkeys(fleet.devices, Question(torch.zeros(1))))
        with pytest.raises(RuntimeError, match="not read to the end"):
            fleet.ask(tasks.count, dict.fromkeys(fleet.devices, Question(torch.zeros(1))))


@pytest.mark.slow
def test_a_module_that_a_worker_cannot_import_matters_only_to_a_task_that_needs_it(monkeypatch):
    monkeypatch.setattr(wire, "_messages", dict(wire._messages))
    monkeypatch.setattr(Gate, "choices", dict(Gate.choices))
    exec(GONE, {"__name__": "gone_since"})
    pool = PoolFleet(clients(), 1)
    try:
        with scope(pool, ROUND):
            asked = pool.ask(tasks.count, dict.fromkeys(pool.devices, Question(torch.tensor(0.0))))
            assert len(list(asked)) == len(pool.devices)
            with pytest.raises(RuntimeError, match=r"This worker lacks .*'gone_since'"):
                list(pool.ask(tasks.count, dict.fromkeys(pool.devices, Gate.choices["gone"]())))
    finally:
        pool.close()


@pytest.mark.parametrize(
    ("tasks", "batch", "workers", "size"),
    [
        (50, 16, 2, 13),
        (10, 64, 2, 5),
        (4, 3, 1, 2),
        (3, 2, 1, 2),
        (1, 8, 4, 1),
        (0, 8, 2, 1),
        (9, 1, 2, 1),
        (7, 7, 1, 7),
    ],
)
def test_crews_are_about_equal_and_none_is_idle(tasks, batch, workers, size):
    assert crew_size(tasks, batch, workers) == size


def test_bytes_of_heads_are_those_of_their_encoding():
    heads, random = Heads(), Random(0)
    for _ in range(200):
        scope = Scope("a run", random.choice([0, 7]), 130, 0)
        device = random.choice(["7", "0042", "\u00fc42", "x" * 200])
        head = envelope(scope, 1, "some/task", device, random.choice([(-2, 0), (129, 1)]))
        head = replace(head, seed=head.seed >> random.choice([0, 1, 7, 40, 62]))
        silent = random.choice(["", "", "no \u00fc", "n" * 130])
        assert heads.down(head) == len(encode(head))
        assert heads.up(head, silent) == len(encode(receipt(head, silent)))
