import json

import pytest
from tests.cases import CASES, LEARNS_ALIKE, some
from tests.moments import killed_and_resumed

import fedbonsai
from fedbonsai.cli import main
from fedbonsai.devices.drawn import shared_out
from fedbonsai.devices.figures import shipped
from fedbonsai.errors import ConfigError, NothingLearned
from fedbonsai.reports.costs import clocked as reports_clocked
from fedbonsai.reports.costs import number, to_goal
from fedbonsai.reports.files import picture
from fedbonsai.reports.series import together
from fedbonsai.reports.terminal import show
from fedbonsai.runs import recipes
from fedbonsai.runs.limits import BudgetConfig, ClockConfig
from fedbonsai.runs.run import execute, load

QUICK = {
    "rounds": 4,
    "data.clients": 4,
    "data.limit": 200,
    "data.partition": "iid",
    "model.name": "mlp",
    "method.optimizer.epochs": 1,
}
CLOCK = {"clock.devices": "raspberry-pi-4", "clock.link": "lte"}
SIMULATED = ("round_seconds", "simulated_seconds", "joules", "total_joules", "round_macs", "total_macs", "peak_memory")


def quick(**more):
    return recipes.load("fedavg", overrides={**QUICK, **more})


@pytest.mark.slow
def test_without_a_clock_nothing_changes_and_with_one_only_columns_are_added(tmp_path):
    plain = execute(quick(), tmp_path / "a")
    timed = execute(quick(**CLOCK), tmp_path / "b")
    assert not (tmp_path / "a" / "costs").exists()
    assert plain.costs() == []
    assert plain.seconds != plain.seconds
    assert plain.ledger() == timed.ledger()
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    for old, new in zip(plain.metrics, timed.metrics, strict=True):
        assert {**old, "seconds": 0} == {
            name: value for name, value in {**new, "seconds": 0}.items() if name not in (*SIMULATED, "lost_answers")
        }


@pytest.mark.slow
def test_rows_of_the_metrics_are_sums_of_the_costs(tmp_path):
    run = execute(quick(**CLOCK), tmp_path / "a")
    rows = run.costs()
    for t, row in enumerate(run.metrics):
        here = [each for each in rows if each["round"] == t]
        so_far = [each for each in rows if each["round"] <= t]
        assert {each["client"] for each in here} == {"", "000", "001", "002", "003"}
        assert min(row["round_seconds"], row["joules"], row["round_macs"]) > 0
        assert row["round_seconds"] == sum(each["elapsed"] for each in here)
        assert row["simulated_seconds"] == pytest.approx(sum(each["elapsed"] for each in so_far))
        assert row["joules"] == pytest.approx(sum(each["joules"] for each in here))
        assert row["total_joules"] == pytest.approx(sum(each["joules"] for each in so_far))
        assert row["round_macs"] == sum(each["macs"] for each in here)
        assert row["total_macs"] == sum(each["macs"] for each in so_far)
        assert row["peak_memory"] == max(each["peak_memory"] for each in here)
    assert (run.seconds, run.joules) == (run.metrics[-1]["simulated_seconds"], run.metrics[-1]["total_joules"])


@pytest.mark.slow
def test_slower_devices_and_links_take_longer(tmp_path):
    def seconds(**more):
        name = "-".join(more.values()).replace(" ", "")
        return execute(quick(rounds=1, **more), tmp_path / name).seconds

    pi = seconds(**CLOCK)
    assert seconds(**{**CLOCK, "clock.devices": "raspberry-pi-5"}) < pi
    assert seconds(**{**CLOCK, "clock.link": "fiber"}) < pi < seconds(**{**CLOCK, "clock.link": "lora"})
    assert seconds(**{**CLOCK, "clock.devices": "raspberry-pi-4 0.5, raspberry-pi-5 0.5"}) == pi  # the slowest counts


def test_shares_are_counted_exactly_and_drawn_by_seed():
    ids = [str(i) for i in range(10)]
    found = shared_out("a 0.5, b 0.3, c 0.2", ids, 0)
    assert [list(found.values()).count(name) for name in "abc"] == [5, 3, 2]
    assert set(found) == set(ids)
    assert found == shared_out("a 0.5, b 0.3, c 0.2", ids, 0)
    assert any(found[id] != shared_out("a 0.5, b 0.3, c 0.2", ids, 1)[id] for id in ids)
    assert shared_out("a", ids, 0) == dict.fromkeys(ids, "a")
    for wrong in ("a 0.5, b 0.6", "a, b", "a 1.5, b -0.5"):
        with pytest.raises(ConfigError, match="shares"):
            shared_out(wrong, ids, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        ({"budget.bytes": 1}, "budget.bytes of 1 used up"),
        ({"budget.device_bytes": 1}, "budget.device_bytes of 1 used up"),
        ({"budget.seconds": 1e-3}, "budget.seconds of 0.001 used up"),
        ({"budget.joules": 1e-3}, "budget.joules of 0.001 used up"),
        ({"budget.device_seconds": 1e-3}, "budget.device_seconds of 0.001 used up"),
        ({"budget.device_joules": 1e-3}, "budget.device_joules of 0.001 used up"),
    ],
)
def test_a_budget_ends_the_run_after_the_round_that_used_it_up(tmp_path, budget, reason):
    run = execute(quick(**CLOCK, **budget), tmp_path / "a")
    assert run.info["reason"].startswith(reason)
    assert len(run.metrics) == 1
    again = execute(quick(), tmp_path / "a", resume=True)
    assert again.info["reason"] == run.info["reason"]
    assert again.metrics == run.metrics


