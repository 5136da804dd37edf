"""The verbs for real devices: what they make, what they refuse, and the job that the app on the server does."""

import codecs
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
from flwr.cli.build import build_fab_from_disk

from fedbonsai.cli import main
from fedbonsai.dashboard.facts import Facts
from fedbonsai.errors import ConfigError, NothingLearned, TaskFailed, Unanswered, Unwritable
from fedbonsai.fleets.flower import certificates
from fedbonsai.fleets.flower.federation import Federation
from fedbonsai.fleets.flower.memory import Store
from fedbonsai.fleets.flower.processes import environment, forget, free_port, remember, stop
from fedbonsai.fleets.flower.samples import Part
from fedbonsai.fleets.flower.worker import Worker
from fedbonsai.lock import hold
from fedbonsai.runs import recipes
from fedbonsai.runs.flower import _tell, drive, result_of, told_of
from fedbonsai.runs.folder import Checkpoint, Folder
from fedbonsai.runs.run import execute
from fedbonsai.runs.structure import unstructure
from fedbonsai.runs.submit import _error, _turn, resume_all, submit
from fedbonsai.wire import encode
from tests.cases import SMALL
from tests.dashboard.places import federation_in
from tests.fleets.flower.nodes import grid_of
from tests.moments import HANGS


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fails(capsys, *words):
    assert main(list(words)) == 2
    return capsys.readouterr().err


def test_keys_are_made_with_the_warnings_that_belong_there(capsys):
    assert main(["keys", "server", "fed.example.org"]) == 0
    said = capsys.readouterr().out
    assert "whoever has it can pretend to be this server" in said
    assert main(["keys", "device", "pi-01"]) == 0
    assert "stays on this device" in capsys.readouterr().out
    assert {file.name for file in Path("federation").iterdir()} == {
        "ca.crt",
        "ca.key",
        "devices",
        "server.crt",
        "server.key",
    }
    assert "a device keeps its key" in fails(capsys, "keys", "device", "pi-01")
    assert "takes one name" in fails(capsys, "keys", "device", "a", "b")
    assert "device name" in fails(capsys, "keys", "device", "../a")


def test_what_is_missing_is_said_with_what_to_do(capsys):
    assert "fedbonsai keys server" in fails(capsys, "serve", "--folder", "nowhere")
    assert "start it: fedbonsai serve" in fails(capsys, "run", "fedavg", "--fleet", "flower")
    assert "--key pi.key is no file" in fails(capsys, "join", "s:1", "--key", "pi.key", "--ca", __file__)
    main(["keys", "device", "pi"])
    held = ["--key", "pi.key", "--ca", __file__, "--folder", "device"]
    assert "expected address:port" in fails(capsys, "join", "server", *held, "--data", "x")
    assert "--part for a trial" in fails(capsys, "join", "s:1", *held)
    Path("pi.key").chmod(0o640)
    assert "chmod 600 pi.key" in fails(capsys, "join", "s:1", *held, "--data", "x")
    Path("pi.key").chmod(0o600)
    assert "needs --recipe" in fails(capsys, "join", "s:1", *held, "--part", "0")
    part = ["--part", "0", "--recipe", "fedavg"]
    assert "with --part give --data.valid" in fails(capsys, "join", "s:1", *held, *part, "--valid", "0.2")
    assert "only for trials" in fails(capsys, "join", "s:1", *held, "--data", "x", "--data.name", "mnist")
    assert "excludes target" in fails(capsys, "run", "fedavg", "--fleet", "flower", "--target", "0.9")


@pytest.mark.slow
def test_a_server_and_a_device_are_the_only_ones_of_their_folders(capsys):
    main(["keys", "server", "localhost"])
    main(["keys", "device", "pi"])
    federation = Federation(Path("federation"))
    federation.prepare(1)
    assert federation.folder.stat().st_mode & 0o077 == 0
    link = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()", "flower-superlink"])
    remember(federation.link, link.pid)
    federation.state.write_text(json.dumps({"pid": 1, "port": 1, "inner": 1}))
    assert "start it: fedbonsai serve" in fails(capsys, "run", "fedavg", "--fleet", "flower")  # left by a dead one
    try:
        with federation.hold():
            assert federation.running()["port"] == 1
            assert "another `fedbonsai serve` (process" in fails(capsys, "serve", "--port", "1")
            assert link.poll() is None  # its SuperLink goes on
    finally:
        link.kill()
        link.wait()
    Path("device").mkdir()
    Path("device/device.toml").write_text("of the first")
    with hold(Path("device/join.lock")):
        words = ["--key", "pi.key", "--ca", "federation/ca.crt", "--folder", "device", "--data", "m:f", "--plain"]
        assert "another `fedbonsai join` (process" in fails(capsys, "join", "localhost:1", *words)
    assert Path("device/device.toml").read_text() == "of the first"


