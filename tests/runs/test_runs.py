import json
import signal
import subprocess
from math import nan

import pytest
import torch
from tests.moments import ended, killed_and_resumed, rounds_of, started

import fedbonsai
from fedbonsai.cli import main
from fedbonsai.errors import ConfigError, NothingLearned
from fedbonsai.objectives.base import measure_named
from fedbonsai.runs import recipes
from fedbonsai.runs.loop import _ended, _flat
from fedbonsai.runs.run import execute, load
from fedbonsai.runs.setup import run_context
from fedbonsai.training.evaluate import evaluate

QUICK = {
    "rounds": 4,
    "data.clients": 4,
    "data.limit": 200,
    "data.partition": "iid",
    "model.name": "mlp",
    "method.optimizer.epochs": 1,
}


def quick(**more):
    return recipes.load("fedavg", overrides={**QUICK, **more})


@pytest.mark.slow
def test_a_run_leaves_everything_that_it_was(tmp_path):
    run = execute(quick(), tmp_path / "a")
    names = {file.name for file in (tmp_path / "a").iterdir()}
    assert names == {
        "config.toml",
        "split.json",
        "metrics.jsonl",
        "ledger",
        "checkpoint",
        "model.safetensors",
        "run.json",
    }
    assert fedbonsai.load(tmp_path / "a").config == quick()
    test = run_context(quick()).federation.test
    assert evaluate(run.model, test).accuracy == run.accuracy == run.metrics[-1]["accuracy"]
    assert run.info["status"] == "finished"
    assert run.info["versions"]["torch"] == torch.__version__
    rows = run.ledger()
    assert sum(row["bytes"] for row in rows) == sum(run.bytes.values())
    assert len({(row["round"], row["client"], row["direction"]) for row in rows}) == len(rows) == 4 * 4 * 2
    assert len(list((tmp_path / "a" / "checkpoint").glob("state-*"))) == 1


