"""Trials before the runs: all variants have the same, validation parts decide, and any stop costs nothing."""

import json
from pathlib import Path

import pytest

import fedbonsai
from fedbonsai.cli import main
from fedbonsai.errors import ConfigError
from fedbonsai.sweeps.plan import read
from fedbonsai.sweeps.sweep import carry, ready
from fedbonsai.sweeps.tuned import tuned, tuning

SMALL = {
    "rounds": 3,
    "data": {"limit": 200, "clients": 4, "partition": "iid"},
    "model": {"name": "mlp", "options": {"widths": [16]}},
}
TUNE = {"grid": {"method.optimizer.lr": [1e-6, 0.2]}, "rounds": 2}
PLAN = {"name": "fair", "seeds": [0], "settings": SMALL, "tune": TUNE}
TWO = {**PLAN, "runs": [{"recipe": "fedavg"}, {"recipe": "snip", "grid": {"method.density": [0.3]}}]}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def faults(**more):
    with pytest.raises(ConfigError) as caught:
        read({**TWO, **more})
    return str(caught.value)


def test_each_variant_is_tried_at_each_point_for_as_many_rounds():
    made = tuning(
        read({**TWO, "tune": {"grid": {"method.optimizer.lr": [0.1, 0.2], "method.optimizer.epochs": [1, 3]}}})
    )
    assert [each.name for each in made.variants] == [
        f"{name}-lr={lr}-epochs={epochs}" for name in ("fedavg", "snip-0.3") for lr in (0.1, 0.2) for epochs in (1, 3)
    ]
    first = made.variants[0]
    assert (first.run, first.seeds, first.varied) == (
        "fedavg",
        (1000,),
        {"method.optimizer.lr": 0.1, "method.optimizer.epochs": 1},
    )
    assert first.settings["rounds"] == 3, "no longer than the runs"
    assert tuning(read(TWO)).variants[0].settings["rounds"] == 2
    Path("short.toml").write_text('rounds = 1\n[method]\nname = "averaging"\n')
    short = read({**PLAN, "settings": {}, "runs": [{"recipe": "short.toml"}]})
    assert tuning(short).variants[0].settings["rounds"] == 1, "of the recipe"
    patient = read({**TWO, "settings": {**SMALL, "patience": 2}})
    assert {each.settings["patience"] for each in tuning(patient).variants} == {0}, "all trials are as long"


def test_what_cannot_be_meant_is_said_before_anything_runs():
    assert "results have it, too" in faults(seeds=[0, 1000])
    assert "tune.grid: expected" in faults(tune={"grid": {"method.optimizer.lr": 0.1}}).replace(
        ".method.optimizer.lr", ""
    )
    assert "is in the plan's grid, too" in faults(grid={"method.optimizer.lr": [0.1]})
    assert "is in settings, too" in faults(settings={**SMALL, "method.optimizer.lr": 0.1})
    assert "is in settings, too" in faults(runs=[{"recipe": "fedavg", "settings": {"method": {"optimizer.lr": 0.1}}}])
    assert "rounds is the same for all trials" in faults(tune={"grid": {"rounds": [1, 2]}})
    assert "at least 1 round" in faults(tune={**TUNE, "rounds": 0})
    with pytest.raises(ConfigError, match=r"--method\.optimizer\.lr: the plan's tune\.grid tries it"):
        ready(read(TWO), Path("runs"), settings={"method.optimizer.lr": 0.1})
    with pytest.raises(ConfigError, match="seed 1000 is that of the trials"):
        ready(read(TWO), Path("runs"), seeds=[1000])
    with pytest.raises(ConfigError, match=r"fedavg-1e-06-1000: tune\.grid is judged .* data\.valid = 0 leaves none"):
        ready(read(TWO), Path("runs"), settings={"data.valid": 0.0})
    assert not Path("runs").exists()


