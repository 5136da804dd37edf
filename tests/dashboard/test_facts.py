"""What the files of a federation say, and what they do not: worked by hand on two devices."""

import dataclasses
import json
import os

import pytest

from fedbonsai.core import Answer, Device, Scope, Silence
from fedbonsai.dashboard.attention import attention
from fedbonsai.dashboard.facts import RUNS, Facts
from fedbonsai.dashboard.runs import POINTS, thinned
from fedbonsai.fleets.flower.logbook import Logbook, logbook_of
from fedbonsai.lock import hold
from fedbonsai.runs.flower import telling_of
from fedbonsai.runs.folder import Folder
from tests.dashboard.places import NOW, federation_in, many, run_in


def lines(picture):
    return [f"{notice.grade} {notice.about}: {notice.text}" for notice in attention(picture)]


def test_nothing_is_known_of_who_was_only_let_in(tmp_path):
    federation = federation_in(tmp_path / "federation", ["a"])
    (device,) = Facts(federation).picture(NOW).devices
    told = dataclasses.asdict(device)
    assert [told.pop(name) for name in ("name", "enrolled", "waits", "state")] == [
        "a",
        True,
        False,
        "not known",
    ]  # no server runs
    assert set(told.values()) == {None, ""}
    federation.tell(port=1)
    with federation.hold():
        assert Facts(federation).picture(NOW).devices[0].state == "never seen"


def test_what_runs_learned_is_added_up_and_the_last_word_counts(tmp_path):
    federation = federation_in(tmp_path / "federation", ["a", "b"], {"a": NOW - 59, "b": NOW - 60})
    for number, run in enumerate(("one", "two")):
        book = Logbook(logbook_of(run_in(federation, run)))
        book.met("a", f"0.{number}", "aarch64", 90 + number, 10)
        book.entries["a"].met = NOW - 100 + number
        heard = [Answer(Device("a"), 0, 100, 10), Silence(Device("b"), f"broken in {run}", 5, 0)]
        list(book.heard(iter(heard), Scope("r", 0, 0, 0), {"a": 2.0 + 2 * number}))
        book.entries["b"].error_at = NOW - 10 * number
        book.refused("b", "has no samples")
        book.write()
    federation.tell(port=1)
    with federation.hold():
        a, b = Facts(federation).picture(NOW).devices
    assert (a.state, a.version, a.train, a.fits) == ("online", "0.1", 91, True)
    assert (a.rounds, a.bytes_down, a.bytes_up, a.seconds) == (2, 200, 20, 3.0)
    assert (b.state, b.fits, b.refused, b.rounds, b.seconds) == ("offline", False, "has no samples", 0, None)
    assert (b.error, b.error_run, b.error_at) == ("broken in one", "one", NOW)
    assert a.error == ""
    assert a.error_at is None


def test_who_is_out_stays_in_the_table_and_asks_for_no_attention(tmp_path):
    federation = federation_in(tmp_path / "federation", ["a"], {"a": NOW})
    book = Logbook(logbook_of(run_in(federation, "one", 1, status="finished")))
    book.refused("gone", "has no samples")
    list(book.heard(iter([Silence(Device("left"), "broken", 5, 0)] * 2), Scope("r", 0, 0, 0), {}))
    book.write()
    federation.tell(port=1)
    with federation.hold():
        picture = Facts(federation).picture(NOW)
    assert [(device.name, device.state, device.silent) for device in picture.devices] == [
        ("a", "online", None),
        ("gone", "out", 0),
        ("left", "out", 2),
    ]
    assert not [line for line in lines(picture) if "gone" in line or "left" in line]


def test_a_run_is_what_its_folder_says_as_it_grows(tmp_path):
    federation = federation_in(tmp_path / "federation")
    job = run_in(federation, "one", 3)
    facts = Facts(federation)
    folder = Folder(tmp_path / "runs" / "one")
    telling_of(job).write_text("testing")
    with hold(folder.lock):
        (run,) = facts.picture(NOW).runs
        assert (run.status, run.doing, run.round, run.rounds) == ("running", "testing", 3, 30)
        assert [curve.name for curve in run.curves] == ["accuracy", "loss"]
        first = run.curves[0].points
        folder.append({**folder.rows()[-1], "round": 3, "accuracy": 0.25})
        (run,) = facts.picture(NOW + 2).runs
    assert run.curves[0].points == (*first, (4, 0.25))
    assert (run.score, run.best, run.bytes_up, run.seconds, run.answered) == (0.25, first[-1][1], 3000, 4.5, 195)
    (run,) = facts.picture(NOW + 4).runs
    assert (run.status, run.doing) == ("died", "")


def test_how_runs_end_and_begin(tmp_path):
    federation = federation_in(tmp_path / "federation")
    run_in(federation, "done", 2, status="finished")
    run_in(federation, "bad", 1, status="failed", reason="no answers")
    run_in(federation, "stopped", 1, status="interrupted")
    fresh = run_in(federation, "fresh")
    gone = run_in(federation, "gone")
    os.utime(gone, (1, 1))
    busy = run_in(federation, "busy")
    os.utime(busy, (1, 1))
    busy.with_suffix(".pid").write_text("1")
    telling_of(busy).write_text("waiting up to 300 s for devices: 3 of 200")
    damaged = run_in(federation, "damaged", 1, status="finished")
    (tmp_path / "runs" / "damaged" / "run.json").write_text("{")
    (federation.jobs / "odd.toml").write_text("=")
    told = {run.name: (run.status, run.reason or run.doing) for run in Facts(federation).picture().runs}
    assert fresh.exists()
    assert damaged.exists()
    assert told["done"] == ("finished", "")
    assert told["stopped"] == ("interrupted", "")
    assert told["bad"] == ("failed", "no answers")
    assert told["fresh"] == ("starting", "")
    assert told["gone"] == ("died", "its process ended before the first round")
    assert told["busy"] == ("starting", "waiting up to 300 s for devices: 3 of 200")
    assert told["damaged"][0] == told["odd"][0] == "not known"


