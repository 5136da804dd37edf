"""The measure that decides is followed by a run, its files and every verb, whatever is learned."""

import json
import math
import re
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import tomli_w
import torch
from tests.reports.test_reports import made
from tests.tasks import BINARY, GRU, LANGUAGE, REGRESSION, SQUARE, TASKS

from fedbonsai.cli import main
from fedbonsai.core import Scope, scope
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.objectives import MEASURES, Binary, Classification, Measure, Multilabel, Regression, Tokens
from fedbonsai.reports.costs import outcomes, to_goal
from fedbonsai.reports.figures import figures, window
from fedbonsai.reports.files import KINDS, write
from fedbonsai.reports.series import AXES, goal_of, together
from fedbonsai.runs import recipes
from fedbonsai.runs.compare import plan
from fedbonsai.runs.run import execute, load
from fedbonsai.runs.setup import clients, run_context
from fedbonsai.runs.writers import scalars
from fedbonsai.stages.personal import Evaluate, evaluated
from fedbonsai.stages.pruning.derived_masks import Derived, Rule
from fedbonsai.training.evaluate import evaluate, evaluate_each

ROUNDS = AXES[0]


def runs_of(task, monkeypatch, folder, **more):
    monkeypatch.setattr("fedbonsai.data.load", lambda config, seed: task.data())
    return execute(task.config(**more), folder)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS, ids=str)
def test_every_task_runs_and_is_reported(task, monkeypatch, tmp_path, capsys):
    run = runs_of(task, monkeypatch, tmp_path / "runs" / "a")
    last, measure, data = run.metrics[-1], task.objective.measure, task.data()
    held = run.model
    assert held.arch.objective == task.objective.of(data.samples.y), "with what it knew of the training targets"
    score = evaluate(held, data.test)
    assert {name: last[name] for name in score.measures} == score.measures
    assert {*task.objective.measures} <= scalars(last).keys()
    assert run.score == score.value == last[measure.name]
    floor = run.info["data"]["floor"]["value"]
    assert measure.reached(run.score, floor)
    assert run.score != floor
    low = ("client_min", "client_p10") if measure.better == "higher" else ("client_min", "client_median", "client_p90")
    ends = [last[name] for name in (*low, "client_max")]
    assert ends == sorted(ends)
    assert f"valid_{measure.name}" in last
    assert bool(run.info["confusion"]) == (task.objective.choice_name == "classification")
    if run.info["confusion"]:
        table = run.info["confusion"]
        assert sum(map(sum, table)) == len(data.test)
        assert sum(row[i] for i, row in enumerate(table)) / len(data.test) == pytest.approx(last["accuracy"])
    series = together([run])
    for kind in KINDS:
        write(tmp_path / f"report{kind}", series, series[0], goal_of(series[0]))
    page = (tmp_path / "report.html").read_text()
    assert f"reaches {measure.words}" in page
    plots = json.loads(re.search(r"const PLOTS = (.*);\n", page)[1])
    assert {f"{measure.name}-rounds", "fairness"} <= plots.keys()
    assert plots[f"{measure.name}-rounds"]["layout"]["yaxis"]["title"]["text"].startswith(f"test {measure.words}")
    assert ("confusion-a" in plots) == bool(run.info["confusion"])
    assert f"Outcome; {measure.words} is the mean" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.csv").read_text().startswith(f"run,axis,value,{measure.name},lowest,highest\n")
    capsys.readouterr()
    assert main(["watch", str(run.path), "--once"]) == 0
    assert f"(best {measure.plain(measure.best(row[measure.name] for row in run.metrics))})" in capsys.readouterr().out
    assert main(["ls", "runs", "--runs", str(tmp_path / "runs")]) == 0
    assert f"3 rounds, {measure.words} {measure.plain(run.score)}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_target_is_reached_from_above_where_lower_is_better(monkeypatch, tmp_path):
    run = runs_of(REGRESSION, monkeypatch, tmp_path / "a", target=6.0, rounds=9)
    assert run.info["reason"] == "target reached"
    assert [row["valid_rmse"] <= 6.0 for row in run.metrics] == [False] * (len(run.metrics) - 1) + [True]
    assert len(run.metrics) < 9


