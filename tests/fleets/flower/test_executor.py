"""Who starts an app for each message: a fork does what a new process would, and nothing is left of it."""

import os
import subprocess
import sys
import time

import pytest

from fedbonsai.fleets.flower import compat, executor
from tests.moments import HANGS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is forked there")


def told(file):
    end = time.monotonic() + HANGS
    while not file.exists() or not (text := file.read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return text


def test_a_command_is_done_by_a_fork_and_let_go_by_the_next(tmp_path):
    def app():
        number, file = sys.argv[1:]
        new = tmp_path / f"{file}.new"
        new.write_text(f"{number} {os.getppid()} {os.getpid()}")
        new.rename(tmp_path / file)
        sys.exit("with a word")

    forked = executor.Forked({"app": app})
    mine, argv = os.getpid(), list(sys.argv)
    ids = []
    for number in range(3):
        ids.append(forked.Popen(["app", str(number), f"file-{number}"]))
        assert told(tmp_path / f"file-{number}") == f"{number} {mine} {ids[-1]}"
        os.waitid(os.P_PID, ids[-1], os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has let it go
    assert (os.getpid(), sys.argv) == (mine, argv)
    assert os.waitpid(ids[-1], 0)[1] >> 8 == 1
    for gone in ids[:-1]:
        with pytest.raises(ChildProcessError):
            os.waitpid(gone, os.WNOHANG)


@pytest.mark.parametrize(
    ("ends", "code"), [(lambda: None, 0), (lambda: sys.exit(7), 7), (lambda: sys.exit(), 0), (lambda: 1 / 0, 1)]
)
def test_exit_codes_are_those_of_a_process(ends, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["test"])
    assert executor._code_of(ends, ["app", "word"]) == code
    assert sys.argv == ["app", "word"]
    assert ("ZeroDivisionError" in capsys.readouterr().err) == (code == 1)


def test_other_commands_are_started_as_ever(tmp_path):
    forked = executor.Forked({"app": lambda: None})
    quiet = forked.Popen([sys.executable, "-c", "print('nobody hears this')"], stdout=forked.DEVNULL)
    assert isinstance(quiet, subprocess.Popen)
    assert quiet.wait(HANGS) == 0


@pytest.mark.slow
def test_flower_has_the_parts_that_it_is_made_of():
    superexec, starts, app = compat.executor()
    assert callable(superexec)
    assert callable(app)
    assert starts.subprocess is subprocess, "processes are started by this name there"
    commands = vars(__import__("flwr.supercore.constant", fromlist=["x"]))["TASK_TYPE_TO_COMMAND"]
    assert executor.APP in commands.values()


def test_another_release_serves_with_its_own(monkeypatch):
    def moved():
        raise ImportError("it is elsewhere now")

    ran = []
    monkeypatch.setattr(compat, "executor", moved)
    monkeypatch.setattr(os, "execv", lambda *words: ran.append(words) or sys.exit(0))
    monkeypatch.setattr(sys, "argv", ["executor.py", "--insecure", "--runtime-api-address", "127.0.0.1:1"])
    with pytest.raises(SystemExit):
        executor.main()
    ((path, words),) = ran
    assert path.endswith("flower-superexec")
    assert words == ["flower-superexec", "--insecure", "--runtime-api-address", "127.0.0.1:1"]
