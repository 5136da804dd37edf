"""What the seeds say together, against runs with numbers made by hand."""

import io
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
from tests.reports.test_reports import made

from fedbonsai.reports.costs import Table
from fedbonsai.runs import recipes
from fedbonsai.sweeps.figures import figures, numeric
from fedbonsai.sweeps.judged import last, score
from fedbonsai.sweeps.plan import read
from fedbonsai.sweeps.results import Sweep, comma_separated, parquet
from fedbonsai.sweeps.tables import differences, outcomes, remarks, unequal, unlike

PLAN = {
    "runs": [
        {"name": "dense", "recipe": "fedavg", "grid": {}},
        {"name": "pruned", "recipe": "snip"},
        {"name": "fixed", "recipe": "random-mask"},
    ],
    "grid": {"method.density": [0.5, 0.1]},
}
ENDS = {  # accuracy after the last round, by seed
    "dense": (0.90, 0.92, 0.94),
    "pruned-0.5": (0.88, 0.91, 0.94),
    "pruned-0.1": (0.80, 0.84, 0.82),
    "fixed-0.5": (0.70, 0.74, 0.78),
    "fixed-0.1": (0.50, 0.50, 0.53),
}
MOVED = {
    "dense": 4_000_000,
    "pruned-0.5": 2_000_000,
    "pruned-0.1": 500_000,
    "fixed-0.5": 2_000_000,
    "fixed-0.1": 500_000,
}


def swept(plan, trained=None, failed=None, **columns):
    """A sweep of runs of one round with these ends."""
    plan, runs = read({**PLAN, **plan}), {}
    for name, accuracies in ENDS.items():
        for seed, accuracy in enumerate(accuracies):
            if f"{name}-{seed}" in (failed or {}):
                continue
            more = {"trained_examples": [(trained or {}).get(name, 1000)], "parameters": [float(MOVED[name])]}
            run = made(f"{name}-{seed}", [accuracy], MOVED[name] // 2, seed, **more, **columns)
            run.info["status"] = "finished"
            run.info["reason"] = "all rounds done"
            runs[f"{name}-{seed}"] = run
    return Sweep(Path("swept"), plan, runs, failed or {})


def cells(table: Table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.head, row, strict=True)) for row in table.rows}


def test_means_and_intervals_by_hand():
    sweep = swept({})
    (group,) = sweep.groups
    assert (group.data, group.measure.name, group.own) == ("digits", "accuracy", False)
    found = cells(outcomes(sweep, group))
    # t of two degrees of freedom is 4.3027; sd 0.02, 4.3027 x 0.02 / sqrt 3 = 0.0497
    dense = found["dense"]
    assert [dense[key] for key in ("seeds", "accuracy, %: mean", "sd", "95 % interval", "MB", "samples trained")] == [
        "3",
        "92.00",
        "2.00",
        "87.03 to 96.97",
        "4",
        "1,000",
    ]
    # sd 0.03, half 0.0745: the interval would end above 1, where accuracies do
    assert found["pruned-0.5"]["95 % interval"] == "83.55 to 98.45"
    assert list(found) == list(ENDS)


def test_differences_by_hand_and_holm_over_the_rows():
    sweep = swept({"baseline": "fixed"})
    table = cells(differences(sweep, sweep.groups[0]))
    assert {name: row["beside"] for name, row in table.items()} == {
        "pruned-0.5": "fixed-0.5",
        "pruned-0.1": "fixed-0.1",
    }
    # 18, 17, 16 points: mean 17, sd 1, half 4.3027 / sqrt 3 = 2.48; t = 29.44, p = 0.00115
    half = table["pruned-0.5"]
    assert (half["difference, points"], half["95 % interval"]) == ("+17.00", "+14.52 to +19.48")
    assert (half["p"], half["p by Holm"], half["verdict"]) == ("0.001", "0.002", "better")
    # 30, 34, 29 points: mean 31, sd sqrt 7 = 2.646, t = 20.29, p = 0.00242; the larger of two is not doubled
    tenth = table["pruned-0.1"]
    assert (tenth["difference, points"], tenth["95 % interval"]) == ("+31.00", "+24.43 to +37.57")
    assert (tenth["p"], tenth["p by Holm"]) == ("0.002", "0.002")


