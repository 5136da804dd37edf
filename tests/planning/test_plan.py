"""``fedbonsai plan`` from the command line: killed and resumed, its recipe within the limit, and what it refuses."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedbonsai
from fedbonsai.cli import main
from fedbonsai.errors import ConfigError
from fedbonsai.lock import hold
from fedbonsai.planning.plan import Effort, carry_out, question
from fedbonsai.planning.standing import standing
from tests.moments import HANGS

LIMIT = 120_000
DATA = {"data.limit": "300", "data.clients": "4", "data.partition": "iid", "data.valid": "0.2"}
WORDS = [f"--{name}={value}" for name, value in DATA.items()]
SMALL = [*WORDS, "--recipes", "fedavg,fedtiny", "--networks", "mlp,cnn-bn", "--rounds", "4", "--workers", "2"]
PLAN = [
    "plan",
    *SMALL,
    "--trials",
    "5",
    "--finalists",
    "2",
    "--seeds",
    "1",
    f"--limit.bytes={LIMIT}",
    "--devices",
    "raspberry-pi-4",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def begun(folder, *more):
    """A plan in a process of its own."""
    # Ctrl-C is ignored where a shell started the tests in the background
    heard = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code = heard + "from fedbonsai.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *PLAN, *more, "--runs", str(folder)], stdout=subprocess.DEVNULL
    )


def killed(folder, when):
    """Kill a plan's process once something is so; its workers leave with it."""
    process, end = begun(folder), time.monotonic() + HANGS
    while not when():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(HANGS)


def told(plan):
    """All that a plan left which does not say how long something took."""
    found = {}
    for run in sorted([*plan.glob("trials/*"), *plan.glob("finals/*")]):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in lines]
        files = [
            *run.glob("*.safetensors"),
            *run.glob("checkpoint/state*"),
            *run.glob("ledger/*"),
            *run.glob("costs/*"),
        ]
        sums = {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}
        found[f"{run.parent.name}/{run.name}"] = (rows, sums)
    return {name: (plan / name).read_text() for name in ("best.toml", "plan.md", "answer.json")} | found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert main([*PLAN, "--runs", str(folder)]) == 0
    return folder / "plan"


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [
        [("finals/*/run.json", 1)],
        pytest.param([("trials/*/metrics.jsonl", 2), ("finals/*/run.json", 1)], marks=pytest.mark.exhaustive),
    ],
    ids=["once", "twice"],
)
def test_killed_and_resumed_it_gives_the_same_bytes(whole, tmp_path, moments):
    plan = tmp_path / "plan"
    for files, count in moments:
        killed(tmp_path, lambda files=files, count=count: len(list(plan.glob(files))) >= count)
    assert begun(tmp_path).wait(HANGS) == 0
    assert told(plan) == told(whole)
    assert (plan / "plan.html").exists()


@pytest.mark.slow
def test_its_recipe_runs_as_it_is_within_the_limit(whole, tmp_path):
    assert main(["run", str(whole / "best.toml"), "--quiet", "--runs", str(tmp_path)]) == 0
    run = fedbonsai.load(tmp_path / "best")
    assert standing(tmp_path / "best", {}).bytes[-1] <= LIMIT
    assert not run.config.clock.devices, "real devices take real time"
    answer = json.loads((whole / "answer.json").read_text())
    best = next(each for each in answer["settings"] if each["number"] == answer["best"])
    number, seed = f"{best['number']:04d}", run.config.seed
    trial = fedbonsai.load(whole / (f"finals/{number}-{seed}" if seed else f"trials/{number}"))
    same = [f"valid_{run.measure.name}", run.measure.name, "total_bytes_up", "total_bytes_down"]
    rows = [[row[name] for name in same] for row in run.metrics]
    assert rows == [[row[name] for name in same] for row in trial.metrics[: len(rows)]], (
        "it is a run that was there, once more"
    )
    assert best["finals"]
    from fedbonsai.runs.config import FleetConfig
    from fedbonsai.runs.flower import refuse
    from fedbonsai.runs.recipes import load

    over = load(str(whole / "best.toml"), "", {"fleet.kind": "flower"})
    assert over.fleet == FleetConfig(kind="flower")
    refuse(over)


