"""Buffered rounds: who is asked, what comes in which round, how it counts, and that nothing of it is lost."""

from dataclasses import replace

import pytest
import torch

from fedbonsai.core import Answer, Client, Device, Scope, scope, task
from fedbonsai.devices.figures import Figure
from fedbonsai.devices.link import Fixed
from fedbonsai.devices.profile import profile
from fedbonsai.errors import ConfigError, Silent
from fedbonsai.fleets.buffer import Buffer
from fedbonsai.fleets.buffered import Buffered
from fedbonsai.fleets.costs import Costs
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.pool import PoolFleet
from fedbonsai.fleets.timed import Clock
from fedbonsai.fleets.wrappers import Replayed
from fedbonsai.runs import recipes
from fedbonsai.runs.folder import Folder
from fedbonsai.runs.loop import loop
from fedbonsai.runs.setup import clients, federation, run_context
from fedbonsai.stages.codec import Chain, Packed
from fedbonsai.stages.codec.values import Fp32
from fedbonsai.stages.updates import Update, combine
from fedbonsai.wire import decode, encode, message
from tests.fleets.tasks import clients as people
from tests.mortal import Killed, Mortal


@message("test-buffered/ask@1")
class Ask:
    bad: str = ""  # this device does not answer


@message("test-buffered/said@1")
class Said:
    round: int
    before: int  # how often it was asked before, as far as it knows


@task("test-buffered/say")
def say(request: Ask, me: Client, memory):
    if request.bad == me.id:
        raise Silent("not today")
    calls = memory.get("calls", 0)
    return Said(me.round, calls), {"calls": calls + 1}


def fleet_of(size, concurrency=0, staleness=0.5, seconds=(1.0, 2.0, 5.2, 5.4, 9.0), **rules):
    """Devices whose answers take so many seconds: links without a rate's limit, computing takes nothing."""

    def figure(value):
        return Figure(value, "assumed", "test")

    free = Fixed("f", "", figure(1e15), figure(1e15), figure(0.0), figure(0.0))
    links = {f"{place:02d}": replace(free, latency=figure(each / 2)) for place, each in enumerate(seconds)}
    pi = profile("raspberry-pi-4")
    clock = Clock(dict.fromkeys(links, pi), links, **rules)
    return Buffered(LocalFleet(people()[: len(seconds)]), clock, Costs(), Buffer(size, concurrency, staleness))


def talk(fleet, t, attempt=0, accept=True, rejected=(), bad=""):
    """One round: who was asked, what came (device, round of the request, rounds since, weight), who was silent."""
    with scope(fleet, Scope("r", 1, t, attempt)) as opened:
        asked = [device.id for device in opened.devices]
        heard = opened.ask(say, dict.fromkeys(opened.devices, Ask(bad)), 0)
        came = []
        for answer in heard:
            came.append((answer.device.id, answer.value.round, answer.value.before, answer.stale, answer.weight))
            if answer.device.id in rejected:
                opened.reject(answer.device)
        if accept:
            opened.commit()
    return asked, came, {device.id: silence.reason for device, silence in heard.silent.items()}


def test_what_cannot_be_meant_is_refused():
    assert Buffer().weight(7) == (1 + 7) ** -0.5
    assert [Buffer(1, staleness=1.0).weight(stale) for stale in (0, 1, 3)] == [1.0, 0.5, 0.25]
    with pytest.raises(ValueError, match=r"size = 0.*concurrency concern nothing"):
        Buffer(concurrency=3)
    with pytest.raises(ValueError, match="size = 4, concurrency = 3"):
        Buffer(4, 3)
    with pytest.raises(ValueError, match="staleness = -1"):
        Buffer(4, staleness=-1)
    with pytest.raises(ConfigError, match=r"buffer\.concurrency = 9: there are 5 devices"):
        fleet_of(2, 9)


def test_rounds_by_hand():
    """Devices 0 to 4 answer after 1, 2, 5.2, 5.4 and 9 seconds; a round ends with two answers.

    All begin at 0. Round 0 ends at 2 with 0 and 1, which begin anew and come at 3 and 4, the end of round 1. Begun anew they
    would come at 5 and 6: round 2 ends at 5.2 with 0 and with 2, begun in round 0. In round 3 device 3 comes at 5.4, begun
    in round 0 too, and 1 at 6, begun in round 2.
    """
    fleet = fleet_of(2)
    assert talk(fleet, 0) == (
        ["00", "01", "02", "03", "04"],
        [("00", 0, 0, 0, 1.0), ("01", 0, 0, 0, 1.0)],
        {},
    )
    assert fleet.costs.now == pytest.approx(2.0)
    assert talk(fleet, 1) == (["00", "01"], [("00", 1, 1, 0, 1.0), ("01", 1, 1, 0, 1.0)], {})
    assert fleet.costs.now == pytest.approx(4.0)
    assert talk(fleet, 2) == (["00", "01"], [("00", 2, 2, 0, 1.0), ("02", 0, 0, 2, 3**-0.5)], {})
    assert fleet.costs.now == pytest.approx(5.2)
    asked, came, _ = talk(fleet, 3)
    assert asked == ["00", "02"]
    assert came == [("03", 0, 0, 3, 0.5), ("01", 2, 2, 1, 2**-0.5)]
    assert fleet.costs.now == pytest.approx(6.0)


