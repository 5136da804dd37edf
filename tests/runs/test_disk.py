"""Disks that are full, folders that cannot be, file names that no text has: one line, and nothing is lost."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedbonsai
from fedbonsai.cli import main
from fedbonsai.disk import in_words, no_room
from fedbonsai.errors import DiskFull, Unwritable
from fedbonsai.runs.folder import Folder, write

QUICK = {"rounds": 3, "data__clients": 3, "data__limit": 90, "data__partition": "iid", "model__name": "mlp"}
WORDS = [f"--{name.replace('__', '.')}={value}" for name, value in QUICK.items()]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def whole(name):
    """Rows without the seconds that they took, and the model, of a run."""
    run = fedbonsai.load(f"runs/{name}")
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in run.metrics]
    return rows, Path(f"runs/{name}/model.safetensors").read_bytes()


def fills_up(monkeypatch, after):
    """From the given flush on, no file can be written any more, that of the status included."""
    flush, done = os.fsync, []

    def full(number):
        done.append(number)
        if len(done) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(number)

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.slow
def test_a_run_whose_disk_fills_up_ends_in_one_line_and_goes_on_as_if_nothing_had_been(monkeypatch, capsys):
    fedbonsai.run("fedavg", name="whole", **QUICK)
    for after in (0, 3, 9, 14, 17, 22, 25):
        with monkeypatch.context() as patch:
            fills_up(patch, after)
            assert main(["run", "fedavg", *WORDS, "--name", str(after), "--quiet"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "No space left on device; make room" in said
        folder = Path(f"runs/{after}")
        if not (folder / "config.toml").exists():
            fedbonsai.run("fedavg", name=str(after), **QUICK)
        else:
            assert Folder(folder).facts()["status"] == "died"
            assert "running" not in (folder / "run.json").read_text()
            assert ("--resume" in said) == (folder / "checkpoint" / "manifest.json").exists()
            assert main(["run", "--resume", str(folder), "--quiet"]) == 0
        assert whole(after) == whole("whole")
        assert not list(folder.rglob("*.new"))


def test_what_could_not_be_written_takes_no_room(tmp_path, monkeypatch):
    write(tmp_path / "state", b"old")
    fills_up(monkeypatch, 0)
    with pytest.raises(Unwritable, match="state: No space left on device; make room"):
        write(tmp_path / "state", b"new")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("state", b"old")]


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        ("file", "a file is in the way"),
        ("file/deeper", "a file is in the way"),
        ("x" * 300, "choose a shorter name"),
        ("loop", "a link leads to itself"),
        ("/proc/runs", "/proc/runs"),
    ],
)
def test_a_folder_that_cannot_be_is_one_line(runs, why, capsys):
    Path("file").touch()
    Path("loop").symlink_to("loop")
    assert main(["run", "fedavg", *WORDS, "--runs", runs, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1


def test_other_verbs_say_what_the_disk_refuses(capsys):
    Path("folder.toml").mkdir()
    assert main(["show", "folder.toml"]) == 2
    assert main(["show", f"{'x' * 300}.toml"]) == 2
    assert "choose a shorter name" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_whose_name_is_no_text_is_written_and_read(tmp_path, capsys):
    runs = str(tmp_path / os.fsdecode(b"caf\xe9"))
    try:
        Path(runs).mkdir()
    except OSError:
        pytest.skip("names are text on this file system")
    clock = ["--devices", "phone-mid"]
    assert main(["run", "fedavg", *WORDS, *clock, "--name", "żółw", "--runs", runs, "--quiet"]) == 0
    assert main(["run", "--resume", f"{runs}/żółw", "--quiet"]) == 0
    assert main(["report", f"{runs}/żółw"]) == 0
    assert len(fedbonsai.load(f"{runs}/żółw").model.weights) > 0
    assert fedbonsai.load(f"{runs}/żółw").costs()


@pytest.mark.slow
def test_where_text_is_ascii_a_run_is_made_watched_and_reported(tmp_path):
    code = f"""
import locale, sys
assert locale.getpreferredencoding().upper() in ("ANSI_X3.4-1968", "US-ASCII"), locale.getpreferredencoding()
from fedbonsai.cli import main
ends = [main(["run", "fedavg", *{WORDS!r}, "--name", "a"]), main(["watch", "runs/a", "--once"]), main(["report", "runs/a"])]
open("w.toml", "wb").write('name = "gr\\xf6\\xdfe"\\n[method]\\nname = "averaging"\\n'.encode())
ends += [main(["run", "w.toml", *{WORDS!r}]), main(["show", "w.toml"])]
print(ends)
"""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "FEDBONSAI_CACHE") if name in os.environ}
    done = subprocess.run([sys.executable, "-c", code], env=kept | ascii_only, cwd=tmp_path, capture_output=True)
    assert done.stdout.splitlines()[-1:] == [b"[0, 0, 0, 2, 0]"], done.stderr
    assert b"LC_ALL=C.UTF-8" in done.stderr
    assert json.loads(Path("runs/a/run.json").read_text())["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["gone", "closed"])
def test_a_run_does_not_end_with_who_reads_its_lines(reader):
    words = [sys.executable, "-c", "import sys; from fedbonsai.cli import main; sys.exit(main())"]
    command = [*words, "run", "fedavg", *WORDS, "--name", reader]
    if reader == "closed":
        command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    read, write = os.pipe()
    os.close(read)  # what is written into the other end is a broken pipe
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
    run = fedbonsai.load(f"runs/{reader}")
    assert (run.info["status"], len(run.metrics)) == ("finished", 3)


def test_what_a_disk_refuses_without_a_word_of_ours_is_said_in_a_line_and_other_errors_stay_what_they_are(tmp_path):
    told = in_words(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x"))
    assert (type(told), str(told)) == (DiskFull, "/data/x: No space left on device; make room")
    for error in (ConnectionResetError(errno.ECONNRESET, "gone"), ValueError("x"), KeyboardInterrupt()):
        assert in_words(error) is error
    assert no_room(tmp_path) == ""
    assert no_room(tmp_path / "nowhere") == ""


@pytest.mark.slow
def test_a_run_that_a_disk_stopped_says_so_in_its_folder(monkeypatch):
    def refuses(*_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("fedbonsai.runs.loop.evaluate", refuses)
    with pytest.raises(DiskFull, match=r"make room\. What was finished is kept"):
        fedbonsai.run("fedavg", name="full", **QUICK)
    assert Folder(Path("runs/full")).facts()["reason"].endswith("make room")
