from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Scope, scope, task
from fedbonsai.devices.channel import Cell
from fedbonsai.devices.clock import compute_seconds, macs
from fedbonsai.devices.figures import Figure
from fedbonsai.devices.link import Fixed, Shared, link
from fedbonsai.devices.profile import profile
from fedbonsai.errors import Silent, Unanswered
from fedbonsai.fleets.costs import Costs
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.pool import PoolFleet
from fedbonsai.fleets.timed import DAY, Clock, Timed, granted
from fedbonsai.fleets.wrappers import Flaky, Metered
from fedbonsai.model import Model
from fedbonsai.training.optimizers import SGD
from fedbonsai.wire import encode, message
from tests.fleets import tasks
from tests.fleets.tasks import Question, clients

PI = profile("raspberry-pi-4")
ARCH = Arch("mlp", {"channels": 1, "size": 1, "widths": [8], "classes": 4})


def figure(value):
    return Figure(value, "assumed", "test")


@message("test-timed/train@1")
class Train:
    model: Model
    epochs: int
    padding: torch.Tensor
    bandwidth: float = 0.0


@message("test-timed/done@1")
class Trained:
    steps: int


@task("test-timed/train")
def train(request: Train, me: Client, memory):
    done = training.train(request.model, me, SGD(batch=2, epochs=request.epochs))
    if request.epochs == 7:
        raise Silent("not today")
    return Trained(done.steps), {"calls": memory.get("calls", 0) + 1}


def request(epochs=1, padding=0, bandwidth=0.0):
    return Train(Model.init(ARCH, 0), epochs, torch.zeros(padding, dtype=torch.uint8), bandwidth)


def timed(inner=None, clock=None, **rules):
    inner = inner or LocalFleet(clients())
    made = clock or clock_of(**rules)
    return Timed(inner, made, Costs())


def clock_of(up=None, **rules):
    """Five devices that send ever more slowly: 1, 2, 3 ... seconds longer for a reply of some 200 bytes."""
    ids = [f"{i:02d}" for i in range(5)]
    links = {id: Fixed("f", "", figure(1e9), figure(1e9), figure(0.0), figure(0.0)) for id in ids}
    for place, id in enumerate(ids):
        links[id] = replace(links[id], latency=figure(float(place) / 2))
    return Clock(dict.fromkeys(ids, PI), up or links, **rules)


def talk(fleet, send=None, at=0, attempt=0, at_least=1):
    with scope(fleet, Scope("r", 1, at, attempt)) as opened:
        heard = opened.ask(train, send or dict.fromkeys(fleet.devices, request()), at_least)
        values = [(answer.device.id, answer.value.steps) for answer in heard]
        pending = sorted(opened.pending())
        opened.commit()
    return values, {device.id: silence.reason for device, silence in heard.silent.items()}, pending


def rows(fleet):
    taken = fleet.costs.take()
    return {row["client"]: row for row in taken}


def test_seconds_and_joules_by_hand():
    fleet = timed(
        Metered(LocalFleet(clients()), ledger := Ledger()), clock_of({f"{i:02d}": link("lte") for i in range(5)})
    )
    values, silent, _ = talk(fleet)
    assert len(values) == 5
    assert not silent
    booked, moved = rows(fleet), ledger.take()
    with scope(inner := LocalFleet(clients()), Scope("r", 1, 0, 0)):
        work = [answer.work for answer in inner.ask(train, dict.fromkeys(inner.devices, request()))]
    assert work[0][0].backward == 4
    assert work[0][0].steps == 2
    for place, id in enumerate(sorted(set(booked) - {""})):
        row = booked[id]
        size = {
            way: sum(m["bytes"] for m in moved if m["client"] == id and m["direction"] == way) for way in ("down", "up")
        }
        assert row["down_seconds"] == pytest.approx(0.035 + 8 * size["down"] / 13e6)
        assert row["up_seconds"] == pytest.approx(0.035 + 8 * size["up"] / 6e6)
        assert row["compute_seconds"] == pytest.approx(compute_seconds(PI, work[place]))
        assert row["macs"] == macs(work[place]).done == 4 * (2 * 8 + 3 * 32)
        total = row["down_seconds"] + row["compute_seconds"] + row["up_seconds"]
        assert row["idle_seconds"] == pytest.approx(booked[""]["elapsed"] - total)
        watts = {"down": 3.5, "compute": 6.4, "up": 4.0, "idle": 2.7}
        assert row["joules"] == pytest.approx(sum(w * row[f"{name}_seconds"] for name, w in watts.items()))
        assert row["peak_memory"] > PI.runtime.value
    assert fleet.costs.now == fleet.costs.total.seconds == booked[""]["elapsed"]