def test_seconds_and_joules_are_those_of_who_came():
    fleet = fleet_of(2)
    talk(fleet, 0)
    rows = {row["client"]: row for row in fleet.costs.take()}
    assert rows.keys() == {"", "00", "01"}
    assert rows[""]["elapsed"] == pytest.approx(2.0)
    pi = profile("raspberry-pi-4")
    halves = pi.receive.value + pi.transmit.value
    assert rows["01"]["joules"] == pytest.approx(halves * 1.0, rel=1e-6)
    assert rows["01"]["idle_seconds"] == 0.0


def test_so_many_work_at_any_time_and_who_comes_next_is_drawn():
    fleet, working, seen = fleet_of(1, 3), set(), set()
    for t in range(12):
        asked, came, _ = talk(fleet, t)
        assert not working & set(asked)
        working |= set(asked)
        assert len(working) == 3
        working -= {who for who, *_ in came}
        seen |= set(asked)
    assert seen == {"00", "01", "02", "03", "04"}


def test_a_silent_device_is_heard_of_when_its_time_is_over_and_may_be_asked_again():
    fleet = fleet_of(3)
    _, came, silent = talk(fleet, 0, bad="01")
    assert [who for who, *_ in came] == ["00", "02", "03"]
    assert silent == {"01": "not today"}
    assert fleet.costs.now == pytest.approx(5.4)
    assert talk(fleet, 1)[0] == ["00", "01", "02", "03"]


def test_a_deadline_is_of_one_answer():
    fleet = fleet_of(3, deadline=4.0)
    _, came, silent = talk(fleet, 0)
    assert [who for who, *_ in came] == ["00", "01"]
    assert silent == {"02": "late: 5.2 s", "03": "late: 5.4 s", "04": "late: 9.0 s"}
    assert fleet.costs.now == pytest.approx(4.0)
    assert {row["client"]: row["dropped"] for row in fleet.costs.take()} == {
        "": 0,
        "00": 0,
        "01": 0,
        "02": 1,
        "03": 1,
        "04": 1,
    }


def test_an_answer_that_is_not_used_leaves_the_device_with_what_it_held():
    fleet = fleet_of(2, seconds=(1.0, 2.0))
    talk(fleet, 0)
    assert talk(fleet, 1, rejected={"00"})[1] == [("00", 1, 1, 0, 1.0), ("01", 1, 1, 0, 1.0)]
    assert talk(fleet, 2)[1] == [("00", 2, 1, 0, 1.0), ("01", 2, 2, 0, 1.0)]


def test_a_round_that_is_not_accepted_changes_nothing_but_the_time():
    """As by hand, but that round 1 is tried twice: at 4 seconds 0 and 1 are sent off again, and 2 comes at 5.2 as before."""
    fleet = fleet_of(2)
    talk(fleet, 0)
    talk(fleet, 1, accept=False)
    asked, came, _ = talk(fleet, 1, attempt=1)
    assert asked == ["00", "01"]
    assert came == [("00", 1, 1, 0, 1.0), ("02", 0, 0, 1, 2**-0.5)]
    assert fleet.costs.now == pytest.approx(5.2)


def test_a_fleet_goes_on_from_what_a_checkpoint_holds():
    held, fleet = {}, fleet_of(2)
    for t in range(5):
        again = fleet_of(2)
        again.restore(decode(bytes(encode(held))))
        again.costs.pass_time(Scope("r", 1, t, 0), fleet.costs.now)
        assert talk(again, t, accept=False) == talk(fleet, t, accept=False)
        with scope(fleet, Scope("r", 1, t, 0)) as opened:
            for _ in opened.ask(say, dict.fromkeys(opened.devices, Ask()), 0):
                pass
            held |= opened.pending()
            opened.commit()


def test_a_stale_change_counts_less_and_the_step_is_as_much_shorter():
    """Changes 4 and 1 of 1 and 3 samples, the second of 3 rounds ago: (1 * 4 + 3 * .5 * 1) / (1 + 3) = 1.375."""
    start = {"w": torch.zeros(1)}
    exact = Chain((Fp32(),))

    def answer(id, value, examples, stale):
        packed = exact.pack({"w": torch.tensor([value])}, 0)
        weight = Buffer(1).weight(stale)
        return Answer(Device(id), Update(packed, examples, 1, 0.0), stale=stale, weight=weight)

    combined = combine([answer("a", 4.0, 1, 0), answer("b", 1.0, 3, 3)], start, LocalFleet([]), coded=True)
    assert combined.mean["w"].item() == pytest.approx(1.375)
    assert isinstance(answer("a", 4.0, 1, 0).value.result, Packed)


