"""``fedbonsai compare``: what it plans, what it refuses at once, and that it goes on after it was stopped in any way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.moments import HANGS, ended, rounds_of, started, until

import fedbonsai
from fedbonsai.cli import main

SMALL = ["--data.limit", "200", "--data.clients", "4", "--data.partition", "iid", "--model.name", "mlp"]
QUICK = ["--rounds", "2", *SMALL, "--workers", "1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["compare", "--help"])
    assert "--first-seed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_plan_runs_nothing(capsys):
    words = ["compare", "fedavg", "fl-pqsu:published", "--seeds", "2", "--first-seed", "3", "--plan"]
    assert main([*words, "--rounds", "2", "--name", "two words"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines[:4]]
    assert names == ["fedavg-3", "fl-pqsu-published-3", "fedavg-4", "fl-pqsu-published-4"]
    assert all(line.split()[-1] == "new" for line in lines[:4])
    assert lines[4].startswith("4 of 4 runs to do")
    assert lines[4].endswith("in runs/two words")
    assert re.match(r"about \d+:\d\d of training here", lines[5]), "how long it may take"
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["fedavg", "fedavg"], "fedavg given twice"),
        (["fedavg", "fedavg:modern"], "are the same run"),
        (["fedavg", "fedvag"], "did you mean 'fedavg'"),
        (["fl-pqsu:nothing"], "nothing"),
        (["fedavg", "--seeds", "0"], "seeds = 0: expected at least 1"),
        (["fedavg", "--seed", "4"], "use --seeds and --first-seed"),
        (["fedavg", "--workers", "0"], "--workers 0"),
        (["fedavg", "--target", "70"], "between 0 and 1"),
        (["fedavg", "--method.optimizer.lr", "fast"], "expected float"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(words, why, capsys):
    assert main(["compare", *words]) == 2
    assert why in capsys.readouterr().err
    assert not Path("runs").exists()


def test_recipes_of_one_name_do_not_share_a_folder(capsys):
    Path("mine").mkdir()
    assert main(["cp", "fedavg", "mine/fedavg.toml"]) == 0
    assert main(["compare", "fedavg", "mine/fedavg.toml", "--plan"]) == 2
    assert "fedavg and mine/fedavg.toml would both run in runs/comparison/fedavg-0" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_finished_is_left_alone_and_other_settings_are_refused(capsys):
    words = ["compare", "fedavg", "fedprox", *QUICK]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "2 of 2 done" in out
    assert "| fedprox | 1 |" in out
    home = Path("runs/comparison")
    assert all((home / f"report.{kind}").stat().st_size > 100 for kind in ("html", "md", "csv", "png"))
    before = {file: file.stat().st_mtime_ns for file in home.glob("*/*") if file.is_file()}
    assert main(words) == 0
    assert "0 of 2 runs to do" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert main([*words, "--rounds", "3"]) == 2
    assert "holds a run with other settings" in capsys.readouterr().err
    assert main(["ls", "runs"]) == 0
    assert "runs/comparison/fedprox-0" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_does_not_stop_the_others(capsys):
    Path("broken.py").write_text(
        "from pathlib import Path\n\nimport torch\nfrom fedbonsai import network\n\n\n"
        "@network('broken')\ndef broken(channels=1, size=8, classes=10, norm=''):\n"
        "    class Broken(torch.nn.Module):\n"
        "        def __init__(self):\n            super().__init__()\n            self.fc = torch.nn.Linear(64, classes)\n"
        "        def forward(self, x):\n"
        "            if self.training and Path('runs/comparison/broken-0/config.toml').exists():  # once the run has begun\n"
        "                raise ValueError('no training here')\n"
        "            return self.fc(x.flatten(1))\n"
        "    return Broken()\n"
    )
    assert main(["cp", "fedavg", "broken.toml"]) == 0
    text = Path("broken.toml").read_text()
    assert 'name = "cnn-bn"' in text
    Path("broken.toml").write_text('imports = ["broken"]\n' + text.replace('name = "cnn-bn"', 'name = "broken"'))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    words = ["compare", "broken.toml", "fedavg", "--rounds", "2", *SMALL[:-2], "--workers", "1"]  # not SMALL's network
    code = "import sys; from fedbonsai.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 2, done.stderr
    assert "broken-0: failed: task 'averaging/train' fails alike on all 4 clients" in done.stdout
    assert "ValueError: no training here" in done.stderr
    assert "| fedavg | 1 |" in done.stdout
    assert "broken-0 failed and is left out" in Path("runs/comparison/report.html").read_text()
    assert "1 runs failed: broken-0; the others are kept" in done.stderr
    assert fedbonsai.load("runs/comparison/fedavg-0").info["status"] == "finished"


def lines_of(home):
    return {file.parent: rounds_of(file.parent) for file in Path(home).glob("*/metrics.jsonl")}


LONG = [
    "fedavg",
    "fedprox",
    "--rounds",
    "8",
    "--evaluate_every",
    "5",
    *SMALL,
    "--devices",
    "phone-mid",
    "--workers",
    "2",
]


def under_way(moments, rounds):
    """A comparison in a process group of its own, as a terminal starts it, whose two runs stand after so many rounds."""
    moments.mkdir(exist_ok=True)
    (moments / f"checkpoint-{rounds}").write_text("hold")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = ["compare", *LONG, "--name", "cut"]
    process = started(words, moments, start_new_session=True, **pipes)
    until(lambda: list(lines_of("runs/cut").values()) == [rounds] * 2, process)
    return process


@pytest.mark.slow
@pytest.mark.exhaustive  # as a sweep, which has the same workers
def test_killed_and_interrupted_comparisons_go_on_and_end_the_same():
    killed = under_way(Path("moments"), 3)
    killed.kill()
    ended(killed)
    limit = time.monotonic() + HANGS
    while True:  # who carried out the runs leaves too, else two processes would write one folder
        try:
            os.killpg(killed.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert set(lines_of("runs/cut").values()) == {3}
    Path("moments/checkpoint-3").unlink()

    again = under_way(Path("moments"), 5)
    os.killpg(again.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to all of the group
    _, err = ended(again)
    assert again.returncode == 130
    assert "The same command goes on from there" in err
    assert "Traceback" not in err
    states = [json.loads(file.read_text())["status"] for file in Path("runs/cut").glob("*/run.json")]
    assert states == ["interrupted"] * 2

    for name in ("cut", "whole"):
        assert main(["compare", *LONG, "--workers", "1", "--name", name]) == 0
    for name in ("fedavg-0", "fedprox-0"):
        cut, whole = (fedbonsai.load(Path("runs") / folder / name) for folder in ("cut", "whole"))
        assert [{**row, "seconds": 0} for row in cut.metrics] == [{**row, "seconds": 0} for row in whole.metrics]
        assert (cut.costs(), cut.ledger()) == (whole.costs(), whole.ledger())
        assert (cut.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    assert Path("runs/cut/report.csv").read_bytes() == Path("runs/whole/report.csv").read_bytes()