def test_what_needs_attention_comes_first_and_one_cause_is_one_line(tmp_path):
    federation = many(tmp_path / "federation", 20)
    picture = Facts(federation).picture(NOW)
    assert lines(picture)[0] == f"bad server: does not run; start it: fedbonsai serve --folder {federation.folder}"
    federation.tell(port=1, waiting={"pi-new": "Flower says no"})
    with federation.hold(), hold(tmp_path / "runs" / "prunefl-mnist-0" / "run.lock"):
        picture = Facts(federation).picture(NOW)
    quiet = dataclasses.replace(picture.server, disk_free=50 << 30, disk_total=100 << 30)
    told = lines(dataclasses.replace(picture, server=quiet))
    assert [line.split(":")[0] for line in told] == [
        "bad run fedtiny-mnist-0",
        "bad device pi-003",
        "bad device pi-new",
        "warn run prunefl-mnist-0",
        "warn 2 devices (pi-015, pi-016)",
        "warn 3 devices (pi-017, pi-018, pi-019)",
        "warn device pi-007",
    ]
    assert told[2].endswith("cannot take part: Flower says no")
    assert told[4].endswith("offline; the last of them was seen 6 min ago")
    assert "fedbonsai run --resume" in told[0]
    federation.tell(port=1)
    with federation.hold():
        told = lines(Facts(federation).picture(NOW))
    assert [line for line in told if line.startswith("warn device pi-new: waits to be let in")]


@pytest.mark.parametrize(
    ("free", "total", "days", "said"),
    [
        (6e9, 1e12, 100, []),
        (4e9, 1e12, 100, ["warn disk: 4.0 GB of 1000.0 GB are free; make room"]),
        (1e9, 8e9, 100, []),
        (1e8, 8e9, 100, ["bad disk: 100.0 MB of 8.0 GB are free; make room"]),
        (None, None, None, []),
        (6e9, 1e12, 12.2, ["warn certificate: ends in 12 days"]),
        (6e9, 1e12, -1, ["bad certificate: has ended, devices refuse it"]),
    ],
)
def test_a_disk_and_a_certificate_that_come_to_an_end(tmp_path, free, total, days, said):
    picture = Facts(federation_in(tmp_path / "federation")).picture(NOW)
    server = dataclasses.replace(picture.server, running=True, disk_free=free, disk_total=total, certificate_days=days)
    told = lines(dataclasses.replace(picture, server=server))
    assert [line.split("; renew")[0] for line in told] == said


def test_a_run_that_failed_is_news_for_a_day_and_one_whose_disk_is_full_at_once(tmp_path):
    federation = federation_in(tmp_path / "federation")
    run_in(federation, "bad", 2, status="failed", reason="no answers")
    run_in(federation, "empty", status="failed", reason="3 are needed")
    facts = Facts(federation)
    runs = {run.name: run for run in facts.picture().runs}
    first = max(run.changed for run in runs.values())
    told = lines(facts.picture(first))[1:]
    assert sorted(line for line in told if "run" in line) == [
        f"bad run bad: failed: no answers; then: fedbonsai run --resume {tmp_path}/runs/bad",
        "bad run empty: failed: 3 are needed; then: run it again",
    ]
    assert not [line for line in lines(facts.picture(first + 86_401)) if "run bad" in line]
    run_in(federation, "going", 1)
    with hold(tmp_path / "runs" / "going" / "run.lock"):
        picture = facts.picture(first + 1)
    going = next(run for run in picture.runs if run.name == "going")
    assert going.disk_free > 0
    full = dataclasses.replace(picture, runs=(dataclasses.replace(going, disk_free=10**6),))
    assert f"bad run going: 1.0 MB are free on the disk of {tmp_path}/runs/going; make room" in lines(full)


def test_a_long_run_and_many_runs_stay_small(tmp_path):
    federation = federation_in(tmp_path / "federation")
    for number in range(RUNS + 2):
        run_in(federation, f"run{number:02}")
    picture = Facts(federation).picture(NOW)
    assert (len(picture.runs), picture.older) == (RUNS, 2)
    for length in (1, POINTS, POINTS + 1, 5 * POINTS + 3):
        points = tuple((t, float(t)) for t in range(length))
        kept = thinned(points)
        assert len(kept) <= POINTS
        assert kept[-1] == points[-1]
        assert length > POINTS or kept == points


def test_damaged_files_of_devices_are_not_known_and_the_list_of_keys_says_so(tmp_path):
    from fedbonsai.errors import ConfigError

    federation = federation_in(tmp_path / "federation", ["a"], {"a": NOW})
    logbook_of(run_in(federation, "one")).write_text('{"a": {"met": ')
    federation.seen.write_text("[")
    (device,) = Facts(federation).picture(NOW).devices
    assert (device.last_seen, device.rounds) == (None, None)
    federation.known.write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        Facts(federation).picture(NOW)


def test_who_asks_again_at_once_gets_the_same_and_later_what_is_new(tmp_path):
    federation = federation_in(tmp_path / "federation", ["a"])
    facts = Facts(federation)
    first = facts.picture()
    federation.known.write_text(json.dumps({}))
    assert facts.picture() is first
    assert facts.picture(NOW).devices == ()