@pytest.mark.slow
def test_same_seed_same_bytes_and_a_given_split_is_used(tmp_path):
    one = execute(quick(), tmp_path / "a")
    two = execute(quick(), tmp_path / "b")
    for file in ("model.safetensors", "split.json", "config.toml"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert one.ledger() == two.ledger()
    other = execute(quick(seed=1), tmp_path / "c")
    assert (tmp_path / "c" / "split.json").read_bytes() != (tmp_path / "a" / "split.json").read_bytes()
    given = execute(quick(seed=1, **{"data.split": str(tmp_path / "a" / "split.json")}), tmp_path / "d")
    assert (tmp_path / "d" / "split.json").read_bytes() == (tmp_path / "a" / "split.json").read_bytes()
    assert given.accuracy != pytest.approx(other.accuracy, abs=1e-12) or given.metrics != other.metrics


@pytest.mark.slow
def test_a_run_is_never_overwritten(tmp_path):
    execute(quick(rounds=1), tmp_path / "a")
    before = (tmp_path / "a" / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="holds a run already"):
        execute(quick(), tmp_path / "a")
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_finished_run_resumes_to_itself(tmp_path):
    first = execute(quick(), tmp_path / "a")
    again = execute(quick(), tmp_path / "a", resume=True)
    assert again.metrics == first.metrics


@pytest.mark.slow
def test_a_target_on_validation_accuracy_ends_the_run(tmp_path):
    run = execute(quick(rounds=40, target=0.5), tmp_path / "a")
    assert run.info["reason"] == "target reached"
    assert len(run.metrics) < 40
    assert run.metrics[-1]["valid_accuracy"] >= 0.5 > run.metrics[-2]["valid_accuracy"]


class StopsAt:
    """Interrupts a run after a round."""

    def __init__(self, last):
        self.last = last

    def begin(self, config, scene, first):
        pass

    def round(self, row, model):
        if row["round"] == self.last:
            raise KeyboardInterrupt

    def end(self, rows):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
def test_patience_ends_a_run_whose_validation_measure_is_flat_killed_or_not(tmp_path, every):
    flat = quick(rounds=60, patience=4, evaluate_every=every, **{"method.optimizer.lr": 0.3})
    run = execute(flat, tmp_path / "a")
    taken = [(row["round"], row["valid_accuracy"]) for row in run.metrics if "valid_accuracy" in row]
    best = next(t for t, value in taken if value == max(value for _, value in taken))
    assert taken[-1][0] == run.metrics[-1]["round"] < 59
    assert 4 <= taken[-1][0] - best < 4 + every
    assert run.info["reason"] == f"validation accuracy was at its best {taken[-1][0] - best} rounds ago"
    with pytest.raises(KeyboardInterrupt):
        execute(flat, tmp_path / "b", observers=[StopsAt(best + 1)])
    again = execute(flat, tmp_path / "b", resume=True)
    assert [row["round"] for row in again.metrics] == [row["round"] for row in run.metrics]
    assert again.info["reason"] == run.info["reason"]


@pytest.mark.parametrize(
    ("measure", "values", "expected"),
    [
        ("accuracy", [0.5, 0.6, 0.4, 0.6], 2),
        ("mae", [0.5, 0.4, 0.6], 1),
        ("mae", [0.5, 0.4, nan, nan, nan], 3),  # diverged
        ("mae", [nan, nan, nan], 2),
        ("accuracy", [0.5, None, 0.4, None], 2),  # as the last one that was evaluated says
        ("accuracy", [0.5, "skipped", "skipped", 0.4, "unanswered"], 1),  # nothing was learned in the others
        ("accuracy", [None, None], 0),
    ],
)
def test_rounds_without_a_better_measure_are_counted_where_something_was_learned(measure, values, expected):
    rows = []
    for t, value in enumerate(values):
        row = {"round": t, "skipped": value == "skipped", "answered": 0 if value == "unanswered" else 3}
        value = 0.5 if isinstance(value, str) else value
        rows.append(row if value is None else {**row, f"valid_{measure}": value})
    assert _flat(rows, measure_named(measure)) == expected
    own = [{**row, "valid_accuracy": 0.5, "valid_mae": 0.5} for row in rows]  # of the common part, which says nothing
    for row, of in zip(own, rows, strict=True):
        row |= {f"personal_{measure}": of[f"valid_{measure}"]} if f"valid_{measure}" in of else {}
    assert _flat(own, measure_named(measure)) == (expected if any(f"personal_{measure}" in row for row in own) else 1)


def test_a_target_is_of_the_devices_own_models_where_a_method_has_them():
    config = quick(target=0.8)
    scene = run_context(config)
    row = {"round": 0, "skipped": False, "answered": 4, "valid_accuracy": 0.9}
    assert _ended(config, scene, [row], None) == "target reached"
    assert _ended(config, scene, [{**row, "personal_accuracy": 0.7}], None) == ""
    assert _ended(config, scene, [{**row, "valid_accuracy": 0.1, "personal_accuracy": 0.8}], None) == "target reached"


def test_rounds_that_nobody_answers_are_retried_then_skipped(tmp_path):
    with pytest.raises(NothingLearned):
        execute(quick(rounds=3, retries=1, **{"fleet.flaky": 0.999}), tmp_path / "a")
    run = load(tmp_path / "a")
    assert [row["skipped"] for row in run.metrics] == [True] * 3
    assert "at least 1 needed" in run.metrics[0]["unanswered"][0]
    assert run.metrics[0]["attempt"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["skipped", "loss", "client_median"])
def test_a_figure_of_the_method_never_stands_under_the_name_of_another(tmp_path, monkeypatch, name):
    monkeypatch.setattr("fedbonsai.methods.averaging.method.Averaging.metrics", lambda self, state: {name: 3.0})
    with pytest.raises(ConfigError, match=rf"both named {name}; rename"):
        execute(quick(rounds=1), tmp_path / "a")


@pytest.mark.slow
def test_recorded_answers_are_in_the_folder(tmp_path):
    execute(quick(rounds=2, **{"fleet.record": True}), tmp_path / "a")
    assert len(list((tmp_path / "a" / "answers").iterdir())) == 2


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_not_used(tmp_path):
    execute(quick(), tmp_path / "a")
    (tmp_path / "a" / "checkpoint" / "state-3.msg").write_bytes(b"FBW\x01 nonsense")
    with pytest.raises(ConfigError, match="is damaged"):
        execute(quick(), tmp_path / "a", resume=True)


def test_there_must_be_a_run_to_resume(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        execute(quick(), tmp_path / "nothing", resume=True)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"model.name": "lenet5"}, "lenet5"),
        ({"model.options": {"depth": 3}}, "does not take"),
        ({"fleet.kind": "pool", "fleet.wire": False}, "always use the wire"),
        ({"fleet.device": "cuda:7"}, "is not there"),
        ({"method.cohort": 99}, "there are 4 devices"),
        ({"data.clients": 1000}, "1000 clients"),
    ],
)
def test_what_cannot_be_run_says_why(tmp_path, settings, text):
    with pytest.raises(ConfigError, match=text):
        execute(quick(**settings), tmp_path / "a")


