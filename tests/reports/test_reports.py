"""Curves and costs against hand-made metrics; files and the page from real runs; the page in a real browser."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

import fedbonsai
from fedbonsai.errors import ConfigError
from fedbonsai.reports.anatomy import layers, remaining
from fedbonsai.reports.costs import measured, outcomes, to_goal
from fedbonsai.reports.files import KINDS, curves, kind_of, write
from fedbonsai.reports.page import embedded
from fedbonsai.reports.series import AXES, Series, baseline, cautions, goal_of, together
from fedbonsai.reports.terminal import show
from fedbonsai.runs import recipes
from fedbonsai.runs.run import Run
from tests.browser import figures_of

AXIS = {axis.name: axis for axis in AXES}


def made(name: str, accuracies: list[float], up: int, seed: int = 0, recipe: str = "fedavg", **columns: list) -> Run:
    """A run with these accuracies after each round; each round moves ``up`` bytes up and as many down."""
    rows = [
        {"round": t, "skipped": False, "accuracy": a, "total_bytes_up": up * (t + 1), "total_bytes_down": up * (t + 1)}
        | {key: values[t] for key, values in columns.items()}
        for t, a in enumerate(accuracies)
    ]
    config = recipes.load(recipe, "", {"seed": seed})
    info = {"data": {"name": "digits"}, "versions": {"torch": "2"}, "machine": {"cores": 2}, "commit": "abc"}
    return Run(Path(name), config, info, rows)


def test_seeds_of_one_configuration_are_one_series():
    runs = [made("a-0", [0.5, 0.9], 10, 0), made("b", [0.4], 1, 0, "topk"), made("a-1", [0.7, 0.7], 10, 1)]
    series = together(runs)
    assert [(each.label, len(each.runs)) for each in series] == [("a", 2), ("b", 1)]
    assert series[0].curve(AXIS["rounds"]) == [(1, 0.6, 0.5, 0.7), (2, pytest.approx(0.8), 0.7, 0.9)]
    assert [x for x, *_ in series[0].curve(AXIS["bytes"])] == pytest.approx([20e-6, 40e-6])
    mean, deviation = series[0].final()
    assert (mean, deviation) == (pytest.approx(0.7), pytest.approx(0.0, abs=1e-12))


def test_costs_to_a_goal_by_hand():
    dense = Series("dense", (made("dense", [0.5, 0.8, 0.9], 1_000_000),))
    small = Series("small", (made("small", [0.5, 0.6, 0.7, 0.85], 100_000),))
    assert goal_of(dense, 0.8) == 0.8
    assert (dense.to(0.8, AXIS["bytes"]), small.to(0.8, AXIS["bytes"])) == (4.0, pytest.approx(0.8))
    assert dense.to(0.95, AXIS["bytes"]) is None
    rows = to_goal([dense, small], dense, 0.8).rows
    assert rows == [["dense", "2", "1.00", "4", "1.00"], ["small", "4", "0.50", "0.8", "5.00"]]


def test_a_goal_counts_as_reached_only_if_every_seed_reaches_it():
    both = Series("x", (made("x-0", [0.5, 0.9], 1), made("x-1", [0.5, 0.6], 1, 1)))
    assert both.to(0.8, AXIS["rounds"]) is None
    assert both.to(0.55, AXIS["rounds"]) == 2


def test_parameters_left_are_those_of_the_last_round():
    pruned = made("pruned", [0.5, 0.6], 1, 0, "fedtiny", parameters=[2000.0, 1234.0])
    table = outcomes(together([made("not yet ended", [0.5, 0.6], 1), pruned]))
    assert [row[table.head.index("parameters left")] for row in table.rows] == ["", "1,234"]


def test_only_axes_with_figures_are_shown():
    plain, timed = (
        made("plain", [0.5], 1),
        made("timed", [0.5], 1, 0, "topk", simulated_seconds=[3.0], total_joules=[7.0]),
    )
    assert [axis.name for axis in measured(together([plain]))] == ["rounds", "bytes"]
    assert [axis.name for axis in measured(together([plain, timed]))] == ["rounds", "bytes", "seconds", "energy"]
    table = outcomes(together([plain, timed]))
    assert table.rows[0][table.head.index("J")] == ""
    assert table.rows[1][table.head.index("simulated s")] == "3"


def test_layers_come_from_the_metrics():
    run = made("p", [0.5, 0.6], 1, layers=[{"a": 1.0, "b": 0.5}, {"a": 0.25, "b": 0.5}])
    found = layers(run)
    assert (list(found.rounds), list(found.names)) == ([1, 2], ["a", "b"])
    assert [list(row) for row in found.kept] == [[1.0, 0.25], [0.5, 0.5]]
    assert layers(made("d", [0.5], 1)).kept == []


def test_faults_are_named(tmp_path):
    with pytest.raises(ConfigError, match="no evaluated round"):
        together([made("none", [], 1)])
    with pytest.raises(ConfigError, match="same configuration and seed"):
        together([made("a", [0.5], 1), made("b", [0.5], 1)])
    series = together([made("a", [0.5], 1)])
    with pytest.raises(ConfigError, match="no run 'z' to compare with; there are a"):
        baseline(series, "z")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        goal_of(series[0], 95)
    with pytest.raises(ConfigError, match=r"\.html, \.png, \.svg, \.csv, \.md"):
        write(tmp_path / "report.pdf", series, series[0], 0.5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two dense runs that differ in the seed, and one that prunes."""
    home = tmp_path_factory.mktemp("runs")
    small = {"rounds": 3, "data__clients": 3, "data__limit": 200}
    return [
        *(fedbonsai.run("fedavg", runs=home, name=f"fedavg-{seed}", seed=seed, **small) for seed in (0, 1)),
        fedbonsai.run("fedtiny", runs=home, name="fedtiny", **small),
    ]