def test_one_baseline_for_all_and_none_at_all():
    sweep = swept({"baseline": "dense"})
    table = cells(differences(sweep, sweep.groups[0]))
    assert set(table) == set(ENDS) - {"dense"}
    # -2, -1, 0 points: t = 1.73, p = 0.225
    assert (table["pruned-0.5"]["p"], table["pruned-0.5"]["verdict"]) == ("0.225", "open")
    assert table["fixed-0.1"]["verdict"] == "worse"
    assert differences(swept({}), swept({}).groups[0]).rows == []


def test_one_seed_has_no_interval():
    sweep = swept({"baseline": "dense", "seeds": [0]})
    assert cells(outcomes(sweep, sweep.groups[0]))["dense"]["95 % interval"] == ""
    row = cells(differences(sweep, sweep.groups[0]))["pruned-0.5"]
    assert (row["difference, points"], row["95 % interval"], row["verdict"]) == ("-2.00", "", "one seed says nothing")


def test_unequal_work_is_said():
    assert remarks(swept({})) == []
    (said,) = remarks(swept({}, trained={"pruned-0.5": 132, "pruned-0.1": 132, "fixed-0.1": 1009}))
    assert said.startswith("Unequal work: samples that devices trained on, beside the 1,000 of dense: ")
    assert "0.13 times as many by pruned-0.5, pruned-0.1." in said
    assert "fixed" not in said, "less than a hundredth"
    (said,) = remarks(swept({"baseline": "pruned"}, trained={"dense": 500}))
    assert "beside the 1,000 of pruned-0.5: 0.50 times as many by dense." in said
    # seeds may differ among themselves, as their splits do
    assert unequal({"a": {0: 100, 1: 300}, "b": {0: 100, 1: 300}}) == []
    assert "2.00 times as many by b" in unequal({"a": {0: 100, 1: 300}, "b": {0: 200}})[0]
    assert unequal({"a": {}, "b": {}}) == []


def test_unlike_networks_are_said_unless_the_grid_is_about_them():
    assert not any("networks" in text for text in remarks(swept({})))
    found = swept({})
    run = found.runs["fixed-0.1-0"]
    other = replace(run.config, model=replace(run.config.model, name="cnn-bn", options={"norm": "batch"}))
    told = remarks(replace(found, runs={**found.runs, "fixed-0.1-0": replace(run, config=other)}))
    assert told[0].startswith("Unlike networks: dense has cnn-bn, norm = group; fixed-0.1 has cnn-bn, norm = batch.")
    assert unlike({"a": "mlp", "b": "cnn", "c": "", "d": "mlp"}, "b")[0].startswith(
        "Unlike networks: b has cnn; a has mlp; d has mlp."
    )
    assert unlike({"a": "", "b": "cnn"}) == []


def test_what_failed_or_is_not_there_is_said():
    sweep = swept({"seeds": [0, 1, 2, 3]}, failed={"fixed-0.1-2": "no room"})
    assert remarks(sweep) == [
        "fixed-0.1-2 failed and is left out: no room",
        "5 runs are not finished and left out: dense-3, pruned-0.5-3, pruned-0.1-3, fixed-0.5-3, fixed-0.1-3.",
    ]
    row = next(row for row in sweep.rows if (row["variant"], row["seed"]) == ("fixed-0.1", 2))
    assert (row["status"], row["reason"], row["score"]) == ("failed", "no room", None)
    assert cells(outcomes(sweep, sweep.groups[0]))["fixed-0.1"]["seeds"] == "2"