@pytest.mark.slow
def test_it_says_what_can_be_had_and_optuna_can_open_its_journal(whole):
    text = (whole / "plan.md").read_text()
    assert text.startswith("# Take ")
    assert "on the test set (1 seed)" in text
    assert "| setting | rounds | validation accuracy, % | test accuracy, % | bytes a device | time |" in text
    assert ", 5 trained, " in text
    page = (whole / "plan.html").read_text()
    assert all(f'id="{name}"' in page for name in ("front", "finalists", "curves"))
    from optuna import load_study
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    study = load_study(study_name="plan", storage=JournalStorage(JournalFileBackend(str(whole / "journal.log"))))
    settings = json.loads((whole / "answer.json").read_text())["settings"]
    assert sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials) == len(settings)
    assert sum(not each["out"][0] for each in settings) == 5


@pytest.mark.slow
def test_the_same_command_again_answers_at_once_and_others_are_refused(whole, capsys):
    where = ["--runs", str(whole.parent)]
    before = told(whole)
    assert main([*PLAN, *where]) == 0
    assert told(whole) == before
    capsys.readouterr()
    assert main([*PLAN, *where, "--limit.bytes=1kB"]) == 2
    assert (
        'holds a plan with another limits: {"bytes": 120000.0} there, {"bytes": 1000.0} now' in capsys.readouterr().err
    )
    assert main([*PLAN, *where, "--rounds", "5"]) == 2
    assert "another rounds: 4 there, 5 now" in capsys.readouterr().err
    with hold(whole / "plan.lock"):
        assert main([*PLAN, *where]) == 2
    assert f"is in use by process {os.getpid()}" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_and_the_end_of_time_leave_the_best_so_far(tmp_path):
    plan = tmp_path / "plan"
    process = begun(tmp_path, "--trials", "500")  # that it cannot be over when the signal comes
    end = time.monotonic() + HANGS
    while "rung-0" not in (plan / "journal.log").read_text() if (plan / "journal.log").exists() else True:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(HANGS) == 130
    assert (plan / "best.toml").exists() or not list(plan.glob("trials/*/metrics.jsonl"))
    words = [*PLAN[: PLAN.index("--trials")], *PLAN[PLAN.index("--trials") + 2 :]]
    assert main([*words, "--hours", "1s", "--runs", str(tmp_path)]) in (0, 2), "its time is over by now"


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_disk_that_fills_up_is_told_and_the_same_command_goes_on(whole, tmp_path, capsys):
    limited = ["bash", "-c", 'ulimit -f 12; exec "$@"', "-", sys.executable, "-c"]
    code = "import sys; from fedbonsai.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [*limited, code, *PLAN, "--runs", str(tmp_path)], capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 2, done.stderr
    assert "make room" in done.stderr
    assert main([*PLAN, "--runs", str(tmp_path)]) == 0
    assert told(tmp_path / "plan") == told(whole)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--limit.byte=5MB"], "limit.byte is not known; did you mean 'bytes'?"),
        (["--limit.bytes=lots"], "limit.bytes = 'lots': expected a number above 0"),
        (["--devices", "raspbery-pi-4"], "did you mean 'raspberry-pi-4'?"),
        (["--devices", "raspberry-pi-4", "--link", "lta"], "did you mean 'lte'?"),
        (["--link", "lte"], "devices is empty, so there is no clock"),
        (["--limit.joules=5J"], "limit.joules needs devices"),
        (["--lower", "joules"], "lower joules needs devices"),
        (["--lower", "money"], "expected one or several of bytes, seconds, joules"),
        (["--objective.metric", "rmse"], "metric = 'rmse': expected one of accuracy"),
        (["--target", "95"], "expected an accuracy between 0 and 1"),
        (["--method.optimizer.lr", "0.1"], "is what a plan decides"),
        (["--name", ""], "--name is empty"),
        (["--hours", "soon"], "--hours = 'soon'"),
        (["--trials", "-1"], "--trials -1"),
        (["--workers", "0"], "--workers 0"),
        (["--rounds", "0"], "--rounds 0"),
        (["--recipes", "fedvag"], "did you mean 'fedavg'?"),
        (["--networks", "mpl"], "did you mean 'mlp'?"),
        (["--data.valid", "0"], "data.valid = 0 holds 0 of 300 samples out"),
        (["--data.limit", "60", "--data.valid", "0.1"], "expected at least 20; raise data.valid, or give more data"),
        (["--data.nme", "digits"], "did you mean"),
    ],
)
def test_bad_input_is_one_error_before_any_work(words, why, tmp_path, capsys):
    assert main(["plan", *WORDS, *words]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "plan").exists()


