"""Ledger and costs by hand: several asks in a round, silences of every kind, traced links, stragglers."""

import pytest
import torch

from fedbonsai.arch import Arch
from fedbonsai.core import Answer, Answers, Client, Device, Scope, Silence, scope, task
from fedbonsai.devices.clock import compute_seconds
from fedbonsai.devices.figures import Figure
from fedbonsai.devices.link import Fixed, Trace
from fedbonsai.devices.profile import profile
from fedbonsai.errors import Silent
from fedbonsai.fleets.costs import Costs
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.timed import Clock, Timed
from fedbonsai.fleets.wrappers import Flaky, Metered, Wrapper
from fedbonsai.model import Model
from fedbonsai.wire import encode
from fedbonsai.work import collecting, report
from tests.fleets import tasks
from tests.fleets.tasks import Question, Reply, clients

PI = profile("raspberry-pi-4")
MODEL = Model.init(Arch("mlp", {"channels": 1, "size": 1, "widths": [8], "classes": 4}), 0)


def figure(value):
    return Figure(value, "assumed", "test")


class Script(Wrapper):
    """Answers what it was told, ask by ask: per device (down, up, work, reason); a reason makes it a silence."""

    def __init__(self, *asks):
        super().__init__(LocalFleet(clients(3)))
        self.asks = list(asks)

    def ask(self, task, send, at_least=1):
        told = self.asks.pop(0)

        def source():
            for device in send:
                down, up, work, reason = told[device.id]
                if reason:
                    yield Silence(device, reason.removesuffix("!"), down, up, work=work, lost=reason.endswith("!"))
                else:
                    yield Answer(device, Reply(torch.zeros(()), 0.0, 0), down, up, work)

        return Answers(source(), at_least)


def passes(samples):
    """Work of a training step on so many samples."""
    with collecting() as found:
        report(MODEL, (1, 1, 1), backward=samples, passes=1, steps=1, batch=samples)
    return tuple(found)


def ask_all(fleet, ids=("00", "01", "02")):
    question = Question(torch.zeros(1))
    heard = fleet.ask(tasks.count, {Device(id): question for id in ids}, 0)
    return [answer.device.id for answer in heard], heard.silent


# --- the ledger ------------------------------------------------------------------------------------------------------


def test_bytes_of_the_silent_are_booked_in_every_ask():
    fleet = Metered(
        Script(
            {"00": (10, 7, (), ""), "01": (11, 0, (), "lost"), "02": (12, 3, (), "sorry")},
            {"00": (20, 0, (), "mute"), "01": (21, 8, (), ""), "02": (0, 0, (), "away")},
            {"00": (5, 1, (), ""), "01": (6, 2, (), ""), "02": (9, 4, (), "sorry")},
        ),
        ledger := Ledger(),
    )
    for where in (Scope("r", 1, 3, 0), Scope("r", 1, 3, 1)):  # two asks in the first attempt, one in the second
        with scope(fleet, where) as opened:
            for _ in range(2 - where.attempt):
                ask_all(opened)
    rows = {}
    for row in ledger.take():
        assert row["round"] == 3
        key = (row["attempt"], row["client"], row["direction"])
        count, size = rows.get(key, (0, 0))
        rows[key] = (count + row["messages"], size + row["bytes"])
    assert rows == {
        (0, "00", "down"): (2, 10 + 20),
        (0, "00", "up"): (1, 7),
        (0, "01", "down"): (2, 11 + 21),
        (0, "01", "up"): (1, 8),
        (0, "02", "down"): (1, 12),
        (0, "02", "up"): (1, 3),
        (1, "00", "down"): (1, 5),
        (1, "00", "up"): (1, 1),
        (1, "01", "down"): (1, 6),
        (1, "01", "up"): (1, 2),
        (1, "02", "down"): (1, 9),
        (1, "02", "up"): (1, 4),
    }
    assert ledger.total == {"down": 94, "up": 25}
    assert ledger.clients == {"00": 43, "01": 48, "02": 28}
    assert ledger.kinds[("down", "test/question@1")] == 94
    assert ledger.kinds[("up", "test/reply@1")] == 7 + 8 + 1 + 2


@task("test/sometimes")
def sometimes(request: Question, me: Client, memory):
    """Client 01 has nothing to say when it is asked for the second time; what it kept of that does not count."""
    calls = memory.get("calls", 0) + 1
    if me.id == "01" and calls == 2:
        raise Silent("nothing to say")
    return Reply(request.value, 0.0, calls), {"calls": calls}


