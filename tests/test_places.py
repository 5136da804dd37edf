"""Machines without a home folder, without a name for who runs, with a home that cannot be written."""

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedbonsai import places
from fedbonsai.cli import main

FREE = [name for name in os.environ if name in (*places.KEEPERS, *places.NAMES, "FEDBONSAI_CACHE")]


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine whose temporary folder is ours and whose environment is given back; the user has no entry."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os.path, "expanduser", lambda path: os.environ.get("HOME", path) if path == "~" else path)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    for name in FREE:
        del os.environ[name]
    for each in (places.settle, places.temporary):
        each.cache_clear()
    yield
    for each in (places.settle, places.temporary):
        each.cache_clear()


def test_without_a_home_a_temporary_one_is_used_and_said_once(tmp_path, capsys):
    os.environ.pop("HOME", None)
    line = places.settle()
    assert "there is no home folder" in line
    assert Path(os.environ["HOME"]) == tmp_path / f"fedbonsai-{os.getuid()}"
    assert Path.home().stat().st_mode & 0o077 == 0
    assert places.caches() == Path.home() / ".cache" / "fedbonsai"
    assert getpass.getuser() == f"user-{os.getuid()}"
    assert places.settle() == line
    assert capsys.readouterr().err.count("there is no home folder") == 1


@pytest.mark.parametrize("kind", ["a file", "nothing"])
def test_a_home_that_cannot_be_written_stays_and_caches_go_elsewhere(tmp_path, kind, capsys):
    home = tmp_path / "home"
    if kind == "a file":
        home.touch()
    os.environ |= {"HOME": str(home), "MPLCONFIGDIR": "mine", "USER": "ada"}
    assert f"{home} cannot be written" in places.settle()
    assert os.environ["HOME"] == str(home)
    assert os.environ["MPLCONFIGDIR"] == "mine"
    assert Path(os.environ["HF_HOME"]).is_relative_to(places.temporary())
    assert places.caches().is_relative_to(places.temporary())
    assert getpass.getuser() == "ada"


def test_with_a_home_nothing_is_changed(tmp_path, capsys):
    os.environ |= {"HOME": str(tmp_path), "USER": "ada"}
    before = dict(os.environ)
    assert places.settle() == ""
    assert dict(os.environ) == before
    assert capsys.readouterr().err == ""


def test_a_temporary_folder_of_somebody_else_is_not_used(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"fedbonsai-{os.getuid()}").symlink_to(tmp_path / "theirs")
    assert places.temporary() != tmp_path / f"fedbonsai-{os.getuid()}"
    assert places.temporary().stat().st_mode & 0o077 == 0


def test_the_memory_of_a_device_is_in_no_temporary_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.environ["HOME"] = str(tmp_path)
    assert main(["keys", "device", "pi"]) == 0
    places.settle.cache_clear()
    os.environ["HOME"] = "/nowhere"
    words = ["join", "localhost:1", "--key", "pi.key", "--ca", __file__, "--data", "x:y"]
    assert main(words) == 2
    assert "--folder is needed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_user_without_an_entry_and_a_home_runs(tmp_path):
    """In a process of its own, where torch and all others are imported after the environment was made."""
    code = (
        "import pwd, sys; pwd.getpwuid = lambda number: {}[number];"
        "from fedbonsai.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [
        "run",
        "fedavg",
        "--rounds=1",
        "--data.limit=90",
        "--data.clients=3",
        "--model.name=mlp",
        "--name=a",
        "--quiet",
    ]
    clean = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**clean, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("fedbonsai: there is no home folder")
    assert not (tmp_path / "~").exists()
