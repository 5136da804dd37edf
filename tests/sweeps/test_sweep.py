"""Sweeps that run: stopped in any way they end as if nothing had been; what fails is named and stops no other run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.browser import figures_of
from tests.moments import HANGS, ended, rounds_of, started, until

import fedbonsai
from fedbonsai.cli import main
from fedbonsai.errors import ConfigError
from fedbonsai.runs.jobs import Job
from fedbonsai.sweeps.estimated import UNKNOWN, Expected
from fedbonsai.sweeps.sweep import Pace, alone

PLAN = """
format = 1
seeds = [0]
baseline = "dense"

[settings]
rounds = 8
evaluate_every = 5
devices = "phone-mid"
[settings.data]
limit = 200
clients = 4
partition = "iid"
[settings.model]
name = "mlp"

[[runs]]
name = "dense"
recipe = "fedavg"
[[runs]]
name = "pruned"
recipe = "snip"
grid = { "method.density" = [0.2] }
"""
FILES = ("sweep.csv", "rounds.csv", "sweep.parquet", "rounds.parquet", "sweep.md", "sweep.json")
START = "import sys; from fedbonsai.cli import main\nif __name__ == '__main__': sys.exit(main(sys.argv[1:]))"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cut.toml").write_text(PLAN)


def process(words, before="", **more):
    """The command line in a process of its own, from a script that does something first, in each of its processes too."""
    Path("start.py").write_text(before + START)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, "start.py", *words], env=environment, capture_output=True, text=True, timeout=HANGS, **more
    )


def under_way(rounds):
    """A sweep in a process group of its own, as a terminal starts it, whose two runs stand after so many rounds."""
    Path("moments").mkdir(exist_ok=True)
    Path(f"moments/checkpoint-{rounds}").write_text("hold")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = ["sweep", "cut.toml", "--workers", "2"]
    found = started(words, Path("moments"), start_new_session=True, **pipes)
    until(lambda: [rounds_of(each.parent) for each in Path("runs/cut").glob("*/metrics.jsonl")] == [rounds] * 2, found)
    return found


def killed(rounds):
    """Kill a sweep after so many rounds, and wait until who carried out its runs has left too."""
    found = under_way(rounds)
    found.kill()
    ended(found)
    limit = time.monotonic() + HANGS
    while True:
        try:
            os.killpg(found.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < limit
        time.sleep(0.05)
    Path(f"moments/checkpoint-{rounds}").unlink()


def same(one, other):
    """Whether two sweeps hold the same rows and the same models, byte for byte."""
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for run in fedbonsai.load_sweep(one).runs:
        assert (one / run / "model.safetensors").read_bytes() == (other / run / "model.safetensors").read_bytes()
        assert fedbonsai.load(one / run).ledger() == fedbonsai.load(other / run).ledger()


@pytest.mark.slow
def test_killed_twice_and_interrupted_it_ends_as_if_nothing_had_been():
    killed(2)
    killed(4)
    again = under_way(6)
    os.killpg(again.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to all of the group
    _, err = ended(again)
    assert again.returncode == 130
    assert "The same command goes on from there" in err
    assert "Traceback" not in err
    states = [json.loads(file.read_text())["status"] for file in Path("runs/cut").glob("*/run.json")]
    assert states == ["interrupted"] * 2
    assert {rounds_of(file.parent) for file in Path("runs/cut").glob("*/run.json")} == {6}
    unfinished = fedbonsai.load_sweep("runs/cut")
    assert [(row["status"], row["rounds"]) for row in unfinished.rows] == [("interrupted", 6)] * 2
    assert unfinished.groups == []
    for home in ("runs", "whole"):
        assert main(["sweep", "cut.toml", "--workers", "1", "--runs", home]) == 0
    same(Path("runs/cut"), Path("whole/cut"))
    assert len(fedbonsai.load_sweep("runs/cut").round_rows) == 16


BROKEN = """import os, signal
from pathlib import Path
import torch
from fedbonsai import network


def built(name, fails):
    @network(name)
    def build(channels=1, size=8, classes=10):
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = torch.nn.Linear(64, classes)

            def forward(self, x):
                if self.training and Path("fault").exists() and Path(f"runs/mine/{name}-0/config.toml").exists():
                    fails()  # once the run has begun
                return self.fc(x.flatten(1))

        return Net()


def raises():
    raise ValueError("no training here")


