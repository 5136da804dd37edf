"""The experiments' plans, results that are collected from sweeps, and verdicts on what papers report."""

import json
from pathlib import Path

import pytest
from experiments import collect, plans, table, task_table
from experiments.reported import Claim, Reported, judgement, statement, statements, verdict

from fedbonsai import load
from fedbonsai.sweeps.configured import jobs_of

ROOT = Path(__file__).parents[1]

PLAN = """
format = 1
seeds = [0, 1]

[settings]
rounds = 2
"data.limit" = 200
"data.clients" = 2
"model.name" = "mlp"

[[runs]]
recipe = "fedavg"
[[runs]]
recipe = "snip"
grid = { "method.density" = [0.5] }
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A small experiment in place of the committed ones."""
    (tmp_path / "experiments" / "small").mkdir(parents=True)
    (tmp_path / "experiments" / "small" / "plan.toml").write_text(PLAN)
    for module in (plans, collect):
        monkeypatch.setattr(module, "HERE", tmp_path / "experiments")
    plans.plan_of.cache_clear()
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "experiments" / "small"
    plans.plan_of.cache_clear()


@pytest.mark.slow
def test_what_has_no_result_is_swept_and_collected_once(plan, monkeypatch, capsys):
    (plan / "results").mkdir()
    (plan / "results" / "fedavg-0.json").write_text("{}")
    assert collect.missing("small") == {0: ["snip-0.5"], 1: ["fedavg", "snip-0.5"]}
    assert collect.run_missing(1.0, Path("runs")) == 0
    assert collect.missing("small") == {}
    assert (plan / "results" / "fedavg-0.json").read_text() == "{}", "what is there stays as it is"
    assert not Path("runs/small/fedavg-0").exists()
    run, found = load("runs/small/snip-0.5-1"), json.loads((plan / "results" / "snip-0.5-1.json").read_text())
    assert (found["name"], found["seed"], found["recipe"], found["preset"]) == ("snip-0.5", 1, "snip", "modern")
    assert found["settings"]["method.density"] == 0.5
    assert found["trained examples"] == sum(row["trained_examples"] for row in run.metrics) > 0
    assert (found["accuracy"], found["bytes"], found["kinds"]) == (run.score, run.bytes, run.info["kinds"])
    assert found["last five"] == (run.metrics[0]["accuracy"] + run.metrics[1]["accuracy"]) / 2
    assert [point[0] for point in found["curve"]] == [1, 2]
    assert len(found["method metrics"]["density"]) == 2
    committed = json.loads((ROOT / "experiments/tasks/results/fsdd-fedavg-0.json").read_text())
    assert found.keys() == committed.keys() | {"trained examples"}
    assert collect.run_missing(1.0, Path("runs")) == 0
    assert "wrote" in capsys.readouterr().out


def rows(**accuracies):
    """Results of rows with an accuracy for each seed; each moves a megabyte up and one down, `small` a quarter."""
    return {
        name: [
            {"seed": seed, "last five": value, "bytes": dict.fromkeys(("up", "down"), 250 if name == "small" else 1000)}
            for seed, value in enumerate(values)
        ]
        for name, values in accuracies.items()
    }


def held(claim, name, found):
    score, size = (lambda result: 100 * result["last five"]), (lambda result: result["size"])
    return verdict(Reported([name], "", "", claim), name, found, score, size)


def test_a_row_that_contradicts_says_so():
    found = rows(base=[0.90, 0.91, 0.92], worse=[0.85, 0.86, 0.87], near=[0.88, 0.92, 0.90], small=[0.9, 0.9, 0.9])
    claim = Claim(["base"], least=-0.3)
    assert held(claim, "worse", found) == "contradicts: -5.00 ± 0.00 points beside base"
    # -2, +1, -2 points: mean -1, deviation sqrt(3), half of the interval 4.303
    assert (
        held(claim, "near", found) == "contradicts on average, not beyond the interval: -1.00 ± 4.30 points beside base"
    )
    assert held(Claim(["base"], most=0.0), "worse", found).startswith("agrees: ")
    assert (
        held(Claim(["base"], "bytes", least=3.9), "small", found) == "agrees: 4.00 ± 0.00 times fewer bytes beside base"
    )


def test_the_best_of_several_is_stood_beside_and_one_seed_decides_nothing():
    found = {
        "a-1": [],
        **{key.replace("_", "-"): value for key, value in rows(b_1=[0.8], c_1=[0.9], mine_1=[0.85]).items()},
    }
    said = held(Claim(["a-*", "b-*", "c-*"], least=0.0), "mine-1", found)
    assert said == "contradicts in one seed: -5.00 points beside c-1"
    assert held(Claim(["gone"]), "mine-1", found) == "not run beside gone"
    assert judgement(1.0, float("inf"), Claim(["x"], least=0.0)) == "agrees in one seed"