def test_a_score_is_of_the_last_five_judged_rounds():
    run = made("a", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 1, client_p10=[0.0, 0.0, 0.0, 0.0, 0.1, 0.3])
    assert score(run) == pytest.approx(0.4)
    assert last(run) == 0.6
    assert score(run, "client_p10") == pytest.approx(0.08)
    own = made("own", [0.1] * 12, 1, 0, "topk")
    for t, value in ((4, 0.5), (9, 0.8), (11, 0.9)):
        own.metrics[t]["personal_accuracy"] = value
    assert score(own, own=True) == score(own, "personal_accuracy") == pytest.approx(0.85)


def test_measures_of_unlike_data_stand_in_tables_of_their_own():
    sweep = swept({})
    for seed in range(3):
        sweep.runs[f"dense-{seed}"].info["data"] = {"name": "other"}
    assert [(group.data, [each.name for each in group.variants]) for group in sweep.groups] == [
        ("other", ["dense"]),
        ("digits", ["pruned-0.5", "pruned-0.1", "fixed-0.5", "fixed-0.1"]),
    ]


def test_rows_and_rounds_as_frames_and_files():
    sweep = swept({}, seconds=[1.5], note=["words"])
    frame = sweep.frame
    assert frame.groupby("variant")["score"].mean()["dense"] == pytest.approx(0.92)
    assert list(frame[frame.variant == "pruned-0.1"]["method.density"]) == [0.1] * 3
    assert frame["bytes"].sum() == 3 * sum(MOVED.values())
    assert len(sweep.rounds) == 15
    assert set(sweep.rounds["round"]) == {1}
    assert not {"seconds", "note"} & set(sweep.rounds.columns), "wall-clock seconds and words are the run's own"

    again = pandas.read_parquet(io.BytesIO(parquet(sweep.rows)))
    assert list(again.columns) == list(frame.columns)
    assert list(again["score"]) == list(frame["score"])
    assert len(comma_separated(sweep.rows).splitlines()) == 16
    mixed = [{"a": 1, "b": None}, {"a": "x", "b": 0.5}, {"a": None, "b": 2}]
    assert pandas.read_parquet(io.BytesIO(parquet(mixed)))["b"].tolist()[1:] == [0.5, 2.0]


def test_figures_have_the_means_the_intervals_and_the_front():
    sweep = swept({"baseline": "dense"})
    drawn = {each.name: each for each in figures(sweep)}
    assert set(drawn) == {"against-0-method.density", "front-0-bytes", "front-0-parameters"}
    lines = {line["name"]: line for line in drawn["against-0-method.density"].data}
    assert (lines["pruned"]["x"], lines["pruned"]["y"]) == ([0.1, 0.5], [82.0, 91.0])
    assert lines["pruned"]["error_y"]["array"] == [4.968, 7.452]
    assert (lines["dense"]["x"], lines["dense"]["y"]) == ([0.1, 0.5], [92.0, 92.0]), "a level line"
    points = {line["name"]: line for line in drawn["front-0-bytes"].data}
    assert (points["Pareto front"]["x"], points["Pareto front"]["y"]) == ([0.5, 2.0, 4.0], [82.0, 91.0, 92.0])
    assert points["fixed"]["hovertext"] == ["fixed-0.5", "fixed-0.1"]
    assert points["fixed"]["text"] == ["", ""], "only the front has names in the plot"


def test_only_numbers_with_two_values_are_axes():
    plan = read(
        {
            "runs": [{"recipe": "snip"}],
            "grid": {"a": [1, 2], "b": ["x", "y"], "c": [3], "d": [True, False], "e": [1, "all"]},
        }
    )
    assert numeric(plan.variants) == ["a"]


def test_lower_is_better_where_it_is():
    sweep = swept({"baseline": "dense", "metric": "loss"}, loss=[0.5])
    assert sweep.groups[0].measure.better == "lower"
    assert cells(differences(sweep, sweep.groups[0]))["pruned-0.5"]["difference"] == "+0"
    assert recipes.load("fedavg").objective.measure.better == "higher"
