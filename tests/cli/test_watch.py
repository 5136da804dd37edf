"""``fedbonsai watch``, and other readers, on runs that are being written, killed, failed or finished."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.moments import HANGS

import fedbonsai
from fedbonsai.cli import main, watch
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


FOLLOWED = """
import fedbonsai

class Wait:
    def begin(self, config, scene, first): pass
    def round(self, row, model):
        print(row["round"], flush=True)
        input()
    def end(self, rows): pass

settings = {"data__clients": 4, "data__limit": 200, "data__partition": "iid", "model__name": "mlp"}
fedbonsai.run("fedavg", name="live", rounds=3, observers=[Wait()], **settings)
"""


@pytest.mark.slow
def test_it_follows_a_run_to_its_end(monkeypatch, capsys):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    run = subprocess.Popen([sys.executable, "-c", FOLLOWED], **pipes)
    seen, looks = [], []

    def one_round_more(seconds):
        """Between two looks the run does a round, or ends."""
        looks.append(seconds)
        run.stdin.write("\n")
        run.stdin.flush()
        assert run.stdout.readline() == (f"{len(looks)}\n" if len(looks) < 3 else "")

    try:
        assert run.stdout.readline() == "0\n"  # a round is written, and the process waits
        monkeypatch.setattr(watch, "time", SimpleNamespace(sleep=one_round_more))
        shows = watch.view
        monkeypatch.setattr(watch, "view", lambda run: seen.append(len(run.metrics)) or shows(run))
        assert main(["watch", "runs/live", "--every", "0.05"]) == 0
        assert run.wait(HANGS) == 0
    finally:
        run.kill()
        run.communicate()
    assert looks == [0.05] * 3
    assert seen == [1, 2, 3, 3, 3]  # as it begins, after each wait, and when the run has ended
    out = capsys.readouterr().out
    assert "finished" in out
    assert "3 of 3" in out


def test_sparkline():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([0.3, 0.3]) == "▁▁"
    assert len(sparkline([float(i) for i in range(1000)])) <= 40
    assert sparkline([float(i) for i in range(1000)])[-1] == "█"