def test_wrong_inputs_are_said(capsys):
    main(["keys", "server", "localhost"])
    main(["keys", "device", "pi"])
    capsys.readouterr()
    assert "from 1 to 65535" in fails(capsys, "serve", "--port", "70000")
    assert "host name or an IP" in fails(capsys, "keys", "server", "https://fed.example.org")
    held = ["--folder", "device", "--data", "m:f"]
    ca = "federation/ca.crt"
    assert "cannot be read" in fails(capsys, "join", "localhost:1", "--key", "federation/server.key", "--ca", ca, *held)
    assert "no certificate" in fails(capsys, "join", "localhost:1", "--key", "pi.key", "--ca", "pi.pub", *held)
    words = ["--key", "pi.key", "--ca", ca, "--folder", "device", "--data", "pictures"]
    assert "--data pictures does not exist; expected a folder" in fails(capsys, "join", "localhost:1", *words)
    assert "1 to 65535" in fails(capsys, "join", "localhost:99999", "--key", "pi.key", "--ca", ca, *held)


def test_what_is_no_device_is_left_alone_and_a_damaged_list_is_named():
    main(["keys", "server", "localhost"])
    federation = Federation(Path("federation"))
    (federation.devices / "my pi.pub").write_text("x")
    (federation.devices / "-rf.pub").symlink_to("/etc/passwd")
    said = federation.enrol()
    assert len(said) == 2
    assert all("is left alone" in line for line in said)
    assert federation.enrol() == []
    federation.known.write_text('{"pi": {"key":')
    with pytest.raises(ConfigError, match=r"registered\.json is damaged"):
        federation.nodes()


@pytest.mark.parametrize("change", [lambda raw: codecs.BOM_UTF8 + raw, lambda raw: raw.replace(b"\n", b"\r\n")])
def test_a_public_key_that_went_through_an_editor_is_given_to_flower_as_it_was(change, monkeypatch):
    main(["keys", "server", "localhost"])
    main(["keys", "device", "pi"])
    federation = Federation(Path("federation"))
    federation.prepare(1)
    raw, given = Path("pi.pub").read_bytes(), []

    def flwr(*words):
        given.append(Path(words[2]).read_bytes())
        return {"node-id": 7}

    monkeypatch.setattr(federation, "flwr", flwr)
    (federation.devices / "pi.pub").write_bytes(change(raw))
    (federation.devices / "wide.pub").write_bytes(raw.decode().encode("utf-16"))
    said = federation.enrol()
    assert given == [raw]
    assert said[0] == "pi is in"
    assert "wide.pub cannot be read: it is UTF-16; save it as UTF-8" in said[1]
    assert federation.enrol() == []
    assert federation.nodes() == {7: "pi"}


@pytest.mark.slow
def test_two_runs_that_devices_would_take_for_one_are_refused(tmp_path):
    main(["keys", "server", "localhost"])
    federation = Federation(Path("federation"))
    federation.prepare(1)
    federation.state.write_text(json.dumps({"inner": 1}))
    config = recipes.load("fedavg", "", {**SMALL, "fleet.kind": "flower"})
    first = federation.jobs / "first.toml"
    first.write_text(tomli_w.dumps({"folder": "one", "config": unstructure(config)}))
    first.with_suffix(".run").write_text("12")
    with federation.hold():
        with pytest.raises(ConfigError, match="very same configuration goes on in one"):
            submit(config, tmp_path / "two", False)
        result_of(first).write_text("{}")  # it ended
        for _ in range(2):
            with pytest.raises(ConfigError, match="flwr run"):  # nobody is there to take it, which may be tried again
                submit(config, tmp_path / "two", False)
        (second,) = set(federation.jobs.glob("*.toml")) - {first}
        remember(second.with_suffix(".pid"), os.getpid())
        with pytest.raises(ConfigError, match=r"two is being written by a run that goes on"):
            submit(config, tmp_path / "two", False)