def test_a_flaky_fleet_pays_for_all_that_was_sent():
    """What is lost on its way is paid for; a request that was never sent is not. All in real bytes, over four asks."""
    fleet = Flaky(Metered(LocalFleet(people := clients(8)), ledger := Ledger()), 0.5)
    question, spent, reasons = Question(torch.zeros(9)), {}, set()
    size = len(encode(question))
    for t in range(2):
        with scope(fleet, Scope("r", 5, t, 0)):
            for _ in range(2):
                heard = fleet.ask(sometimes, dict.fromkeys(fleet.devices, question), 0)
                for item in [*heard, *heard.silent.values()]:
                    reason = getattr(item, "reason", "")
                    reasons.add(reason)
                    assert (item.down > size) == (reason != "request lost")
                    assert (item.up > 0) == (reason != "request lost")
                    for way, moved in (("down", item.down), ("up", item.up)):
                        key = (t, item.device.id, way)
                        spent[key] = spent.get(key, 0) + moved
            fleet.commit()
    assert reasons == {"", "request lost", "reply lost", "nothing to say"}
    booked = {}
    for row in ledger.take():
        key = (row["round"], row["client"], row["direction"])
        booked[key] = booked.get(key, 0) + row["bytes"]
    assert booked == {key: size for key, size in spent.items() if size}
    assert sum(ledger.total.values()) == sum(spent.values()) == sum(ledger.clients.values())
    assert len(ledger.clients) == len(people)


# --- the clock -------------------------------------------------------------------------------------------------------


def fixed(down=8e3, up=4e3, latency=0.5):
    """1,000 bytes a second down, 500 up, and half a second."""
    return Fixed("f", "", figure(down), figure(up), figure(latency), figure(0.0))


def clock(links=None, **rules):
    ids = [f"{i:02d}" for i in range(3)]
    return Clock(dict.fromkeys(ids, PI), links or dict.fromkeys(ids, fixed()), **rules)


def watts(down, compute, up, idle):
    return PI.receive.value * down + PI.compute.value * compute + PI.transmit.value * up + PI.idle.value * idle