@pytest.mark.slow
def test_validation_parts_choose_and_a_stop_changes_nothing(capsys):
    whole = fedbonsai.sweep(TWO, runs="whole", workers=1, progress=False)
    assert [each.tuned for each in whole.plan.variants] == [{"method.optimizer.lr": 0.2}] * 2, "no step learns nothing"
    assert {run.config.method.optimizer.lr for run in whole.runs.values()} == {0.2}
    assert {run.config.seed for run in whole.runs.values()} == {0}
    frame = whole.frame
    assert list(frame["method.optimizer.lr"]) == [0.2, 0.2]
    # stopped after its first trials, and asked for one variant before all of them
    what = ready(read(TWO), Path("parts"), only=["snip"])
    assert [len(what.trials.jobs), len(what.jobs)] == [2, 1]
    carry(what.trials, 1, hours=1e-9)
    assert not list(Path("parts/fair/tune").glob("*/metrics.jsonl"))
    carry(ready(read(TWO), Path("parts"), only=["snip"]), 1)
    left = ready(read(TWO), Path("parts"))
    assert [len(left.trials.jobs), len(left.left)] == [2, 1], "what was chosen is not tried again"
    carry(left, 1)
    for name in ("sweep.csv", "rounds.csv", "sweep.json", "tune/sweep.csv"):
        assert Path("parts/fair", name).read_bytes() == Path("whole/fair", name).read_bytes()
    Path("fair.toml").write_text(TEXT)
    assert main(["sweep", "fair.toml", "--runs", "whole"]) == 0
    said = capsys.readouterr().out
    assert "0 of 2 runs to do" in said
    assert "| variant | tuned | seeds |" in said
    assert "lr 0.2" in said
    assert "Each variant's lr are the best of the same 2 on the clients' validation parts" in said
    # a further seed has what was chosen
    more = ready(read(TWO), Path("whole"), seeds=[5])
    assert more.trials is None
    assert {job.config.method.optimizer.lr for job in more.jobs} == {0.2}
    with pytest.raises(ConfigError, match="seed 1000 is that of the trials"):
        ready(read(TWO), Path("whole"), seeds=[1000])
    # trials of a plan that was another one choose nothing
    for changed in ({"grid": {"method.optimizer.lr": [1e-6, 0.3]}, "rounds": 2}, {**TUNE, "rounds": 1}):
        assert [each.tuned for each in tuned(read({**TWO, "tune": changed}), Path("whole/fair")).variants] == [{}, {}]


@pytest.mark.slow
def test_a_trial_that_fails_is_not_chosen_and_if_all_fail_it_is_said():
    broken = {**PLAN, "runs": [{"recipe": "fedavg"}]}
    hot = {**broken, "tune": {"grid": {"method.optimizer.lr": [1e30, 0.1]}, "rounds": 2}}
    found = fedbonsai.sweep(hot, workers=1, progress=False)
    assert found.plan.variants[0].tuned == {"method.optimizer.lr": 0.1}
    assert json.loads(Path("runs/fair/tune/sweep.json").read_text())["failed"]
    hotter = {**broken, "name": "none", "tune": {"grid": {"method.optimizer.lr": [1e30, 1e35]}, "rounds": 2}}
    for _ in range(2):  # no dead end: those that failed are tried again
        with pytest.raises(ConfigError, match=r"fedavg: no trial of tune\.grid could be judged; fedavg-1e\+30"):
            fedbonsai.sweep(hotter, workers=1, progress=False)
    cooler = {**hotter, "tune": hot["tune"]}
    assert len(ready(read(cooler), Path("runs")).trials.left) == 2
    assert tuned(read(broken), Path("nowhere")).variants[0].tuned == {}


TEXT = """
seeds = [0]
[settings]
rounds = 3
data = { limit = 200, clients = 4, partition = "iid" }
model = { name = "mlp", options = { widths = [16] } }
[tune]
rounds = 2
grid = { "method.optimizer.lr" = [1e-6, 0.2] }
[[runs]]
recipe = "fedavg"
[[runs]]
recipe = "snip"
grid = { "method.density" = [0.3] }
"""
