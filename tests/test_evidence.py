"""Claims, tables by the protocol and the picture: verdicts by hand, and that what is committed is what the results say."""

import math

import pytest
from experiments import claims, fair_table, picture, plans, table
from experiments.claims import Line


def results(name, accuracies, sizes=None, **metrics):
    """A result for each seed."""
    sizes = sizes or [100] * len(accuracies)
    return [
        {
            "name": name,
            "recipe": name.partition("-")[0],
            "seed": seed,
            "metric": "accuracy",
            "last five": accuracy,
            "curve": [[5, 0.1, 0, 0], [10 + seed, accuracy, 0, 0]],
            "bytes": {"up": size, "down": size},
            "trained examples": 1000,
            "configuration": {"method": {"optimizer": {"lr": 0.06}}},
            "commit": "c",
            "processor": "p",
            "method metrics": metrics,
        }
        for seed, (accuracy, size) in enumerate(zip(accuracies, sizes, strict=True))
    ]


ROWS = {
    "base": results("base", [0.90, 0.91, 0.92], [400, 400, 400]),
    "near-0.1": results("near-0.1", [0.90, 0.91, 0.921]),
    "far-0.1": results("far-0.1", [0.80, 0.81, 0.82]),
    "wide-0.1": results("wide-0.1", [0.95, 0.91, 0.80]),
}


@pytest.mark.parametrize(
    ("line", "beside", "verdict"),
    [
        (Line(["base"], row="near-0.1", least=-2.0), "base", "reproduced"),  # 0, 0 and .1 points
        (Line(["base"], row="far-0.1", least=-2.0), "base", "refuted"),  # -10 points each
        (Line(["base"], row="wide-0.1", least=-2.0), "base", "not decided"),  # 5, 0 and -12 points
        (Line(["base"], row="near-0.1", figure="bytes", least=4.0), "base", "reproduced"),  # 800 bytes by 200
        (Line(["far-*", "near-*"], row="wide-0.1", least=0.0), "near-0.1", "not decided"),  # the better of both
        (Line(["nobody-*"], row="wide-0.1"), "nobody-*", "not run"),
        (Line(["base"], row="nobody-0.1"), "base", "not run"),
    ],
)
def test_a_line_is_decided_by_its_whole_interval(line, beside, verdict):
    found = claims.found(line, ROWS)
    assert (found.beside, found.verdict) == (beside, verdict)


def test_seconds_are_a_share_of_the_others_to_what_it_ends_with():
    def run(accuracies, seconds):
        own = {"personal_accuracy": accuracies, "wireless_seconds": seconds}
        return results("a", [0.5], **own)

    theirs = run([0.5, 0.8, 0.9], [10.0, 20.0, 30.0])
    line = Line(["base"], row="ours", figure="seconds", short=2.0, most=0.6)  # to 88 %, where the other is after 30 s
    assert claims.values(line, run([0.7, 0.88, 0.9], [4.0, 9.0, 12.0]), theirs) == [0.3]
    rows = {"base": theirs, "ours": run([0.7, 0.8, 0.8], [4.0, 9.0, 12.0])}
    assert claims.found(line, rows).verdict == "refuted"
    assert claims.told(claims.found(line, rows).values) == "1 of 1 seeds never come there"


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        (["reproduced", "reproduced", "not run"], "reproduced"),
        (["refuted", "refuted"], "refuted"),
        (["reproduced", "refuted", "not decided"], "in part: 1 reproduced, 1 refuted, 1 not decided"),
        (["refuted", "not decided"], "not reproduced: 1 refuted, 1 not decided"),
    ],
)
def test_a_claim_is_what_all_its_lines_are(verdicts, word):
    assert claims.overall(verdicts) == word


def test_every_line_names_a_row_of_a_plan_and_something_to_stand_beside():
    for each in claims.statements():
        for line in each.lines:
            if line.experiment == "seconds_to_accuracy":
                continue
            names = {variant.name for variant in plans.plan_of(line.experiment).variants}
            others = [pattern.replace("*", line.row.rpartition("-")[2]) for pattern in line.beside]
            assert line.row in names, f"{line.experiment} has no row {line.row}"
            assert set(others) <= names, f"{line.experiment} has not all of {others}"


def test_a_table_by_the_protocol_has_paired_differences_and_their_correction():
    # differences of .02, .03 and .04: mean 3, Student's half width 4.303 * 1 / sqrt(3) = 2.48 points, t = 5.196, p = .035
    rows = {
        "fedavg": results("fedavg", [0.80, 0.82, 0.84], [100, 100, 100]),
        "fedtiny-0.2": results("fedtiny-0.2", [0.82, 0.85, 0.88], [25, 25, 25], parameters=[7.0, 5.0]),
        "fedtiny-0.05": results("fedtiny-0.05", [0.80, 0.82, 0.85], [20, 20, 20]),
    }
    found = fair_table.table("fair_har", {name: {each["seed"]: each for each in some} for name, some in rows.items()})
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[1:-1]] for line in found if "|" in line
    }
    heads = cells.pop("row")

    def of(row, head, nth=0):
        return cells[row][[i for i, name in enumerate(heads) if name == head][nth]]

    assert of("fedavg", "mean") == "82.00"
    assert of("fedavg", "verdict") == ""
    assert of("fedavg", "rounds") == "11"
    assert of("fedtiny-0.2", "difference") == "+3.00"
    assert of("fedtiny-0.2", "95 % interval", 1) == "+0.52 to +5.48"
    assert of("fedtiny-0.2", "p by Holm") == "0.070"  # the smaller of two: doubled
    assert of("fedtiny-0.2", "verdict") == "open"
    assert of("fedtiny-0.2", "of its bytes") == "0.250"
    assert of("fedtiny-0.2", "parameters") == "5"
    assert of("fedtiny-0.2", "samples") == "1.000"
    assert of("fedtiny-0.2", "learning rate") == "0.06"


def test_only_plans_with_trials_and_patience_keep_the_protocol():
    keep = set(filter(fair_table.keeps_protocol, plans.experiments()))
    assert "fair_har" in keep
    assert "pruning" not in keep


def test_points_of_the_picture_are_means_by_method():
    rows = {
        "fedavg": results("fedavg", [0.9, 0.8], [10**6, 10**6]),
        "fedtiny-0.2": results("fedtiny-0.2", [0.7, 0.7], parameters=[9.0, 8.0]),
        "fedtiny-erk-0.2": results("fedtiny-erk-0.2", [0.6, 0.6]),
        "fedtiny-no-adjusting-0.01": results("fedtiny-no-adjusting-0.01", [0.1, 0.1]),  # no method of its own
    }
    found = picture.lines({"pruning": rows}, {"pruning": 1000.0})["pruning"]
    assert set(found) == {"fedavg", "fedtiny", "fedtiny-erk"}
    assert found["fedavg"] == [pytest.approx((2.0, 1000.0, 85.0))]
    assert found["fedtiny"] == [pytest.approx((0.0002, 8.0, 70.0))]
    assert math.isnan(found["fedtiny-erk"][0][1])


def test_the_picture_is_that_of_the_results():
    assert picture.held() == picture.mark(table.drawn()), "run: python -m experiments.table --write"
