"""The experiments' plans, what is left of them within a bound of time, and verdicts on what papers report."""

import json
import os
import signal

import pytest
from experiments import every, run, table
from experiments.reported import Claim, Reported, judgement, statement, statements, verdict

PLAN = """
seeds = [0, 1]

[settings]
rounds = 1
"data.limit" = 200
"data.clients" = 2
"model.name" = "mlp"

[[runs]]
name = "fedavg"
recipe = "fedavg"
"""


@pytest.fixture
def plans(tmp_path, monkeypatch):
    """A folder with one small experiment in place of the committed ones."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "plan.toml").write_text(PLAN)
    for module in (run, every):
        monkeypatch.setattr(module, "HERE", tmp_path)
    run.plan_of.cache_clear()
    every.taken.cache_clear()
    yield tmp_path
    run.plan_of.cache_clear()
    every.taken.cache_clear()


def test_the_plan_knows_seconds_from_finished_runs(plans, capsys):
    assert [each.seconds for each in every.left(["small"])] == [every.UNKNOWN, every.UNKNOWN]
    (plans / "small" / "results").mkdir()
    (plans / "small" / "results" / "fedavg-0.json").write_text(json.dumps({"name": "fedavg", "seconds": 7.0}))
    every.taken.cache_clear()
    left = every.left(["small"])
    assert [(each.name, each.seconds) for each in left] == [("small/fedavg seed 1", 7.0)]
    every.tell(["small"], left, 1)
    assert "1 runs left" in capsys.readouterr().out


def test_no_run_begins_that_would_end_too_late(plans, capsys):
    left = every.left(["small"])
    assert every.carry_out(left, every.UNKNOWN / 3600 / 2, 1) == 0
    assert not (plans / "small" / "results").exists()
    assert "2 runs would not end" in capsys.readouterr().out


def killed_or_done(name, recipe, preset, settings, seed, target):
    """A run of which one is killed, as by a system without memory."""
    if name == "none":
        os.kill(os.getpid(), signal.SIGKILL)
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"name": name, "seconds": 1.0}))
    return name


def test_a_killed_process_stops_no_other_run(plans, monkeypatch, capsys):
    (plans / "small" / "plan.toml").write_text(
        PLAN.replace("[[runs]]", '[[runs]]\nname = "none"\nrecipe = "x"\n\n[[runs]]')
    )
    run.plan_of.cache_clear()
    monkeypatch.setattr(every, "one", killed_or_done)
    left = every.left(["small"])
    assert [each.job[0] for each in left] == ["none", "fedavg"] * 2
    assert every.carry_out(left, 1.0, 1) == 2
    assert sorted(file.name for file in (plans / "small" / "results").iterdir()) == ["fedavg-0.json", "fedavg-1.json"]
    assert capsys.readouterr().err.count("failed: small/none") == 2


@pytest.mark.slow
def test_what_is_finished_is_never_run_again_and_a_failure_stops_nothing(plans, capsys):
    (plans / "small" / "plan.toml").write_text(PLAN + '\n[[runs]]\nname = "none"\nrecipe = "no-such-recipe"\n')
    run.plan_of.cache_clear()
    assert every.carry_out(every.left(["small"]), 1.0, 1) == 2
    results = sorted(file.name for file in (plans / "small" / "results").glob("*"))
    assert results == ["fedavg-0.json", "fedavg-1.json"]
    assert "no-such-recipe" in capsys.readouterr().err
    every.taken.cache_clear()
    assert [each.job[0] for each in every.left(["small"])] == ["none", "none"]


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
    for experiment in run.experiments():
        names = {each["name"] for each in run.runs_of(run.plan_of(experiment))}
        for each in statements(experiment):
            assert set(each.rows) & names, f"{experiment}: no row of {each.rows} is in its plan"
            assert each.says.endswith(".")
            assert each.where


def test_every_method_has_a_statement_somewhere_in_the_tables():
    found = {results[0]["recipe"] for name, row, results in table.groups() if statement(name, row)}
    assert {"fl-pqsu", "prunefl", "fedtiny", "wireless-pruning", "sparse-collaborative"} <= found


def test_an_interval_of_accuracies_ends_where_accuracies_do():
    rows = {name: results for _, name, results in table.groups()}
    few = [{**result, "last five": accuracy} for result, accuracy in zip(rows["fedavg"], (0.1, 0.5, 0.9), strict=False)]
    assert len(few) == 3
    assert table.row("pruning", "fedavg", few)["95 % interval"] == "0.0 to 100.0"