built("raises", raises)
built("killed", lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.slow
def test_runs_that_fail_or_are_killed_are_named_and_stop_no_other():
    Path("broken.py").write_text(BROKEN)
    Path("fault").touch()
    runs = [
        f'[[runs]]\nname = "{name}"\nrecipe = "fedavg"\n[runs.settings.model]\nname = "{net}"\n'
        for name, net in (("raises", "raises"), ("killed", "killed"), ("fine", "mlp"), ("fine-too", "mlp"))
    ]
    runs[3] += "[runs.settings.data]\nalpha = 0.3\npartition = 'dirichlet'\n"
    settings = '[settings]\nimports = ["broken"]\nrounds = 2\n"data.limit" = 200\n"data.clients" = 4\n"data.partition" = "iid"\n'
    Path("mine.toml").write_text("seeds = [0]\n" + settings + "".join(runs))
    done = process(["sweep", "mine.toml", "--workers", "1"])
    assert done.returncode == 2, done.stderr
    assert "raises-0: failed: task 'averaging/train' fails alike on all 4 clients" in done.stdout
    assert "ValueError: no training here" in done.stderr
    assert "killed-0: failed: its process was ended by SIGKILL, perhaps because memory ran out" in done.stdout
    assert "2 runs failed: raises-0, killed-0; the others are kept" in done.stderr
    assert "| fine | 1 |" in done.stdout
    assert "killed-0 failed and is left out" in Path("runs/mine/sweep.html").read_text()
    found = fedbonsai.load_sweep("runs/mine")
    assert [row["status"] for row in found.rows] == ["failed", "failed", "finished", "finished"]
    assert set(found.failed) == {"raises-0", "killed-0"}
    before = {file: file.stat().st_mtime_ns for file in Path("runs/mine").glob("fine*/*") if file.is_file()}
    Path("fault").unlink()
    done = process(["sweep", "mine.toml", "--workers", "1"])
    assert done.returncode == 0, done.stderr
    assert "2 of 4 runs to do" in done.stdout
    assert {file: file.stat().st_mtime_ns for file in before} == before, "what is finished is left alone"
    found = fedbonsai.load_sweep("runs/mine")
    assert ([row["status"] for row in found.rows], found.failed) == (["finished"] * 4, {})


FULL = """import errno, os
from pathlib import Path
flush = os.fsync


def full(number):
    written = [file.read_bytes().count(b"\\n") for file in Path("runs").rglob("metrics.jsonl")]
    if Path("full").exists() and max(written, default=0) > 2:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    flush(number)


os.fsync = full
"""


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_full_disk_stops_it_in_words_and_with_room_it_goes_on():
    Path("full").touch()
    words = ["sweep", "cut.toml", "--workers", "1"]
    done = process(words, FULL)
    assert done.returncode == 2
    assert "No space left on device; make room" in done.stderr
    assert (
        "The sweep has stopped, and what was finished is kept: make room, and the same command goes on" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not Path("runs/cut/pruned-0.2-0").exists(), "no other run is begun"
    Path("full").unlink()
    assert process(words, FULL).returncode == 0
    assert main([*words, "--runs", "whole"]) == 0
    same(Path("runs/cut"), Path("whole/cut"))


def test_two_processes_do_not_share_a_folder(capsys):
    with alone(Path("runs/cut")):
        assert main(["sweep", "cut.toml", "--rounds", "1"]) == 2
    assert f"a sweep goes on in runs/cut, carried out by process {os.getpid()}" in capsys.readouterr().err
    assert not list(Path("runs/cut").iterdir())
    Path("runs/file").write_text("")
    assert main(["sweep", "cut.toml", "--rounds", "1", "--name", "file"]) == 2
    assert "a file is in the way" in capsys.readouterr().err


@pytest.mark.slow
def test_what_it_will_do_is_told_first(capsys):
    words = ["sweep", "cut.toml", "--rounds", "2", "--workers", "1"]
    assert main([*words, "--plan"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split() for line in out[:2]] == [
        ["dense", "2", "rounds", "seeds", "new", "0"],
        ["pruned-0.2", "2", "rounds", "seeds", "new", "0"],
    ]
    assert out[2] == "2 of 2 runs to do, 1 at a time, in runs/cut"
    assert out[3].startswith("about 0:0")
    assert "of disk" in out[3]
    assert not Path("runs").exists()
    assert main([*words, "--only", "dense"]) == 0
    assert "1 of 1 done: dense-0: accuracy" in capsys.readouterr().out
    assert main([*words, "--plan"]) == 0
    out = capsys.readouterr().out
    assert "dense                                        2 rounds   seeds finished 0" in out
    assert "1 of 2 runs to do" in out
    assert main(["sweep", "cut.toml", "--rounds", "3", "--plan"]) == 2
    assert "dense: runs/cut/dense-0 holds a run with other settings" in capsys.readouterr().err
    assert main(["sweep", "cut.toml", "--name", "cut/dense-0"]) == 2
    assert main(["sweep", "cut.toml", "--runs", "runs/cut", "--name", "dense-0"]) == 2
    assert "is the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["gone.toml"], "file gone.toml does not exist"),
        (["."], "is a folder: give the file of a plan"),
        (["cut.toml", "--workers", "0"], "--workers 0: expected at least 1"),
        (["cut.toml", "--hours", "-1"], "--hours -1"),
        (["cut.toml", "--seed", "1"], "use --seeds"),
        (["cut.toml", "--only", "prunde"], "did you mean 'pruned'"),
        (["cut.toml", "--method.optimizer.lr", "fast"], "dense, pruned-0.2: method.optimizer.lr: expected float"),
        (["cut.toml", "--data", "gone"], "--data gone: there is no such folder"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(words, why, capsys):
    assert main(["sweep", *words]) == 2
    assert why in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_folder_without_a_sweep_is_named():
    with pytest.raises(ConfigError, match=r"holds no sweep \(no sweep\.json\)"):
        fedbonsai.load_sweep(".")
    Path("sweep.json").write_text("{")
    with pytest.raises(ConfigError, match=r"sweep\.json is damaged"):
        fedbonsai.load_sweep(".")


@pytest.mark.slow
def test_from_python_with_more_seeds_and_the_page_in_a_browser():
    plan = {
        "seeds": [0, 1],
        "baseline": "random-mask",
        "settings": {"data.limit": 200, "data.clients": 3, "model.name": "mlp", "clock.devices": "phone-mid"},
        "grid": {"method.density": [0.5, 0.2]},
        "runs": [{"recipe": "snip"}, {"recipe": "random-mask"}],
    }
    found = fedbonsai.sweep(plan, workers=1, rounds=2, progress=False)
    assert (found.path, found.failed) == (Path("runs/sweep"), {})
    frame = found.frame
    assert len(frame) == 8
    assert set(frame["status"]) == {"finished"}
    assert set(frame["trained_examples"]) == {frame["trained_examples"][0]}, "equal work"
    assert list(frame["bytes"]) == list(fedbonsai.load_sweep("runs/sweep").frame["bytes"])
    with pytest.raises(ConfigError, match=r"snip-0\.5, snip-0\.2, random-mask-0\.5 and 1 more"):
        fedbonsai.sweep(plan, workers=1, rounds=0, name="none", progress=False)
    more = fedbonsai.sweep(plan, workers=1, rounds=2, only=["snip-0.5"], seeds=[4], progress=False)
    assert [row["seed"] for row in more.rows if row["variant"] == "snip-0.5"] == [0, 1, 4]
    assert len(more.rows) == 9
    from fedbonsai.sweeps.page import page

    Path("page.html").write_text(page(found))
    for width, scheme in ((1280, "light"), (390, "dark")):
        assert figures_of(Path("page.html").resolve(), width, scheme) == 5


def job(name):
    return Job("", "", 0, Path(name), None, "new")  # type: ignore[arg-type]


def test_runs_that_would_end_too_late_do_not_begin():
    now = [0.0]
    left = {"a": Expected(1000.0, 0, 0), "b": Expected(2000.0, 0, 0), "c": Expected(500.0, 0, 0), "d": UNKNOWN}
    pace = Pace(left, 2, hours=0.5, clock=lambda: now[0])  # 1800 seconds
    assert pace.told() == ", about 33:20 left", "the longest takes longer than the mean of two at a time"
    assert pace.may_begin(job("a"))
    assert not pace.may_begin(job("b"))
    now[0] = 1500.0
    pace.ended(job("a"))  # it took half as long again as was expected
    assert pace.ratio == 1.5
    assert pace.told() == ", about 12:30 left"
    assert not pace.may_begin(job("c")), "750 seconds by now"
    assert pace.may_begin(job("d")), "nobody knows"
    now[0] = 1801.0
    pace.ended(job("d"))
    assert (pace.refused, pace.told()) == (["b", "c"], "")
    free = Pace({"a": Expected(1e9, 0, 0)}, 1)
    assert free.may_begin(job("a"))