def test_a_folder_of_another_format_or_of_something_else_is_refused(tmp_path, capsys):
    plan = tmp_path / "plan"
    plan.mkdir()
    (plan / "run.json").write_text("{}")
    assert main(PLAN) == 2
    assert "holds something else than a plan" in capsys.readouterr().err
    (plan / "run.json").unlink()
    (plan / "plan.json").write_text('{"format": 0}')
    assert main(PLAN) == 2
    assert "is a plan of format 0, this version writes 1" in capsys.readouterr().err
    (plan / "plan.json").write_text("{")
    assert main(PLAN) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_a_limit_that_nothing_meets_says_which_one_binds(capsys):
    words = [
        "plan",
        *WORDS,
        "--recipes",
        "fedavg",
        "--networks",
        "mlp",
        "--trials",
        "3",
        "--workers",
        "2",
        "--limit.bytes=100",
    ]
    assert main(words) == 2
    assert "limit.bytes binds" in capsys.readouterr().err


@pytest.mark.slow
def test_what_does_not_go_with_the_data_or_the_device_is_dropped_with_its_reason(tmp_path):
    asked = question(
        {**DATA, "clock.devices": "raspberry-pi-4"},
        {"peak_memory": "250MB"},
        recipes=["fedavg", "fedtiny"],
        networks=["mlp", "cnn-bn"],
        rounds=1,
    )
    answer = carry_out(asked, tmp_path / "plan", Effort(trials=4, seeds=0, workers=2), lambda text: None)
    causes = {cause: [each.asked.labels for each in some] for cause, some in answer.search.ruled_out().items()}
    assert all(labels["network"] == "cnn-bn" for labels in causes["above the limit of peak memory"])
    unfit = "does not go with the data, the network or the method"
    assert all((labels["recipe"], labels["network"]) == ("fedtiny", "mlp") for labels in causes.get(unfit, []))
    trained = {path.name for path in (tmp_path / "plan" / "trials").iterdir()}
    out = {f"{each.number:04d}" for some in answer.search.ruled_out().values() for each in some}
    assert trained
    assert not trained & out


@pytest.mark.slow
def test_numbers_without_classes_are_learned_by_regression_and_standardised(tmp_path):
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    x = draw.normal(size=(400, 3)) * [1, 100, 0.01]
    pq.write_table(
        pa.table({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": x @ [1, 0.01, 100]}), tmp_path / "train-0.parquet"
    )
    given = {
        "data.path": str(tmp_path),
        "data.x": ["a", "b", "c"],
        "data.y": ["y"],
        "data.partition": "iid",
        "data.clients": "4",
    }
    asked = question({**given, "data.valid": "0.2"}, networks=["linear"], recipes=["fedavg"], rounds=3)
    assert asked.objective.metric == "rmse"
    assert [word for word in ("standardised", "regression", "mean") if any(word in note for note in asked.notes)] == [
        "standardised",
        "regression",
        "mean",
    ], "what was taken for granted, and what is known of the data"
    answer = carry_out(asked, tmp_path / "plan", Effort(trials=2, seeds=1, finalists=1, workers=2), lambda text: None)
    assert "rmse" in answer.sentence()


def test_data_given_in_python_are_refused():
    import numpy as np

    from fedbonsai.data import of

    given = of((np.zeros((40, 3), np.float32), np.arange(40) % 2))
    with pytest.raises(ConfigError, match="write them to a file"):
        question({"data.path": given.path})
    assert Path.cwd().exists()