@pytest.mark.slow
def test_a_run_that_is_handed_in_at_the_same_moment_waits_for_its_turn(tmp_path):
    main(["keys", "server", "localhost"])
    federation = Federation(Path("federation"))
    federation.prepare(1)
    first, done = _turn(federation), []

    def second():
        with _turn(federation):
            done.append(first.handle.closed)

    waits = threading.Thread(target=second, daemon=True)
    waits.start()
    time.sleep(0.8)  # longer than `hold` tries by itself
    assert done == []
    first.close()
    waits.join(HANGS)
    assert done == [True]


@pytest.mark.slow
def test_a_job_that_cannot_go_on_keeps_neither_the_server_nor_the_others_from_it():
    main(["keys", "server", "localhost"])
    federation = Federation(Path("federation"))
    federation.prepare(1)
    (federation.jobs / "damaged.toml").write_text("folder =")
    (federation.jobs / "empty.toml").write_text("resume = false")
    Path("run").mkdir()
    Path("run/config.toml").touch()
    Folder(Path("run")).set_info(status="running")
    (federation.jobs / "there.toml").write_text(tomli_w.dumps({"folder": str(Path("run").resolve())}))
    said = resume_all(federation)  # nobody is there to take the third
    assert [line.split(" ")[0] for line in said] == ["damaged.toml", "empty.toml", "there.toml"]
    assert all("cannot go on: " in line and "fedbonsai run --resume" in line for line in said)
    assert "flwr run" in said[2]


@pytest.mark.slow
def test_who_stops_a_run_while_the_server_is_down_has_stopped_it(tmp_path, monkeypatch):
    main(["keys", "server", "localhost"])
    federation = Federation(Path("federation"))
    federation.prepare(1)
    federation.state.write_text(json.dumps({"inner": 1}))
    folder = Folder(tmp_path / "run")
    (tmp_path / "run").mkdir()
    folder.set_info(status="running")

    def handed_in(federation, job, told):
        job.write_text(tomli_w.dumps(told))
        job.with_suffix(".run").write_text("7")

    def ctrl_c(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedbonsai.runs.submit._hand_in", handed_in)
    monkeypatch.setattr("fedbonsai.runs.submit._follow", ctrl_c)
    config = recipes.load("fedavg", "", {**SMALL, "fleet.kind": "flower"})
    with federation.hold(), pytest.raises(KeyboardInterrupt):
        submit(config, tmp_path / "run", False)
    assert json.loads(folder.info.read_text())["status"] == "interrupted"
    assert resume_all(federation) == []


def test_the_end_of_the_certificate_is_told_before_it_comes_and_named_when_it_has(monkeypatch, capsys):
    main(["keys", "server", "localhost"])
    assert Federation(Path("federation")).ends() == ""
    monkeypatch.setattr(certificates, "DAYS_SERVER", 30)
    main(["keys", "server", "localhost"])
    assert "server.crt ends in 30 days; renew: fedbonsai keys server" in Federation(Path("federation")).ends()
    monkeypatch.setattr(certificates, "DAYS_SERVER", -1 / 48)  # half an hour ago
    main(["keys", "server", "localhost"])
    assert "has ended, and devices would refuse it; renew" in fails(capsys, "serve")


@pytest.mark.slow
def test_a_simulation_of_real_devices_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="driven by `fedbonsai run`"):
        execute(recipes.load("fedavg", "", {**SMALL, "fleet.kind": "flower"}), tmp_path / "run")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pathspec, in Flower
def test_the_app_is_one_that_flower_builds():
    main(["keys", "server", "localhost"])
    federation = Federation(Path("federation"))
    federation.prepare(1)
    assert len(build_fab_from_disk(federation.app)) < 10_000


@pytest.fixture
def job(tmp_path):
    """A job of two rounds, and the Grid of its two devices."""
    settings = {**SMALL, "rounds": 2, "data.clients": 2, "data.server": 0}
    config = recipes.load("topk-ef", "", {**settings, "method.cohort": 0, "fleet.kind": "flower"})
    hands = {
        10 + part: Worker(f"{part:03}", Part(config.data, config.seed, part), Store(tmp_path / f"{part}"))
        for part in range(2)
    }

    def write(config=config, resume=False):
        file = tmp_path / "job.toml"
        told = {"folder": str(tmp_path / "run"), "resume": resume, "cwd": str(tmp_path), "config": unstructure(config)}
        file.write_text(tomli_w.dumps(told))
        return file

    return config, write, grid_of(hands)


