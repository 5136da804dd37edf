"""One writer in a folder: two runs of one name never mix, and a dead one blocks nobody."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fedbonsai
from fedbonsai.cli import main
from fedbonsai.errors import ConfigError, Unwritable
from fedbonsai.lock import hold, holder
from fedbonsai.runs.folder import Folder

QUICK = {"rounds": 3, "data__clients": 3, "data__limit": 90, "data__partition": "iid", "model__name": "mlp"}
WAITS = f"""
import fedbonsai

class Wait:
    def begin(self, config, scene, first): pass
    def round(self, row, model):
        print(row["round"], flush=True)
        input()
    def end(self, rows): pass

fedbonsai.run("fedavg", name="a", observers=[Wait()], **{QUICK!r})
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_second_run_of_the_name_is_refused_until_the_first_is_dead(capsys):
    words = [f"--{name.replace('__', '.')}={value}" for name, value in QUICK.items()]
    first = subprocess.Popen([sys.executable, "-c", WAITS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == b"0\n"  # one round is written, and the process waits
        before = Path("runs/a/metrics.jsonl").read_bytes()
        for again in (["fedavg", *words, "--name", "a", "--method.optimizer.lr", "0.3"], ["--resume", "runs/a"]):
            assert main(["run", *again, "--quiet"]) == 2
            assert f"runs/a is being written by process {first.pid} on " in capsys.readouterr().err
        with pytest.raises(ConfigError, match=f"process {first.pid}"):
            fedbonsai.run("fedavg", name="a", resume=True, **QUICK)
        assert fedbonsai.load("runs/a").info["status"] == "running"
        assert main(["report", "runs/a", "--out", "r.csv"]) == 0
        assert "running" not in Path("runs/a/run.json").read_text()
        assert Path("runs/a/metrics.jsonl").read_bytes() == before
    finally:
        first.kill()
        first.communicate()
    assert fedbonsai.load("runs/a").info["status"] == "died"
    assert main(["watch", "runs/a", "--every", "0.01"]) == 0
    assert main(["run", "--resume", "runs/a", "--quiet"]) == 0
    assert [json.loads(line)["round"] for line in Path("runs/a/metrics.jsonl").read_text().splitlines()] == [0, 1, 2]
    assert not Path("runs/a/run.lock").exists()


def test_a_lock_is_let_go_by_a_child_that_was_forked_meanwhile(tmp_path):
    held = hold(tmp_path / "lock")
    end, begin = os.pipe()
    if (child := os.fork()) == 0:
        os.close(begin)
        os.read(end, 1)  # has the handle as long as the parent lives
        os._exit(0)
    assert holder(tmp_path / "lock").startswith(f"process {os.getpid()} on ")
    assert hold(tmp_path / "lock") is None
    held.close()
    assert holder(tmp_path / "lock") == ""
    os.close(begin)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_lock_that_was_deleted_and_made_anew_is_lost(tmp_path):
    file = tmp_path / "lock"
    with hold(file) as first:
        file.unlink()
        assert first.lost()
        with hold(file) as second:
            assert not second.lost()
            first.close()
            assert file.exists()  # of the second
            assert holder(file)
    assert not file.exists()


@pytest.mark.parametrize("said", [b"", b'{"process": 1', b"[]"])
def test_a_lock_file_that_a_dead_process_left_is_free(tmp_path, said):
    (tmp_path / "lock").write_bytes(said)
    assert holder(tmp_path / "lock") == ""
    with hold(tmp_path / "lock") as held:
        assert held is not None


def test_without_locks_of_the_file_system_the_process_number_decides(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    file = tmp_path / "lock"
    file.write_text(json.dumps({"process": os.getppid(), "host": os.uname().nodename}))
    monkeypatch.setattr("fedbonsai.lock.PROBE", 0.0)
    assert hold(file) is None
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    file.write_text(json.dumps({"process": dead.pid, "host": os.uname().nodename}))
    assert holder(file) == ""
    hold(file).close()


@pytest.mark.slow
def test_a_folder_that_is_deleted_ends_its_run_and_does_not_come_back():
    class Delete:
        def begin(self, config, scene, first): ...

        def round(self, row, model):
            for file in sorted(Path("runs/b").rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            Path("runs/b").rmdir()

        def end(self, rows): ...

    with pytest.raises(Unwritable, match="runs/b was deleted or replaced while its run went on"):
        fedbonsai.run("fedavg", name="b", observers=[Delete()], **QUICK)
    assert not Path("runs/b").exists()


def test_a_folder_that_nothing_came_into_is_taken_away_again(tmp_path):
    folder = Folder(tmp_path / "runs" / "deep" / "a")
    with folder.alone():
        assert folder.lock.exists()
    assert not (tmp_path / "runs").exists()
    with folder.alone():
        folder.info.write_text("{}")
    assert sorted(file.name for file in folder.path.iterdir()) == ["run.json"]