def test_asks_of_a_round_add_up_for_every_device():
    """Seconds, joules and operations of two asks, one of them a silence; who waits for the others is idle."""
    one, two = passes(50), passes(200)
    c1, c2 = compute_seconds(PI, one), compute_seconds(PI, two)
    assert 0 < c1 < c2
    script = Script(
        {"00": (1000, 500, one, ""), "01": (2000, 1000, two, ""), "02": (500, 0, (), "mute")},
        {"00": (3000, 250, two, "sorry"), "01": (100, 50, one, "")},
    )
    fleet = Timed(script, clock(), Costs())
    with scope(fleet, Scope("r", 1, 0, 0)):
        assert ask_all(fleet)[0] == ["00", "01"]
        assert ask_all(fleet, ("00", "01"))[0] == ["01"]
    rows = {row["client"]: row for row in fleet.costs.take()}
    first, second = (2.5 + c2 + 2.5), (3.5 + c2 + 1.0)  # the slowest of each ask
    want = {
        "00": ((1.5, 3.5), (c1, c2), (1.5, 1.0)),
        "01": ((2.5, 0.6), (c2, c1), (2.5, 0.6)),
        "02": ((1.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
    }
    for id, (down, compute, up) in want.items():
        row, asks = rows[id], 1 if id == "02" else 2
        assert row["asks"] == asks
        assert row["down_seconds"] == pytest.approx(sum(down))
        assert row["compute_seconds"] == pytest.approx(sum(compute))
        assert row["up_seconds"] == pytest.approx(sum(up))
        idle = (first, second)[:asks]
        idle = sum(idle) - sum(down) - sum(compute) - sum(up)
        assert row["idle_seconds"] == pytest.approx(idle)
        assert row["joules"] == pytest.approx(watts(sum(down), sum(compute), sum(up), idle))
    per = 2 * 8 + 3 * 8 * 4  # multiply-accumulates of a training sample: the first layer needs no gradient by its input
    assert {id: row["macs"] for id, row in rows.items()} == {"00": 250 * per, "01": 250 * per, "02": 0, "": 0}
    assert all(row["kept_macs"] == row["macs"] for row in rows.values())  # nothing is pruned
    assert rows[""]["elapsed"] == pytest.approx(first + second)
    assert fleet.costs.total.joules == pytest.approx(sum(row["joules"] for row in rows.values()))
    assert fleet.costs.total.device_joules["00"] == rows["00"]["joules"]
    assert fleet.costs.total.device_seconds["01"] == pytest.approx(6.2 + c1 + c2)
    assert rows["00"]["peak_memory"] == rows["01"]["peak_memory"] >= rows["02"]["peak_memory"]


def test_a_retried_round_has_rows_of_its_own_and_takes_its_time_too():
    told = {"00": (1000, 500, (), ""), "01": (2000, 0, (), "mute"), "02": (0, 0, (), "mute")}
    fleet = Timed(Script(told, told, told), clock(), Costs())
    for attempt in range(3):
        with scope(fleet, Scope("r", 1, 4, attempt)):
            ask_all(fleet)
    rows = fleet.costs.take()
    assert [(row["attempt"], row["elapsed"]) for row in rows if not row["client"]] == [(0, 3.0), (1, 3.0), (2, 3.0)]
    assert sum(row["joules"] for row in rows) == pytest.approx(
        3 * (watts(1.5, 0, 1.5, 0) + watts(2.5, 0, 0, 0.5) + watts(0, 0, 0, 3.0))
    )
    assert fleet.costs.now == 9.0
    assert fleet.costs.total.device_joules["00"] == pytest.approx(3 * watts(1.5, 0, 1.5, 0))
    assert fleet.costs.total.device_seconds == pytest.approx({"00": 9.0, "01": 7.5, "02": 0.0})


def trace(edge, before, after, period=1000.0):
    """An uplink of so many bits a second until ``edge``, of others from there; the downlink is 8 kbit/s throughout."""
    return Trace("t", "", (0.0, edge), (8e3, 8e3), (before, after), period, figure(0.0), figure(0.0), "test")


def test_an_upload_on_a_traced_link_begins_when_computing_ends():
    """1,000 bytes down take a second; then it computes; the upload falls into the segment that holds by then."""
    work = passes(5000)
    c = compute_seconds(PI, work)
    told = {"00": (1000, 500, work, "")}
    cases = [
        (1.0 + c / 2, 8e3, 4e3, 1.0),  # the edge is while it computes: all of the upload is in the second segment
        (1.0 + c + 0.25, 8e3, 4e3, 0.25 + 0.5),  # a quarter of a second is left of the first: 2,000 of 4,000 bits
        (1.0 + c + 0.5, 8e3, 1.0, 0.5),  # the last bit comes as the segment ends
        (1.0 + c / 2, 1.0, 8e3, 0.5),
    ]
    for edge, before, after, up in cases:
        fleet = Timed(Script(told), clock({"00": trace(edge, before, after)}), Costs())
        with scope(fleet, Scope("r", 1, 0, 0)):
            ask_all(fleet, ("00",))
        row = next(row for row in fleet.costs.take() if row["client"])
        assert row["down_seconds"] == pytest.approx(1.0)
        assert row["compute_seconds"] == pytest.approx(c)
        assert row["up_seconds"] == pytest.approx(up, abs=1e-9)


def test_a_later_ask_meets_the_link_as_it_is_by_then():
    """The second ask is sent when the first has ended, the third after a round: the simulated time goes on."""
    told = {"00": (1000, 1000, (), "")}
    fleet = Timed(Script(told, told, told), clock({"00": trace(3.5, 8e3, 2e3, period=7.0)}), Costs())
    ups = []
    for t, asks in ((0, 2), (1, 1)):
        with scope(fleet, Scope("r", 1, t, 0)):
            for _ in range(asks):
                ask_all(fleet, ("00",))
        ups.append(next(row for row in fleet.costs.take() if row["client"])["up_seconds"])
    # sent at 0: up from 1 to 2. Sent at 2: up from 3, 4,000 bits until 3.5, 4,000 more at 2,000 a second, until 5.5.
    # Sent at 5.5: up from 6.5, 1,000 bits until the trace begins again at 7, and 7,000 at 8,000 a second.
    assert ups == pytest.approx([1.0 + 2.5, 0.5 + 0.875])
    assert fleet.costs.now == pytest.approx(5.5 + 1.0 + 1.375)


def test_a_straggler_computes_longer_and_sends_later():
    work = passes(5000)
    c = compute_seconds(PI, work)
    told = {"00": (1000, 500, work, "")}
    fleet = Timed(Script(told), clock({"00": trace(1.0 + 2 * c, 8e3, 4e3)}, stragglers=1.0, slowdown=3.0), Costs())
    with scope(fleet, Scope("r", 1, 0, 0)):
        ask_all(fleet, ("00",))
    row = next(row for row in fleet.costs.take() if row["client"])
    assert row["compute_seconds"] == pytest.approx(3 * c)
    assert row["up_seconds"] == pytest.approx(1.0)  # by then the slower segment holds
    assert row["joules"] == pytest.approx(watts(1.0, 3 * c, 1.0, 0.0))
    assert row["macs"] == 5000 * (2 * 8 + 3 * 8 * 4)  # no more than others


def test_what_comes_behind_the_deadline_is_paid_until_then():
    work = passes(200)
    c = compute_seconds(PI, work)
    told = {"00": (500, 100, (), ""), "01": (1000, 5000, work, ""), "02": (9000, 10, work, "")}
    fleet = Timed(Script(told), clock(deadline=4.0), Costs())
    with scope(fleet, Scope("r", 1, 0, 0)):
        heard, silent = ask_all(fleet)
    assert heard == ["00"]
    assert {device.id for device in silent} == {"01", "02"}
    rows = {row["client"]: row for row in fleet.costs.take()}
    assert rows[""]["elapsed"] == 4.0
    assert rows["00"]["joules"] == pytest.approx(watts(1.0, 0.0, 0.7, 2.3))
    assert rows["01"]["joules"] == pytest.approx(watts(1.5, c, 2.5 - c, 0.0))
    assert rows["02"]["joules"] == pytest.approx(watts(4.0, 0.0, 0.0, 0.0))
    assert [rows[id]["dropped"] for id in ("00", "01", "02")] == [0, 1, 1]
    assert rows["02"]["macs"] == 0  # it never came to computing
    assert silent[Device("01")].up == 5000  # the ledger, inside, has what was sent