@pytest.mark.slow
def test_a_budget_lies_between_what_was_spent_before_and_after(tmp_path):
    free = execute(quick(**CLOCK), tmp_path / "a")
    for key, column in (("seconds", "simulated_seconds"), ("joules", "total_joules")):
        middle = (free.metrics[1][column] + free.metrics[2][column]) / 2
        run = execute(quick(**CLOCK, **{f"budget.{key}": middle}), tmp_path / key)
        assert len(run.metrics) == 3
        assert run.metrics[1][column] < middle <= run.metrics[2][column]
    spent = [row["total_bytes_up"] + row["total_bytes_down"] for row in free.metrics]
    assert len(execute(quick(**{"budget.bytes": spent[1]}), tmp_path / "bytes").metrics) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"clock.deadline": 3.0}, "no clock that deadline could concern"),
        ({"clock.link": "lte"}, "no clock that link could concern"),
        ({"clock.devices": "raspberry-pi-4", "clock.dropout": 1.0}, "dropout"),
        ({"clock.devices": "raspberry-pi-4", "clock.slowdown": 0.5}, "slowdown"),
        ({"clock.devices": "raspberry-pi-4", "fleet.wire": False}, "real bytes"),
        ({"budget.joules": 3.0}, "budget.joules needs a clock"),
        ({"budget.bytes": -1}, "bytes = -1"),
    ],
)
def test_settings_that_cannot_be_meant(settings, text):
    with pytest.raises(ConfigError, match=text):
        quick(**settings)


@pytest.mark.slow
def test_defaults_are_no_clock_and_no_budget():
    assert quick().clock == ClockConfig()
    assert quick().budget == BudgetConfig()
    assert quick().budget.timed == []


@pytest.mark.slow
def test_rounds_that_fail_take_time_too(tmp_path):
    with pytest.raises(NothingLearned, match=r"4 silent, such as 000: late: "):
        execute(quick(rounds=2, retries=1, **CLOCK, **{"clock.deadline": 0.01}), tmp_path / "a")
    run = load(tmp_path / "a")
    assert [(row["answered"], row["silent"], row["rejected"]) for row in run.metrics] == [(0, 4, 0)] * 2
    assert all(row["skipped"] for row in run.metrics)
    assert [row["round_seconds"] for row in run.metrics] == [0.02, 0.02]  # two attempts each
    assert [row["lost_answers"] for row in run.metrics] == [8, 8]
    assert {row["attempt"] for row in run.costs()} == {0, 1}


@pytest.mark.slow
def test_devices_come_and_go_by_the_hour(tmp_path):
    snail = tmp_path / "snail.toml"
    snail.write_text(shipped("links")["lora"].replace("5470", "50"))  # a round takes more than an hour
    settings = {**CLOCK, "clock.availability": 0.3, "clock.link": str(snail)}
    run = execute(quick(rounds=6, **settings), tmp_path / "a")
    asked = [
        {row["client"] for row in run.costs() if row["round"] == t and row["client"]} for t in range(len(run.metrics))
    ]
    assert all(0 < len(who) < 4 for who in asked)
    assert len({frozenset(who) for who in asked}) > 1


