import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedbonsai.cli import VERBS, main
from fedbonsai.devices.room import LEAST

QUICK = ["--rounds", "2", "--data.limit", "200", "--data.clients", "4", "--data.partition", "iid", "--quiet"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_help_answers_at_once_since_it_imports_nothing_but_the_standard_library():
    probe = (
        "import sys\nbefore = set(sys.modules)\nfrom fedbonsai.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names\n"
        "assert names == {'fedbonsai'}, names"
    )
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert all(verb in out.stdout for verb in VERBS)


def test_importing_the_library_does_not_import_torch():
    subprocess.run([sys.executable, "-c", "import sys, fedbonsai; assert 'torch' not in sys.modules"], check=True)


@pytest.mark.slow
def test_run_report_and_ls(capsys):
    assert main(["run", "fedavg", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "accuracy 0." in out
    assert "runs/fedavg-digits-0" in out
    assert main(["report", "runs/fedavg-digits-0"]) == 0
    assert "update@1" in capsys.readouterr().out
    assert Path("runs/fedavg-digits-0/report.png").stat().st_size > 10_000
    assert main(["ls", "runs"]) == 0
    assert "finished, 2 rounds" in capsys.readouterr().out


@pytest.mark.slow
def test_running_twice_is_refused(capsys):
    assert main(["run", "fedavg", *QUICK]) == 0
    assert main(["run", "fedavg", *QUICK]) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.slow
def test_plain_progress(capsys):
    assert main(["run", "fedavg", *QUICK[:-1]]) == 0
    out = capsys.readouterr().out
    assert "estimate: 2 rounds of 4 devices" in out
    assert "round 2/2" in out


@pytest.mark.parametrize("what", ["recipes", "methods", "models", "data"])
def test_ls(what, capsys):
    assert main(["ls", what]) == 0
    assert {"recipes": "fedprox", "methods": "averaging", "models": "lenet5", "data": "digits"}[
        what
    ] in capsys.readouterr().out


@pytest.mark.slow
def test_show_cp_validate(capsys):
    assert main(["show", "fedavg", "--rounds", "7"]) == 0
    assert "rounds = 7" in capsys.readouterr().out
    assert main(["show", "fedavg", "--raw"]) == 0
    assert capsys.readouterr().out.startswith("# FedAvg")
    assert main(["cp", "fedavg", "mine"]) == 0
    assert main(["validate", "mine.toml"]) == 0
    assert main(["run", "mine.toml", *QUICK, "--name", "own"]) == 0
    capsys.readouterr()
    assert main(["cp", "fedavg", "mine.toml"]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["validate", "fedavg", "--data.clints", "3", "--method.optimizer.lr", "fast"]) == 2
    err = capsys.readouterr().err
    assert "data.clints" in err
    assert "method.optimizer.lr: expected float, got 'fast'" in err
    assert main(["validate", "fedavg", "--model.name", "lenet55"]) == 2
    assert "did you mean 'lenet5'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["run", "nothing"],
        ["run", "fedavg", "stray"],
        ["run", "--resume", "nothing"],
        ["run", "fedavg", "--resume", "x"],
        ["report", "nothing"],
        ["ls", "everything"],
        ["ls", "runs", "--runs", __file__],
        ["--vers"],
        ["--rounds", "3"],
        ["run", "fedavg", "--run", "elsewhere"],  # a setting that there is not, no short --runs
        ["run", "fedavg", "--imports", "../nets"],
        ["compare", "fedavg", "--name", "", "--plan"],
        ["compare", "fedavg", "--runs", __file__],
        ["cp", "fedavg", "no/such/folder.toml"],
        ["run", "fedavg", "--data.path", "no/such/folder", "--data.name", "mnist"],
    ],
)
def test_wrong_input_is_exit_code_2_and_a_sentence(words, capsys):
    assert ended(words) == 2
    captured = capsys.readouterr()
    assert len(captured.out + captured.err) > 20
    assert "Traceback" not in captured.err


def ended(words):
    """Exit code of a command, also where the parser of words itself ends it."""
    try:
        return main(words)
    except SystemExit as end:
        return end.code


def test_help_of_a_recipe_lists_its_settings(capsys):
    assert main(["run", "fedavg", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--method.optimizer.lr float (0.05)" in out
    assert "--data.partition" in out


@pytest.mark.slow
def test_doctor(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out
    assert re.search(rf"memory: [\d,]+ MB for what runs here; a device of a federation needs {LEAST}", out)
    assert [what in out for what in ("pictures", "tables", "series", "tokens")] == [True] * 4


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == "0.1.0"


@pytest.mark.slow
def test_nobody_answers_is_exit_code_3(capsys, monkeypatch):
    from fedbonsai.errors import Unanswered
    from fedbonsai.methods.averaging.method import Averaging

    def begin(self, model, fleet, server):
        raise Unanswered("0 answers, at least 1 needed")

    monkeypatch.setattr(Averaging, "begin", begin)
    assert main(["run", "fedavg", *QUICK]) == 3
    assert "too few devices" in capsys.readouterr().err