def test_targets_that_a_measure_cannot_have():
    for task, target, want in (
        (SQUARE, 95, "target = 95.0: expected an accuracy between 0 and 1"),
        (SQUARE, -0.1, "target = -0.1: expected an accuracy between 0 and 1"),
        (BINARY, 2, "target = 2.0: expected an auroc between 0 and 1"),
        (REGRESSION, -3, "target = -3.0: expected a rmse, which is at least 0"),
    ):
        with pytest.raises(ConfigError, match=want):
            task.config(target=target)
    assert replace(REGRESSION.config(), objective=Regression(metric="r2"), target=-1.5).target == -1.5


@pytest.mark.slow
def test_the_last_line_of_a_run_names_its_measure(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("fedbonsai.data.load", lambda config, seed: REGRESSION.data())
    words = [f"--model.name={REGRESSION.network}", "--objective.name", "regression", "--rounds", "2"]
    assert main(["run", "fedavg", *words, "--runs", str(tmp_path), "--name", "a"]) == 0
    out = capsys.readouterr().out
    run = load(tmp_path / "a")
    assert f"\nrmse {run.score:.4g} on the test set after 2 rounds" in out
    assert re.search(r"round 1/2  rmse [\d.]+  loss ", out)
    with pytest.raises(ConfigError, match="'regression' has no accuracy: take `score`, which is rmse"):
        _ = run.accuracy


def lower(name: str, values: list[float], seed: int = 0, **columns: list):
    """A run that is judged by rmse."""
    run = made(name, [0.0] * len(values), 1_000_000, seed, **columns)
    rows = [
        {key: item for key, item in row.items() if key != "accuracy"} | {"rmse": value}
        for row, value in zip(run.metrics, values, strict=True)
    ]
    return replace(run, metrics=rows, config=replace(run.config, objective=Regression()))


def test_curves_and_costs_where_lower_is_better():
    ends = {"client_min": [1.0] * 3, "client_median": [2.0] * 3, "client_p90": [3.0] * 3, "client_max": [4.0] * 3}
    series = together([lower("a-0", [9.0, 5.0, 4.0], **ends), lower("a-1", [9.0, 4.0, 4.0], 1, **ends)])
    assert len(series) == 1
    both = series[0]
    assert both.curve(ROUNDS)[1] == (2, 4.5, 4.0, 5.0)
    assert (both.to(5.0, ROUNDS), both.to(4.0, ROUNDS), both.to(3.0, ROUNDS)) == (2, 2.5, None)
    assert goal_of(both) == pytest.approx(both.final()[0] * 1.02), "2 % worse, since it has no points"
    assert "test rmse 5.95 (2 % worse than a ends with)" in to_goal(series, both, goal_of(both)).title
    assert outcomes(series).head[2] == "test rmse"
    assert outcomes(series).rows[0][2] == "5.833 ± 0.2357"
    drawn = {figure.name: figure for figure in figures(series, {})}
    assert drawn["rmse-rounds"].layout["yaxis"]["title"]["text"] == "test rmse"
    assert "Lower is better" in drawn["rmse-rounds"].text
    place = drawn["fairness"].data[0]
    assert dict(zip(place["y"], place["x"], strict=True)) == {
        "worst": 4.0,
        "tenth from the worst": 3.0,
        "median": 2.0,
        "best": 1.0,
    }


def test_the_goal_of_a_share_is_one_point_less_and_the_window_shows_the_ends():
    series = together([made("a", [0.5, 0.9], 1)])
    assert goal_of(series[0]) == pytest.approx(0.69)
    assert "Costs to 69.0 % test accuracy (1 point worse than a ends with)" in to_goal(series, series[0], 0.69).title
    assert "worse" not in to_goal(series, series[0], 0.6).title
    assert window(MEASURES["accuracy"], [0.9, 0.8]) == {"range": [55.0, 101.0]}
    assert window(MEASURES["rmse"], [2.0, 3.0]) == {"range": [1.6, 4.5]}
    assert window(Measure("own", "higher"), [2.0]) == {}


def test_runs_that_are_judged_unlike_are_not_compared(tmp_path):
    with pytest.raises(ConfigError, match="different measures, a by accuracy, b by rmse: compare those of one"):
        together([made("a", [0.5], 1), lower("b", [3.0])])
    other = tmp_path / "other.toml"
    other.write_text(recipes.text("fedavg") + '\n[objective]\nmetric = "macro_f1"\n')
    with pytest.raises(
        ConfigError, match=r"fedavg is judged by accuracy, .*other\.toml by macro_f1: set --objective.metric"
    ):
        plan(["fedavg", str(other)], 1, tmp_path, {})
    assert len(plan(["fedprox", str(other)], 1, tmp_path, {"objective.metric": "macro_f1"})) == 2
    assert main(["compare", "fedavg", "--target", "70", "--objective.name", "regression", "--plan"]) == 0
    assert main(["compare", "fedavg", "--target", "70", "--plan"]) == 2


@pytest.mark.slow
def test_runs_of_before_load_report_and_compare(monkeypatch, tmp_path, capsys):
    run = runs_of(SQUARE, monkeypatch, tmp_path / "old-0")
    runs_of(SQUARE, monkeypatch, tmp_path / "new-0", rounds=2)
    table = tomllib.loads((run.path / "config.toml").read_text())
    del table["objective"]
    (run.path / "config.toml").write_text(tomli_w.dumps(table))
    rows = [{k: v for k, v in row.items() if k not in ("macro_f1", "balanced_accuracy")} for row in run.metrics]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    info = json.loads((run.path / "run.json").read_text())
    del info["confusion"], info["metric"], info["data"]["floor"], info["arch"]["objective"], info["arch"]["trainable"]
    info["data"]["majority"] = {"class": "lying", "accuracy": 0.375}
    (run.path / "run.json").write_text(json.dumps(info))
    old = load(run.path)
    assert (old.accuracy, old.score, old.model.arch) == (run.accuracy, run.score, run.model.arch)
    series = together([old, load(tmp_path / "new-0")])
    assert [each.label for each in series] == ["old", "new"]
    write(tmp_path / "report.html", series, series[0], goal_of(series[0]))
    assert "Always answering &#x27;lying&#x27; reaches accuracy 37.5 % on" in (tmp_path / "report.html").read_text()
    for words in (["watch", str(old.path), "--once"], ["ls", "runs", "--runs", str(tmp_path)]):
        assert main(words) == 0
    assert f"old-0  finished, 3 rounds, accuracy {old.accuracy:.4f}" in capsys.readouterr().out


def test_personal_models_are_judged_by_the_measure_and_the_bad_end():
    data, model = REGRESSION.data(), REGRESSION.model()
    people = clients(data)
    with scope(LocalFleet(people), Scope("r", 0, 0, 0)) as open_:
        request = Evaluate(model.arch, model.weights, None, Rule(), Derived())
        found = evaluated(open_, dict.fromkeys(open_.devices, request))
    scores = [evaluate(model, person.valid).value for person in people]
    assert found.figures() == {
        "personal_rmse": pytest.approx(sum(scores) / 4),
        "personal_p90": max(scores),
        "masked_rmse": pytest.approx(sum(scores) / 4),
        "masked_p90": max(scores),
        "personal_loss": found.loss,
    }


@pytest.mark.slow
def test_devices_on_which_a_measure_has_no_meaning_do_not_count():
    data, model = BINARY.data(), BINARY.model()
    people = clients(data)
    alike = people[0].valid[people[0].valid.y == 0]
    people[0] = replace(people[0], valid=alike)
    request = Evaluate(model.arch, model.weights, None, Rule(), Derived())
    with scope(LocalFleet(people), Scope("r", 0, 0, 0)) as open_:
        found = evaluated(open_, dict.fromkeys(open_.devices, request))
    assert found.devices == 3
    assert found.dense == pytest.approx(sum(evaluate(model, person.valid).value for person in people[1:]) / 3)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_what_always_answers_the_same_is_the_best_of_its_kind(task):
    y = task.data().test.y
    answers = task.objective.constant(y)
    assert len(answers) == len(y)
    assert bool((answers == answers[0]).all())
    found = task.objective.measured(answers, y)[task.objective.metric]
    assert math.isfinite(found)


def test_constant_answers_by_hand():
    import torch

    y = torch.tensor([0.0, 0.0, 3.0])
    assert Regression().constant(y).flatten().tolist() == [1.0] * 3
    assert Regression(metric="mae").constant(y).flatten().tolist() == [0.0] * 3
    assert Classification().constant(torch.tensor([2, 0, 2])).tolist() == [2, 2, 2]
    assert Tokens().constant(torch.tensor([[-1, -1, 1]])).tolist() == [[1, 1, 1]]
    assert Multilabel().constant(torch.tensor([[1, 0], [1, 1]])).tolist() == [[1.0, 0.5]] * 2
    assert Binary().constant(torch.tensor([1, 0])).tolist() == [0.5, 0.5]


def test_best_and_worst_know_the_direction_and_leave_out_what_has_no_meaning():
    rmse, accuracy = MEASURES["rmse"], MEASURES["accuracy"]
    values = [3.0, math.nan, 1.0]
    assert (rmse.best(values), rmse.worst(values)) == (1.0, 3.0)
    assert (accuracy.best(values), accuracy.worst(values)) == (3.0, 1.0)
    assert math.isnan(rmse.best([math.nan]))
    assert GRU.objective.measure.words == "macro f1"


def test_names_of_classes_are_no_quantities(monkeypatch):
    monkeypatch.setattr("fedbonsai.data.load", lambda *_: SQUARE.data())
    config = SQUARE.config("fedavg", **{"objective": {"name": "regression"}})
    with pytest.raises(ConfigError, match=r"classes by name \(lying, standing, aslant\).*set it to classification"):
        run_context(config)


def test_each_client_has_a_perplexity_of_its_own():
    model, parts = LANGUAGE.model(), LANGUAGE.data().valid
    model = replace(model, arch=replace(model.arch, objective=Tokens(metric="perplexity")))
    whole, each = evaluate_each(model, parts)
    assert each == [evaluate(model, part).measures["perplexity"] for part in parts]
    assert len(set(each)) == len(parts)
    assert whole.value == math.exp(whole.loss)


ANSWERS = {  # outputs and targets of nine samples
    Binary: (lambda r: r.standard_normal((9, 1)), lambda r: r.integers(0, 2, 9)),
    Multilabel: (lambda r: r.standard_normal((9, 3)), lambda r: r.integers(0, 2, (9, 3))),
    Classification: (lambda r: r.standard_normal((9, 4)), lambda r: r.integers(0, 4, 9)),
    Regression: (lambda r: r.standard_normal((9, 2)), lambda r: r.standard_normal((9, 2))),
    Tokens: (lambda r: r.standard_normal((9, 5, 4)), lambda r: r.integers(-1, 4, (9, 5))),
}


@pytest.mark.parametrize(
    ("kind", "metric"), [(kind, metric) for kind in ANSWERS for metric in kind.measures if metric != "perplexity"]
)
def test_measures_of_many_parts_at_once_are_those_of_each(kind, metric):
    objective, random = kind(metric=metric), np.random.default_rng(3)
    outputs, y = (torch.from_numpy(make(random)) for make in ANSWERS[kind])
    answers, lengths = objective.answers(outputs), [1, 3, 0, 5]
    parts = zip(answers.split(lengths), y.split(lengths), strict=True)
    one_by_one = [objective.measured(*part)[metric] for part in parts]
    assert objective.each(answers, y, lengths) == pytest.approx(one_by_one, rel=1e-14, nan_ok=True)
    assert math.isnan(one_by_one[2])


def test_parts_by_hand():
    accuracy = Classification().each(torch.tensor([1, 0, 2, 2]), torch.tensor([1, 1, 2, 0]), [1, 3])
    assert accuracy == [1.0, 1 / 3]
    assert Regression(metric="rmse").each(torch.tensor([[1.0], [5.0]]), torch.tensor([1.0, 2.0]), [1, 1]) == [0.0, 3.0]
    # of two places that count one is right; where none counts there is nothing to say
    tokens = Tokens().each(torch.tensor([[1, 2, 3], [1, 1, 1]]), torch.tensor([[1, 0, -1], [-1, -1, -1]]), [1, 1])
    assert tokens[0] == 0.5
    assert math.isnan(tokens[1])