@pytest.mark.slow
def test_the_report_compares_time_and_energy_to_a_target(tmp_path, capsys):
    slow = execute(quick(**CLOCK), tmp_path / "slow")
    fast = execute(quick(**{**CLOCK, "clock.link": "fiber"}), tmp_path / "fast")
    plain = execute(quick(), tmp_path / "plain")
    series = together([slow, fast, plain])
    goal = slow.metrics[1]["accuracy"]
    rows = {row[0]: row for row in to_goal(series, series[0], goal).rows}
    head = list(to_goal(series, series[0], goal).head)
    seconds, joules = head.index("simulated s"), head.index("J")
    first = next(row for row in slow.metrics if row["accuracy"] >= goal)
    assert rows["slow"][seconds] == number(first["simulated_seconds"])
    assert float(rows["fast"][seconds + 1]) > 1, "less time over a faster link"
    assert rows["plain"][seconds] == rows["plain"][joules] == "", "it has no clock"
    clocked = {row[0]: row for row in reports_clocked(series).rows}
    assert clocked.keys() == {"slow", "fast"}
    assert clocked["slow"][1:3] == ["raspberry-pi-4", "lte"]
    show(series, series[0], goal)
    text = " ".join(capsys.readouterr().out.split())
    assert f"Costs to {100 * goal:.1f} % test accuracy" in text
    assert number(slow.joules) in text
    picture(tmp_path / "four.png", series)
    picture(tmp_path / "two.png", series[2:])
    assert (tmp_path / "four.png").stat().st_size > (tmp_path / "two.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [["checkpoint-5"], pytest.param(["judging-2", "training-5", "checkpoint-7"], marks=pytest.mark.exhaustive)],
)
def test_kill_minus_nine_and_resume_leaves_the_same_simulated_time(tmp_path, moments):
    words = ["run", "fedavg", "--rounds", "10", "--data.limit", "200", "--data.clients", "4", "--data.partition", "iid"]
    words += [
        "--model.name",
        "mlp",
        "--quiet",
        "--devices",
        "raspberry-pi-4 0.5, jetson-nano 0.5",
        "--link",
        "lte-commute",
    ]
    words += [
        "--clock.dropout",
        "0.2",
        "--clock.stragglers",
        "0.3",
        "--clock.availability",
        "0.8",
        "--clock.first",
        "3",
    ]
    assert main([*words, "--name", "n", "--runs", str(tmp_path / "whole")]) == 0
    killed_and_resumed(words, tmp_path / "killed", "n", moments)
    a, b = (fedbonsai.load(tmp_path / name / "n") for name in ("whole", "killed"))
    assert a.costs() == b.costs()
    assert [{**row, "seconds": 0} for row in a.metrics] == [{**row, "seconds": 0} for row in b.metrics]
    assert (a.path / "model.safetensors").read_bytes() == (b.path / "model.safetensors").read_bytes()
    assert len(json.dumps(a.costs())) > 1000


@pytest.mark.slow
def test_worker_processes_cost_the_same_as_this_process(tmp_path):
    here = execute(quick(**CLOCK), tmp_path / "a")
    there = execute(quick(**CLOCK, **{"fleet.kind": "pool"}), tmp_path / "b")
    assert here.costs() == there.costs()
    assert [{**row, "seconds": 0} for row in here.metrics] == [{**row, "seconds": 0} for row in there.metrics]


@pytest.mark.parametrize("case", some(CASES, LEARNS_ALIKE), ids=str)
def test_every_method_has_seconds_and_joules(case, tmp_path):
    run = execute(case.config(**CLOCK), tmp_path / "a")
    for row in run.metrics:
        assert row["round_seconds"] > 0
        assert row["joules"] > 0
        assert row["round_macs"] > 0
        assert row["peak_memory"] > 230e6
    rows = [row for row in run.costs() if row["client"]]
    assert all(row["joules"] > 0 and row["down_seconds"] > 0 and row["up_seconds"] > 0 for row in rows)
    assert any(row["compute_seconds"] > 0 for row in rows)
    assert all(0 < row["kept_macs"] <= row["macs"] for row in rows if row["macs"])


def test_names_of_devices_may_have_spaces():
    ids = [str(number) for number in range(10)]
    assert shared_out("my pi.toml", ids, 0) == dict.fromkeys(ids, "my pi.toml")
    found = shared_out("my pi.toml 0.7, jetson-nano 0.3", ids, 0)
    assert [list(found.values()).count(name) for name in ("my pi.toml", "jetson-nano")] == [7, 3]
    for wrong in ("a nan, b 0.5", "a inf, b 0", "a 0.5, 0.5", "a 0.5, b 0.5,", " "):
        with pytest.raises(ConfigError, match="shares that sum to 1"):
            shared_out(wrong, ids, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_limits_that_would_never_come_are_refused(value):
    with pytest.raises(ValueError, match=r"joules = .*expected a number >= 0"):
        BudgetConfig(joules=value)
    with pytest.raises(ValueError, match=r"deadline = .*expected seconds >= 0"):
        ClockConfig(devices="raspberry-pi-4", deadline=value)
    with pytest.raises(ValueError, match="slowdown = "):
        ClockConfig(devices="raspberry-pi-4", slowdown=value)


@pytest.mark.slow
def test_the_round_in_which_a_budget_is_used_up_is_evaluated(tmp_path):
    free = execute(quick(rounds=2, **CLOCK), tmp_path / "free")
    for name, limit in (("joules", free.joules), ("bytes", sum(free.bytes.values()))):
        run = execute(quick(rounds=9, evaluate_every=9, **CLOCK, **{f"budget.{name}": limit}), tmp_path / name)
        assert len(run.metrics) == 2  # used up to the last of them, so not one more
        assert f"budget.{name}" in run.info["reason"]
        assert "accuracy" not in run.metrics[0]
        assert run.accuracy == free.accuracy


@pytest.mark.slow
def test_a_target_and_patience_need_validation_parts(tmp_path):
    with pytest.raises(ConfigError, match=r"no client has one: data\.valid = 0"):
        execute(quick(target=0.5, **{"data.valid": 0.0}), tmp_path / "a")
    with pytest.raises(ConfigError, match="patience = 3 is of the clients' validation parts"):
        execute(quick(patience=3, **{"data.valid": 0.0}), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    run = execute(quick(rounds=1, **{"data.valid": 0.0}), tmp_path / "b")
    assert "valid_accuracy" not in run.metrics[-1]
    assert together([run])[0].final()[0] == run.accuracy