@pytest.mark.slow
def test_every_kind_of_file(runs, tmp_path):
    series = together(runs)
    for kind in KINDS:
        write(tmp_path / f"report{kind}", series, series[0], goal_of(series[0], 0.2), "A <title>")
    text = (tmp_path / "report.html").read_text()
    assert "A &lt;title&gt;" in text
    plots = json.loads(re.search(r"const PLOTS = (.*);\n", text)[1])
    assert {"accuracy-rounds", "accuracy-bytes", "size", "bytes"} <= plots.keys()
    drawn = {trace.get("name") for trace in plots["accuracy-rounds"]["data"]} - {None}
    assert drawn == {"fedavg", "fedtiny"}
    styles = [(t["line"]["dash"], t["marker"]["symbol"]) for t in plots["accuracy-rounds"]["data"] if "name" in t]
    assert len(set(styles)) == len(styles), "readable without colour"
    points = (tmp_path / "report.csv").read_text().splitlines()
    assert len(points) == 1 + 2 * 2 * 3
    assert "| fedavg | 2 |" in (tmp_path / "report.md").read_text()
    dense = sum(value.numel() for value in runs[0].model.weights.values())
    assert re.search(rf"\| fedavg \|.*\| {dense:,} \|", (tmp_path / "report.md").read_text())
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_in_a_browser(runs, tmp_path, width, scheme):
    series = together(runs)
    page = tmp_path / "report.html"
    write(page, series, series[0], goal_of(series[0], 0.2))
    assert figures_of(page, width, scheme) > 3


def test_names_cannot_break_out_of_tables_and_scripts(tmp_path):
    wild = '<!--<script>"a,b" | c'
    series = together([made(wild, [0.5, 0.6], 10)])
    assert series[0].label == wild
    held = embedded({"name": wild})
    assert "<" not in held
    assert json.loads(held) == {"name": wild}
    assert f"| {wild.replace('|', chr(92) + '|')} |" in outcomes(series).markdown()
    rows = list(csv.reader(io.StringIO(curves(series))))
    assert {len(row) for row in rows} == {6}
    assert rows[1][0] == wild
    show(series, series[0], 0.5)


def test_a_run_given_as_this_folder_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "here-0").mkdir()
    monkeypatch.chdir(tmp_path / "here-0")
    assert together([made(".", [0.5], 1)])[0].label == "here"


def test_targets_that_cannot_be_files_are_named(tmp_path):
    (tmp_path / "a.html").mkdir()
    (tmp_path / "file").write_text("")
    for target, why in ((tmp_path / "a.html", "is a folder"), (tmp_path / "file" / "b.md", "cannot be written")):
        with pytest.raises(ConfigError, match=why):
            kind_of(target)


def test_personal_models_and_global_ones_are_judged_the_same_way():
    plain = made("plain", [0.8, 0.9], 1, valid_accuracy=[0.7, 0.85], client_p10=[0.5, 0.6])
    own = made("own", [0.1, 0.2], 1, 0, "topk", personal_accuracy=[0.9, 0.95], valid_accuracy=[0.1, 0.1])
    both = together([plain, own])
    assert [each.own for each in both] == [True, True]
    assert [points[1] for points in both[0].curve(AXIS["rounds"])] == [0.7, 0.85], (
        "the global model on the devices' data"
    )
    assert [points[1] for points in both[1].curve(AXIS["rounds"])] == [0.9, 0.95], "each device's own model"
    table = outcomes(both)
    test = table.head.index("on the test set, %")
    assert [row[test] for row in table.rows] == ["85.00", ""], "the common part's accuracy means nothing"
    assert "own: each device's own model" in cautions(both)[0]
    assert cautions(together([plain])) == []


def test_a_personal_run_beside_one_without_validation_parts_carries_a_warning():
    plain = made("plain", [0.8], 1)
    own = made("own", [0.1], 1, 0, "topk", personal_accuracy=[0.9])
    both = together([plain, own])
    assert [each.own for each in both] == [False, False]
    assert "a head that nobody trained" in cautions(both)[0]


def test_personal_models_judged_in_few_rounds_end_with_their_last_judgements():
    own = made("own", [0.1] * 12, 1, 0, "topk")
    for t, value in ((4, 0.5), (9, 0.8), (11, 0.9)):
        own.metrics[t]["personal_accuracy"] = value
    assert together([own])[0].final()[0] == pytest.approx(0.85), "of rounds 8 to 12, not of the last five judgements"


def test_the_size_of_a_model_is_what_its_run_counts():
    pruned = made("p", [0.5, 0.6], 1, parameters=[100.0, 40.0])
    assert remaining(Series("p", (pruned,))) == [(1, 100.0), (2, 40.0)]
    assert remaining(Series("d", (made("d", [0.5], 1),))) == [], "it has not ended, and counts nothing"