@pytest.mark.slow
def test_a_run_that_cannot_begin_does_not_block_its_name(tmp_path):
    with pytest.raises(ConfigError):
        execute(quick(**{"data.split": "no such file"}), tmp_path / "a")
    assert execute(quick(rounds=1), tmp_path / "a").info["data"]["mean"]


@pytest.mark.slow
def test_modules_of_ones_own_are_found_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_network_module.py").write_text(
        "from torch import nn\nfrom fedbonsai import network\n\n@network('my-own-net')\n"
        "def mine(channels: int, size: int, classes: int):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))\n"
    )
    settings = {**QUICK, "imports": '["my_network_module"]', "model.name": "my-own-net", "rounds": 1}
    execute(recipes.load("fedavg", overrides=settings), tmp_path / "a")
    assert fedbonsai.load(tmp_path / "a").model.arch.name == "my-own-net"


@pytest.mark.slow
def test_from_python(tmp_path):
    run = fedbonsai.run("fedavg", runs=tmp_path, rounds=1, data__clients=4, data__limit=200, name="mine")
    assert run.path == tmp_path / "mine"
    assert fedbonsai.load(run.path).model.arch.name == "cnn-bn"
    again = fedbonsai.run("fedavg", runs=tmp_path, rounds=1, data__clients=4, data__limit=200, name="mine", resume=True)
    assert again.metrics == run.metrics


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", pytest.param("pool", marks=pytest.mark.exhaustive)])
def test_kill_minus_nine_loses_at_most_the_round_in_progress(tmp_path, kind):
    words = ["run", "fedavg", "--rounds", "8", "--data.limit", "200", "--data.clients", "4", "--data.partition", "iid"]
    words += ["--fleet.kind", kind, "--model.name", "mlp", "--quiet"]
    assert main([*words, "--name", "n", "--runs", str(tmp_path / "whole")]) == 0
    killed_and_resumed(words, tmp_path / "killed", "n", ["training-2", "judging-4", "checkpoint-6"])
    a, b = (fedbonsai.load(tmp_path / name / "n") for name in ("whole", "killed"))
    assert (a.path / "model.safetensors").read_bytes() == (b.path / "model.safetensors").read_bytes()
    assert (a.path / "checkpoint/state-7.msg").read_bytes() == (b.path / "checkpoint/state-7.msg").read_bytes()
    assert a.ledger() == b.ledger()
    assert [{**row, "seconds": 0} for row in a.metrics] == [{**row, "seconds": 0} for row in b.metrics]


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path):
    (tmp_path / "moments").mkdir()
    (tmp_path / "moments/training-2").write_text(f"{signal.SIGINT:d}")
    words = ["run", "fedavg", "--rounds", "100000", "--runs", str(tmp_path), "--name", "n"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = started(words, tmp_path / "moments", tmp_path / "n", **pipes)
    out, err = ended(process)
    assert process.returncode == 130
    assert b"fedbonsai run --resume" in err
    assert b"round 1/100000" in out
    assert rounds_of(tmp_path / "n") == 2
    assert json.loads((tmp_path / "n" / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_step_does_not_spoil_the_next_run_of_the_process(tmp_path):
    class Interrupted:
        def begin(self, config, scene, first): ...

        def round(self, row, model):
            torch.set_grad_enabled(False)  # as where it comes while `torch.no_grad` gives back what was
            raise KeyboardInterrupt

        def end(self, rows): ...

    with pytest.raises(KeyboardInterrupt):
        execute(quick(), tmp_path / "a", observers=[Interrupted()])
    assert torch.is_grad_enabled()
    with torch.no_grad():  # nor does a caller who has switched them off
        assert execute(quick(), tmp_path / "a", resume=True).info["status"] == "finished"
        assert not torch.is_grad_enabled()