SMALL = {
    "rounds": 4,
    "data.clients": 6,
    "data.limit": 300,
    "model.name": "mlp",
    "model.options": {"widths": [16]},
    "method.optimizer": {"lr": 0.1, "momentum": 0.5, "batch": 10, "epochs": 1},
    "buffer.size": 2,
    "buffer.concurrency": 4,
}


def config_of(**more):
    return recipes.load("fedbuff", "", {**SMALL, **more})


def end(config, wrapped=lambda fleet: fleet, folder=None, fleet=None, answers=None):
    made = run_context(config, answers=answers)
    if fleet is not None:  # below the clock
        made.fleet.inner = fleet
    made.fleet = wrapped(made.fleet)
    return bytes(encode(loop(config, made, "run", folder).state))


@pytest.fixture(scope="module")
def reference():
    return end(config_of())


@pytest.mark.slow
@pytest.mark.parametrize("t", range(4))
def test_a_run_that_is_killed_in_any_round_ends_the_same(t, reference, tmp_path):
    folder, whole, config = Folder(tmp_path / "run"), Folder(tmp_path / "whole"), config_of()
    with pytest.raises(Killed):
        end(config, lambda fleet: Mortal(fleet, t, 1), folder)
    assert end(config, folder=folder) == reference
    assert end(config, folder=whole) == reference
    ours, theirs = ([{**row, "seconds": 0} for row in each.rows()] for each in (folder, whole))
    assert ours == theirs
    assert [*folder.cost_rows()] == [*whole.cost_rows()]
    assert [*folder.ledger_rows()] == [*whole.ledger_rows()]
    assert any(row.get("stale_max") for row in theirs), "no answer was stale, so nothing was compared"


@pytest.mark.slow
def test_where_clients_run_and_how_many_train_together_changes_no_byte(reference):
    held = clients(federation(config_of()))
    pool = PoolFleet(held, 2)
    try:
        assert end(config_of(), fleet=pool) == reference
    finally:
        pool.close()
    assert end(config_of(**{"buffer.staleness": 0.0})) != reference
    assert end(config_of(), fleet=LocalFleet(held)) == reference


@pytest.mark.slow
def test_a_recorded_run_is_replayed_without_its_clients(reference, tmp_path):
    config = config_of(**{"fleet.record": True})
    assert end(config, answers=tmp_path / "answers") == reference
    devices = [Device(client.id) for client in clients(federation(config))]
    assert end(config, fleet=Replayed(devices, tmp_path / "answers")) == reference


@pytest.mark.slow
def test_lost_messages_are_survived(tmp_path):
    config = config_of(**{"fleet.flaky": 0.3, "rounds": 8, "clock.dropout": 0.1, "clock.availability": 0.7})
    folder = Folder(tmp_path / "run")
    assert end(config, folder=folder) == end(config)
    assert sum(row["silent"] for row in folder.rows()) > 0
    assert not all(row["skipped"] for row in folder.rows())


@pytest.mark.slow
def test_it_learns_in_less_time_than_rounds_that_wait(tmp_path):
    """Thirty rounds of two answers of six devices, of which some are slow, against two of six that are waited for."""
    more = {"rounds": 30, "clock.stragglers": 0.4, "clock.slowdown": 50.0}
    buffered, waiting = Folder(tmp_path / "a"), Folder(tmp_path / "b")
    end(config_of(**more), folder=buffered)
    end(config_of(**more, **{"buffer.size": 0, "buffer.concurrency": 0, "method.cohort": 2}), folder=waiting)
    ours, theirs = buffered.rows()[-1], waiting.rows()[-1]
    assert ours["simulated_seconds"] < 0.7 * theirs["simulated_seconds"]
    assert ours["accuracy"] > 0.6


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"clock": {"devices": ""}}, r"buffer\.size = 2: which answers come first is told by a clock"),
        ({"clock.first": 3}, r"first = 3 drops the others"),
        ({"method.cohort": 3}, r"buffer.concurrency says how many devices work"),
        ({"method.uplink": []}, r"set method\.uplink, to \['fp32'\]"),
        ({"method.uplink": ["ef21", {"topk": 0.1}]}, "use ef14"),
        ({"method.weighting": {"beta": 1.0}}, "leave method.weighting out"),
        ({"method.mean": "median"}, "leave method.mean out"),
        ({"method.downlink": {"chain": ["fp16"], "delta": True}}, "downlink.delta must know"),
    ],
)
def test_what_buffered_rounds_cannot_bear_is_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        config_of(**settings)


def test_methods_that_cannot_bear_them_are_refused_by_name():
    with pytest.raises(
        ConfigError, match="method fedtiny makes its step of answers to what it asked in the same round"
    ):
        recipes.load("fedtiny", "", {"buffer.size": 2, "clock.devices": "raspberry-pi-4"})
