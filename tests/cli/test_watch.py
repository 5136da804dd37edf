"""``fedbonsai watch``, and other readers, on runs that are being written, killed, failed or finished."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedbonsai
from fedbonsai.cli import main
from fedbonsai.cli.watch import sparkline
from fedbonsai.runs.folder import Folder

QUICK = ["--rounds", "3", "--data.limit", "200", "--data.clients", "4", "--data.partition", "iid", "--quiet"]
MODEL = ["--model.name", "mlp"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def begun(name="a", status="running", rows=2, tail=""):
    """A run as its folder looks while it is written."""
    assert main(["run", "fedavg", *QUICK, *MODEL, "--devices", "phone-mid", "--name", name]) == 0
    folder = Path("runs") / name
    metrics, info = folder / "metrics.jsonl", folder / "run.json"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:rows]) + tail)
    info.write_text(json.dumps({**json.loads(info.read_text()), "status": status}))
    return folder


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["watch", "--help"])
    assert "--once" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["nothing", "--once"], "nothing holds no run"),
        (["runs", "--every", "0"], "--every 0"),
        (["runs", "--every", "nan"], "--every nan"),
        (["runs", "stray"], "watch does not take stray"),
    ],
)
def test_wrong_input_is_named(words, why, capsys):
    assert main(["watch", *words]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.slow
def test_a_line_that_is_being_written_is_not_read(capsys):
    folder = begun(tail='{"round": 2, "att')
    with Folder(folder).alone():
        for words in (["watch", str(folder), "--once"], ["ls", "runs"], ["report", str(folder), "--out", "r.csv"]):
            capsys.readouterr()
            assert main(words) == 0
            out = capsys.readouterr().out
            if words[0] == "watch":
                assert "2 of 3" in out
                assert "running" in out
                assert "simulated seconds" in out
            if words[0] == "ls":
                assert "running, 2 rounds" in out
    assert len(fedbonsai.load(folder).metrics) == 2
    main(["ls", "runs"])
    assert "died, 2 rounds" in capsys.readouterr().out  # nobody writes there any more
    assert main(["export", str(folder / "no"), "--to", "compact"]) == 2


@pytest.mark.slow
def test_before_the_first_round_and_after_a_failure(capsys):
    folder = begun("none yet", rows=0)
    capsys.readouterr()
    assert main(["watch", str(folder), "--once"]) == 0
    assert "0 of 3" in capsys.readouterr().out
    assert main(["report", str(folder)]) == 2
    assert "(died) has no evaluated round yet; go on with it: fedbonsai run --resume" in capsys.readouterr().err
    failed = begun("failed", status="failed")
    capsys.readouterr()
    assert main(["watch", str(failed), "--every", "0.01"]) == 0  # it has ended: nothing to wait for
    assert "failed" in capsys.readouterr().out


@pytest.mark.slow
def test_names_are_not_markup(capsys):
    folder = begun("try [bold] <b>&amp;|")
    capsys.readouterr()
    assert main(["watch", str(folder), "--once"]) == 0
    assert "try [bold] <b>&amp;|" in capsys.readouterr().out
    assert main(["report", str(folder), "--out", "r.md", "--out", "r.html"]) == 0
    assert "try [bold]" in capsys.readouterr().out
    assert "| try [bold] <b>&amp;\\| |" in Path("r.md").read_text()
    page = Path("r.html").read_text()
    assert "<h1>try [bold] &lt;b&gt;&amp;amp;|</h1>" in page


@pytest.mark.slow
def test_it_follows_a_run_to_its_end():
    words = ["run", "fedavg", "--rounds", "40", *QUICK[2:], *MODEL, "--name", "live"]
    code = "import sys; from fedbonsai.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([sys.executable, "-c", code, *words], env=environment, stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not Path("runs/live/metrics.jsonl").exists():
        assert run.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.01)
    seen = subprocess.run(
        [sys.executable, "-c", code, "watch", "runs/live", "--every", "0.05"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert seen.returncode == 0, seen.stderr
    assert run.wait(60) == 0
    assert "finished" in seen.stdout
    assert "40 of 40" in seen.stdout


def test_sparkline():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([0.3, 0.3]) == "▁▁"
    assert len(sparkline([float(i) for i in range(1000)])) <= 40
    assert sparkline([float(i) for i in range(1000)])[-1] == "█"