@pytest.mark.slow
def test_a_job_writes_the_folder_that_a_simulation_writes(job, tmp_path):
    config, write, grid = job
    drive(grid, {"job": str(file := write())})
    assert json.loads(result_of(file).read_text())["status"] == "finished"
    assert not file.with_suffix(".pid").exists()
    execute(replace(config, fleet=replace(config.fleet, kind="local")), tmp_path / "simulation")

    def files(folder):
        return {str(f.relative_to(folder)) for f in folder.rglob("*") if "memory" not in str(f)}

    assert files(tmp_path / "run") == files(tmp_path / "simulation")
    first, second = (Folder(tmp_path / name) for name in ("run", "simulation"))
    assert encode(Checkpoint(first).load()[1]) == encode(Checkpoint(second).load()[1])
    for a, b in zip(first.rows(), second.rows(), strict=True):
        # the server neither trains nor looks at the clients' own validation parts
        assert {"valid_accuracy", "valid_loss"} <= set(b) - set(a)
        assert (a["accuracy"], a["loss"]) == (b["accuracy"], b["loss"])
    assert json.loads(first.split.read_text())["train"] == []


@pytest.mark.slow
def test_what_a_job_learned_of_its_devices_is_on_the_page_and_agrees_with_the_ledger(job, tmp_path):
    config, write, grid = job
    federation = federation_in(tmp_path / "federation", ["000", "001"])
    file = federation.jobs / "run-00000000.toml"
    file.write_text(write().read_text())
    drive(grid, {"job": str(file)})
    picture = Facts(federation).picture()
    ledger = list(Folder(tmp_path / "run").ledger_rows())
    for device in picture.devices:
        for way, told in (("down", device.bytes_down), ("up", device.bytes_up)):
            mine = [row for row in ledger if (row["client"], row["direction"]) == (device.name, way)]
            assert told == sum(row["bytes"] for row in mine) > 0
        assert (device.rounds, device.silent, device.fits, device.error) == (2, 0, True, "")
    (run,) = picture.runs
    last = Folder(tmp_path / "run").rows()[-1]
    assert (run.name, run.method, run.status, run.round) == ("run", config.method.method_name, "finished", 2)
    assert (run.score, run.answered) == (last["accuracy"], 2)
    assert run.bytes_down + run.bytes_up == sum(row["bytes"] for row in ledger)


@pytest.mark.slow
def test_a_job_that_was_cut_off_is_resumed_and_ends_the_same(job, tmp_path):
    config, write, grid = job
    drive(grid, {"job": str(write(replace(config, rounds=1)))})
    text = Folder(tmp_path / "run").config
    text.write_text(text.read_text().replace("rounds = 1", "rounds = 2"))
    drive(grid, {"job": str(write(resume=True))})
    execute(replace(config, fleet=replace(config.fleet, kind="local")), tmp_path / "simulation")
    states = [encode(Checkpoint(Folder(tmp_path / name)).load()[1]) for name in ("run", "simulation")]
    assert states[0] == states[1]