def test_a_row_is_held_against_those_of_its_own_size():
    found = rows(**{"big-0.1": [0.9, 0.9], "base-0.1": [0.5, 0.5], "base-0.4": [0.95, 0.95], "late-0.1": []})
    for name, size in (("big-0.1", 400), ("base-0.1", 100), ("base-0.4", 450)):
        found[name] = [{**result, "size": size} for result in found[name]]
    beside = Claim(["base-*", "late-*"], least=0.0)
    assert held(beside, "big-0.1", found) == "agrees: +40.00 ± 0.00 points beside base-0.1"
    said = held(Claim(["base-*", "late-*"], least=0.0, equal="parameters"), "big-0.1", found)
    assert said == "contradicts: -5.00 ± 0.00 points beside base-0.4 (400 parameters against 450)"
    assert held(Claim(["late-*"], equal="parameters"), "big-0.1", found) == "not run beside late-*"


def test_a_gain_at_the_end_is_of_a_round():
    curve = [[2 * t, 0.5 + 0.01 * t, 0, 0] for t in range(20)]
    assert table.gain({"curve": curve}) == pytest.approx(0.5)


def test_committed_results_count_rounds_where_they_say_rounds():
    for experiment, name, results in table.groups():
        for result in results:
            lost = result["skipped rounds"]
            assert isinstance(lost, int), f"{experiment}/{name}"
            assert 0 <= lost <= result["curve"][-1][0], f"{experiment}/{name}"
            for values in result["method metrics"].values():  # a round that is skipped has none
                assert not values or len(values) + lost >= len(result["curve"]), f"{experiment}/{name}"


def test_statements_are_of_rows_that_plans_have():
    for experiment in plans.experiments():
        names = {each.name for each in plans.plan_of(experiment).variants}
        for each in statements(experiment):
            assert set(each.rows) & names, f"{experiment}: no row of {each.rows} is in its plan"
            assert each.says.endswith(".")
            assert each.where


@pytest.mark.slow
def test_every_plan_can_be_carried_out_as_far_as_its_settings_say(tmp_path):
    data = tmp_path / "data"
    for experiment in plans.experiments():
        plan = plans.plan_of(experiment)
        for variant in plan.variants:
            (data / str(variant.settings.get("data.name", "digits"))).mkdir(parents=True, exist_ok=True)
        jobs = jobs_of(plan, tmp_path / experiment, data)
        assert len(jobs) == sum(len(variant.seeds) for variant in plan.variants)
        assert plans.highlights(experiment) <= {variant.name for variant in plan.variants}


def test_every_method_has_a_statement_somewhere_in_the_tables():
    found = {results[0]["recipe"] for name, row, results in table.groups() if statement(name, row)}
    assert {"fl-pqsu", "prunefl", "fedtiny", "wireless-pruning", "sparse-collaborative"} <= found


def test_an_interval_of_accuracies_ends_where_accuracies_do():
    rows = {name: results for _, name, results in table.groups()}
    few = [{**result, "last five": accuracy} for result, accuracy in zip(rows["fedavg"], (0.1, 0.5, 0.9), strict=False)]
    assert len(few) == 3
    assert table.row("pruning", "fedavg", few)["95 % interval"] == "0.0 to 100.0"


def test_what_a_system_lost_is_of_the_same_seeds_and_the_same_parts(monkeypatch):
    monkeypatch.setattr(task_table, "GOALS", {"a": 85.0})

    def result(name, seed, score, size, **metrics):
        some = {"name": name, "seed": seed, "metric": "accuracy", "commit": "c", "method metrics": metrics}
        return some | {"curve": [[1, 0.1, 0, 0], [2, score, 0, 0]], "bytes": {"up": size, "down": size}}

    base = [
        result("a-fedavg", 0, 0.9, 4e6, simulated_seconds=[1.0, 20.0], valid_accuracy=[0.5, 0.95]),
        result("a-fedavg", 1, 0.8, 4e6),
    ]
    pruned = [result("a-pruned", 0, 0.85, 1e6, simulated_seconds=[2.0, 5.0])]
    own = [result("a-own", 0, 0.2, 2e6, personal_accuracy=[0.5, 0.99])]
    names = ["a-fedavg", "a-pruned", "a-absent", "a-own"]
    lines = [text.strip("| ").split(" | ") for text in task_table.tasks(names, base + pruned + own)[-3:]]
    assert [cells[0] for cells in lines] == ["a-fedavg", "a-pruned", "a-own †"]
    assert [cells[3] for cells in lines] == ["85.00 ± 7.07", "85.00", "99.00"]
    assert [cells[4] for cells in lines] == ["85: 1", "", ""], "one seed of two"
    assert [cells[5] for cells in lines] == ["", "-5.00", "+4.00"], "of seed 0 alone; of the validation parts"
    assert [cells[8:10] for cells in lines] == [["1.000", "20.0"], ["0.250", "5.0"], ["0.500", ""]]