def test_the_round_lasts_as_long_as_the_slowest_answer_and_asks_add_up():
    fleet = timed()
    talk(fleet)
    first = rows(fleet)[""]["elapsed"]
    assert first == pytest.approx(2 * 4 / 2, abs=0.1)
    talk(fleet, dict.fromkeys(fleet.devices[:2], request()), at=1)
    talk(fleet, dict.fromkeys(fleet.devices[:3], request()), at=1, attempt=1)
    both = [row for row in fleet.costs.take() if row["client"] == ""]
    assert [(row["round"], row["attempt"]) for row in both] == [(1, 0), (1, 1)]  # a retried attempt takes time too
    assert fleet.costs.now == first + both[0]["elapsed"] + both[1]["elapsed"]


def test_a_deadline_drops_late_answers_and_what_they_kept():
    fleet = timed(deadline=2.5)
    values, silent, pending = talk(fleet)
    assert [id for id, _ in values] == ["00", "01", "02"] == pending
    assert set(silent) == {"03", "04"}
    assert silent["03"].startswith("late: 3.0 s")
    booked = rows(fleet)
    assert booked[""]["elapsed"] == 2.5
    late = booked["04"]
    assert late["dropped"] == 1
    assert late["up_seconds"] == pytest.approx(0.5, abs=0.1)  # it stops when nobody waits for it any more
    assert all(row["idle_seconds"] >= 0 for row in booked.values())
    with pytest.raises(Unanswered, match="late"):
        talk(timed(deadline=2.5), at_least=4)


def test_the_first_answers_are_kept_in_the_order_of_the_question():
    fleet = timed(first=2)
    order = [fleet.devices[i] for i in (4, 1, 3, 0, 2)]
    values, silent, pending = talk(fleet, dict.fromkeys(order, request()))
    assert [id for id, _ in values] == ["01", "00"]
    assert pending == ["00", "01"]
    assert set(silent) == {"02", "03", "04"}
    assert rows(fleet)[""]["elapsed"] == pytest.approx(1.0, abs=0.1)
    fewer = timed(first=4, deadline=1.5)
    assert [id for id, _ in talk(fewer)[0]] == ["00", "01"]
    assert rows(fewer)[""]["elapsed"] == 1.5


def test_an_earlier_answer_is_never_left_out_for_one_of_equals():
    clock = clock_of()
    late, early = clock.links["02"], clock.links["00"]
    equals = replace(clock, links={"00": late, "01": late, "02": late, "03": early, "04": early}, first=3)
    values, silent, _ = talk(timed(clock=equals))
    (one, *rest), left = [id for id, _ in values], set(silent)
    assert rest == ["03", "04"]
    assert {one} | left == {"00", "01", "02"}


def test_the_beginning_of_a_run_waits_for_all():
    for rules in ({"deadline": 0.5}, {"first": 1}):
        values, silent, _ = talk(fleet := timed(**rules), at=-1)
        assert len(values) == 5
        assert not silent
        assert rows(fleet)[""]["elapsed"] > 3.9


def test_answers_are_those_of_the_fleet_inside():
    plain, spooled, inner = timed(), timed(first=5), LocalFleet(clients())

    def all_of(fleet):
        with scope(fleet, Scope("r", 1, 0, 0)):
            heard = fleet.ask(tasks.count, dict.fromkeys(fleet.devices, Question(torch.tensor(1.0))))
            return [(a.device, bytes(encode(a.value)), a.down, a.up) for a in heard]

    assert all_of(plain) == all_of(spooled) == all_of(inner)