def test_a_server_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(job, tmp_path):
    config, write, grid = job
    drive(grid, {"job": str(write(replace(config, rounds=1)))})
    text = Folder(tmp_path / "run").config
    text.write_text(text.read_text().replace("rounds = 1", "rounds = 2"))
    before = Checkpoint(Folder(tmp_path / "run")).load()[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))  # less than a state
    try:
        with pytest.raises(Unwritable, match="too large"):
            drive(grid, {"job": str(file := write(resume=True))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "too large" in json.loads(result_of(file).read_text())["reason"]
    assert Checkpoint(Folder(tmp_path / "run")).load()[0] == before
    drive(grid, {"job": str(write(resume=True))})
    execute(replace(config, fleet=replace(config.fleet, kind="local")), tmp_path / "simulation")
    states = [encode(Checkpoint(Folder(tmp_path / name)).load()[1]) for name in ("run", "simulation")]
    assert states[0] == states[1]


def test_a_server_without_room_for_a_word_of_why_still_ends_by_the_disk_and_a_run_by_no_word_of_how_far_it_is(
    job, tmp_path, monkeypatch
):
    config, write, grid = job
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = write(replace(config, rounds=1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(Unwritable, match=r"config.toml|run.json"):
            drive(grid, {"job": str(file)})
        _tell(file, "a word that is longer than there is room for")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not result_of(file).exists()
    assert told_of(file) == ""
    _tell(file, "a word")
    assert told_of(file) == "a word"
    # an error of Flower's own, whose database lies on a disk that is full
    full = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    grid.push_messages = lambda messages: 1 / 0
    with pytest.raises(ZeroDivisionError):
        drive(grid, {"job": str(file)})
    assert "is full; make room" in json.loads(result_of(file).read_text())["reason"]


@pytest.mark.slow
def test_a_job_goes_on_with_fewer_devices_and_with_those_that_come_back(job, tmp_path):
    config, write, grid = job
    asked = replace(config.fleet.flower, devices=2, at_least=1, patience=0.1)
    config = replace(config, fleet=replace(config.fleet, flower=asked))
    drive(grid, {"job": str(write(replace(config, rounds=1)))})
    files = Folder(tmp_path / "run")

    def goes_on(rounds, there):
        files.config.write_text(files.config.read_text().replace(f"rounds = {rounds - 1}", f"rounds = {rounds}"))
        grid.get_node_ids = lambda: there
        drive(grid, {"job": str(write(resume=True))})
        asked = {row["client"] for row in files.ledger_rows() if row["round"] == rounds - 1}
        return asked, {id: kept.round for id, kept in Checkpoint(files).load()[2].items()}

    assert goes_on(2, [10]) == ({"000"}, {"000": 1, "001": 0})
    assert goes_on(3, [10, 11]) == ({"000", "001"}, {"000": 2, "001": 2})


def test_a_job_that_fails_says_why(job):
    config, write, grid = job
    few = replace(config, fleet=replace(config.fleet, flower=replace(config.fleet.flower, devices=3, patience=0.1)))
    with pytest.raises(ConfigError, match="2 devices can take part, 3 are needed"):
        drive(grid, {"job": str(file := write(few))})
    assert "start more: fedbonsai join" in json.loads(result_of(file).read_text())["reason"]
    with pytest.raises(ConfigError, match="is no file"):
        drive(grid, {})


def test_a_process_that_was_left_behind_is_ended_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")  # a narrow terminal hides nothing
    left = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()", "flower-superlink"])
    try:
        remember(tmp_path / "pid", left.pid)
        forget(tmp_path / "pid", "flwr-serverapp")  # the number was given to another program
        assert left.poll() is None
        remember(tmp_path / "pid", left.pid)
        forget(tmp_path / "pid", "flower-superlink")
        assert left.wait(HANGS) == -9
    finally:
        left.kill()
        left.wait()
    assert not (tmp_path / "pid").exists()
    forget(tmp_path / "pid", "flower-superlink")
    assert 0 < free_port() < 65536


def test_a_group_is_ended_though_its_leader_is_gone_and_a_member_does_not_listen(tmp_path, monkeypatch):
    monkeypatch.setattr("fedbonsai.fleets.flower.processes.GRACE", 0.5)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); signal.pause()"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {deaf!r}]); print(p.pid, flush=True)"
    leader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    said = {leader.stdout.readline().strip(), leader.stdout.readline().strip()}
    (member,) = said - {b"x"}
    leader.wait(HANGS)
    stop(leader)
    until = time.monotonic() + HANGS
    while Path(f"/proc/{int(member)}").exists() and _runs(int(member)):
        assert time.monotonic() < until
        time.sleep(0.05)
    leader.stdout.close()


def _runs(pid):
    """Whether a process still runs: one that nobody has looked after yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_on_this_machine_speak_to_each_other_without_a_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "intra.example.org")
    monkeypatch.delenv("no_proxy", raising=False)
    made = environment(tmp_path)
    assert made["NO_PROXY"] == "intra.example.org,127.0.0.1,localhost"
    assert made["no_proxy"] == "127.0.0.1,localhost"


def test_the_error_of_a_run_on_the_server_is_that_of_the_command():
    for error in (NothingLearned("3 rounds"), TaskFailed("task 'a' fails"), Unanswered("0 answers")):
        error.add_note("Traceback")
        told = _error(
            {"kind": type(error).__name__, "reason": str(error), "notes": error.__notes__, "status": "failed"}
        )
        assert (type(told), str(told), told.__notes__) == (type(error), str(error), ["Traceback"])
    told = _error({"kind": "OSError", "reason": "no space", "status": "failed"})
    assert (type(told), str(told)) == (ConfigError, "no space")