@pytest.mark.slow
def test_workers_report_the_same_work_and_no_byte_more():
    pool = PoolFleet(clients(), 2)
    try:
        here, there = timed(Metered(LocalFleet(clients()), a := Ledger())), timed(Metered(pool, b := Ledger()))
        assert talk(here) == talk(there)
        assert here.costs.take() == there.costs.take()
        assert a.take() == b.take()
    finally:
        pool.close()


def test_what_a_task_computed_before_it_fell_silent_is_booked():
    fleet = timed()
    send = {device: request(7 if device.id == "02" else 1) for device in fleet.devices}
    _, silent, _ = talk(fleet, send)
    assert silent == {"02": "not today"}
    booked = rows(fleet)
    assert booked["02"]["macs"] == 7 * booked["01"]["macs"]


def test_lost_requests_cost_nothing_without_a_deadline_and_patience_with_one():
    always = Flaky(LocalFleet(clients()), 1.0)
    values, silent, pending = talk(lost := timed(always), at_least=0)
    assert (values, pending) == ([], [])
    assert set(silent.values()) == {"request lost", "reply lost"}
    mute = {id for id, why in silent.items() if why == "request lost"}
    booked = rows(lost)
    assert all(booked[id]["macs"] == 0 for id in mute)
    assert all(booked[id]["macs"] > 0 for id in silent if id not in mute)
    for rate in (1.0, 0.3):
        talk(waited := timed(Flaky(LocalFleet(clients()), rate), deadline=60.0), at_least=0)
        assert rows(waited)[""]["elapsed"] == 60.0


def test_dropouts_are_drawn_by_seed_and_stop_in_the_middle():
    def run(rate, attempt=0):
        fleet = timed(dropout=rate)
        return talk(fleet, at_least=0, attempt=attempt), rows(fleet)

    (values, silent, pending), booked = run(0.5)
    assert ((values, silent, pending), booked) == run(0.5)
    assert 0 < len(silent) < 5
    assert set(silent.values()) == {"dropped out"}
    assert pending == [id for id, _ in values]
    (_, _, _), whole = run(0.0)
    for id in silent:
        spent, full = (
            sum(row[f"{part}_seconds"] for part in ("down", "compute", "up")) for row in (booked[id], whole[id])
        )
        assert 0 <= spent < full or full == 0
        assert booked[id]["macs"] == pytest.approx(
            whole[id]["macs"] * booked[id]["compute_seconds"] / whole[id]["compute_seconds"], abs=1
        )
    assert {frozenset(run(0.5, attempt)[0][1]) for attempt in range(4)} != {frozenset(silent)}


def test_stragglers_compute_slower_for_a_round():
    slow, quick = timed(stragglers=1.0, slowdown=5.0), timed()
    talk(slow)
    talk(quick)
    one, other = rows(slow), rows(quick)
    assert all(one[id]["compute_seconds"] == pytest.approx(5 * other[id]["compute_seconds"]) for id in one if id)
    seen = set()
    for t in range(12):
        talk(some := timed(stragglers=0.3), at=t)
        seen |= {
            id for id, row in rows(some).items() if id and row["compute_seconds"] > 2 * other[id]["compute_seconds"]
        }
    assert len(seen) >= 4


def test_availability_follows_the_hours_of_each_device():
    clock = clock_of(availability=0.25)
    hours = np.arange(0, DAY, DAY / 96)
    for id in ("00", "01", "02"):
        there = np.array([clock.away(1, id, float(now)) == 0 for now in hours])
        assert there.mean() == pytest.approx(0.25, abs=0.011)
        assert (np.diff(np.concatenate([there, there[:1]]).astype(int)) == 1).sum() == 1  # one stretch a day
        away = clock.away(1, id, float(hours[~there][0]))
        assert clock.away(1, id, float(hours[~there][0]) + away + 1e-6) == 0
    assert clock.away(1, "00", 0.0) != clock.away(1, "01", 0.0)


def test_when_all_are_away_the_server_waits_for_the_first_to_return():
    fleet = timed(availability=0.02)
    starts = [fleet.clock.away(1, device.id, 0.0) for device in fleet.devices]
    assert min(starts) > 0
    values, silent, _ = talk(fleet)
    assert len(values) + len(silent) == 5
    assert values
    assert all(why.startswith("away for") for why in silent.values())
    booked = rows(fleet)
    assert booked[""]["elapsed"] >= min(starts)
    assert set(booked) - {""} == {id for id, _ in values}


def test_a_device_without_the_memory_gives_no_answer():
    clock = clock_of()
    small = {**clock.profiles, "03": replace(PI, memory=figure(1e6))}
    fleet = timed(clock=replace(clock, profiles=small))
    values, silent, pending = talk(fleet)
    assert "03" not in dict(values)
    assert silent["03"].startswith("out of memory: needs 2")
    assert "03" not in pending
    assert rows(fleet)["03"]["up_seconds"] == 0.0


@pytest.mark.parametrize("t", range(6))
def test_simulated_time_of_a_round_stays_within_its_deadline(t):
    """specs/wireless check 15 as far as the clock goes: T per round <= T_th, bands granted by request."""
    cell = Cell()
    fleet = timed(clock=clock_of({f"{i:02d}": Shared("cell", "", cell, figure(0.0)) for i in range(5)}))
    send = {
        device: request(2, bandwidth=cell.bandwidth * (1 + place) / 15) for place, device in enumerate(fleet.devices)
    }
    talk(fleet, send, at=t)
    without = rows(fleet)
    snr = cell.snr_bandwidth(1, sorted(set(without) - {""}), t)
    totals = []
    for place, id in enumerate(sorted(set(without) - {""})):
        row = without[id]
        rate = float(cell.rate(cell.bandwidth * (1 + place) / 15, snr[place]))
        assert row["up_seconds"] * rate / 8 == pytest.approx(
            round(row["up_seconds"] * rate / 8), abs=1e-6
        )  # whole bytes
        totals.append(row["down_seconds"] + row["compute_seconds"] + row["up_seconds"])
    assert without[""]["elapsed"] == pytest.approx(max(totals))
    limit = float(np.median(totals))
    limited = timed(clock=replace(fleet.clock, deadline=limit))
    values, silent, _ = talk(limited, send, at=t)
    assert rows(limited)[""]["elapsed"] <= limit
    assert len(values) == sum(total <= limit for total in totals)
    assert len(values) + len(silent) == 5


def test_a_granted_band_is_found_in_the_request_or_in_a_part_of_it():
    @dataclass
    class Whole:
        grant: object

    assert granted(request(bandwidth=5e6)) == 5e6
    assert granted(Whole(request(bandwidth=5e6))) == 5e6
    assert granted(Whole(request())) is None
    assert granted(Question(torch.tensor(0.0))) is None


def test_a_resumed_book_has_the_sums_of_the_one_that_went_on():
    whole, cut = timed(), timed()
    parts = []
    for t in range(4):
        for fleet in (whole, cut):
            talk(fleet, at=t)
        whole.costs.take()
        parts.append(cut.costs.take())
        fresh = Costs()
        fresh.resume(row for part in parts for row in part)
        cut = Timed(LocalFleet(clients()), clock_of(), fresh)
        assert vars(fresh.total) == vars(whole.costs.total)
        assert fresh.now == whole.costs.now


def test_of_equal_answers_those_that_are_not_used_count_as_lost():
    clock = clock_of()
    equals = replace(clock, links=dict.fromkeys(clock.links, clock.links["01"]), first=2)
    send = {device: request() for device in timed().devices[1:4]}
    _, silent, _ = talk(fleet := timed(clock=equals), send)
    booked = rows(fleet)
    assert len(silent) == 1
    assert {id for id, row in booked.items() if row["dropped"]} == set(silent)
    late = booked[next(iter(silent))]  # as early as the last that was used
    assert late["down_seconds"] + late["compute_seconds"] + late["up_seconds"] == booked[""]["elapsed"]


def test_a_reply_that_was_sent_and_lost_counts_as_lost():
    _, silent, _ = talk(fleet := timed(Flaky(LocalFleet(clients()), 1.0)), at_least=0)
    booked = rows(fleet)
    for id, why in silent.items():
        assert booked[id]["dropped"] == (why == "reply lost")
        assert (booked[id]["up_seconds"] > 0) == (why == "reply lost") or id == "00"
