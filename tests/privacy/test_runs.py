"""Private runs: epsilon in every row, a budget that is kept, an account that goes on, and nothing else of devices' data."""

from __future__ import annotations

import pytest

from fedbonsai.errors import ConfigError, NothingLearned
from fedbonsai.reports.files import write
from fedbonsai.reports.series import together
from fedbonsai.runs import private, recipes
from fedbonsai.runs.folder import Folder
from fedbonsai.runs.loop import loop
from fedbonsai.runs.progress import line, opening
from fedbonsai.runs.run import execute
from fedbonsai.runs.setup import run_context
from fedbonsai.runs.summary import summary
from fedbonsai.stages.privacy.accountant import Release, epsilon
from tests.mortal import Killed, Mortal

SMALL = {"data.clients": 20, "data.limit": 300, "method.cohort": 8, "method.privacy.delta": 1e-3, "rounds": 4}


def config(recipe="dp-fedavg", **more):
    return recipes.load(recipe, "", {**SMALL, **more})


def test_the_recipe_costs_what_it_says():
    found = recipes.load("dp-fedavg")
    privacy = found.method.privacy
    spent = epsilon((Release(found.method.cohort / 100, privacy.noise, found.rounds),), privacy.delta)
    assert 7.5 < spent <= 8.0


def test_epsilon_stands_in_every_row_and_nothing_that_is_raw():
    found = config(**{"data.valid": 0.2})
    rows = loop(found, run_context(found), "run").rows
    told = [epsilon((Release(8 / 20, 1.35, t + 1),), 1e-3) for t in range(4)]
    assert [row["epsilon"] for row in rows] == pytest.approx(told, rel=1e-12)
    of_samples = {"train_loss", "valid_accuracy", "valid_loss", "client_min", "client_p10", "withheld", "clip"}
    assert not of_samples & set().union(*rows)
    assert "epsilon" in line(found, rows[-1], 0.0)


def test_a_budget_ends_a_run_before_it_is_exceeded_and_its_last_round_is_judged():
    costs = [epsilon((Release(8 / 20, 1.35, t + 1),), 1e-3) for t in range(4)]
    found = config(**{"budget.epsilon": (costs[1] + costs[2]) / 2, "evaluate_every": 10})
    outcome = loop(found, run_context(found), "run")
    assert [row["epsilon"] for row in outcome.rows] == pytest.approx(costs[:2])
    assert "accuracy" in outcome.rows[-1]
    assert outcome.reason == (
        f"budget.epsilon of {found.budget.epsilon:g} kept: {costs[1]:.4g} spent, another round would make it {costs[2]:.4g}"
    )


def test_what_all_rounds_cost_is_told_before_any():
    found = config()
    text = opening(found, run_context(found), 0)
    total = epsilon((Release(8 / 20, 1.35, 4),), 1e-3)
    assert f"privacy: epsilon {total:.3g} at delta 0.001 after 4 rounds (a simulation" in text
    cut = config(**{"budget.epsilon": 3.0, "rounds": 40})
    said = private.planned(cut, 20)
    rounds = int(said.partition("ends it after ")[2].split()[0])
    costs = [epsilon((Release(8 / 20, 1.35, count),), 1e-3) for count in (rounds, rounds + 1)]
    assert costs[0] <= 3.0 < costs[1]


def test_a_first_round_that_costs_too_much_is_refused_with_the_noise_that_would_do():
    found = config(**{"budget.epsilon": 0.5})
    with pytest.raises(ConfigError, match=r"the first round alone costs .*method\.privacy\.noise = ") as error:
        loop(found, run_context(found), "run")
    noise = float(str(error.value).rpartition("= ")[2])
    assert epsilon((Release(8 / 20, noise, 4),), 1e-3) == pytest.approx(0.5, rel=0.02)


def test_a_round_that_is_done_again_costs_once_and_a_resumed_run_goes_on_with_its_account(tmp_path):
    found, folder = config(), Folder(tmp_path / "run")
    whole = loop(found, run_context(found), "run")
    made = run_context(found)
    made.fleet = Mortal(made.fleet, 2, after=1)
    with pytest.raises(Killed):
        loop(found, made, "run", folder)
    resumed = loop(found, run_context(found), "run", folder)
    assert [row["epsilon"] for row in resumed.rows] == [row["epsilon"] for row in whole.rows]
    assert resumed.state.account.releases == (Release(8 / 20, 1.35, 4),)


def test_rounds_of_which_all_devices_are_silent_cost_as_others_do(tmp_path):
    found = config(**{"fleet.flaky": 1.0})
    with pytest.raises(NothingLearned):
        execute(found, tmp_path / "run")
    rows = Folder(tmp_path / "run").rows()
    told = [epsilon((Release(8 / 20, 1.35, t + 1),), 1e-3) for t in range(len(rows))]
    assert [row["epsilon"] for row in rows] == pytest.approx(told)
    assert not any(row["skipped"] for row in rows)


def test_a_round_whose_sample_is_empty_releases_noise_too():
    found = config(rounds=8, **{"method.cohort": 1, "clock.devices": "raspberry-pi-4"})
    outcome = loop(found, run_context(found), "run")
    assert any("answered" not in row for row in outcome.rows), "every sample had somebody"
    assert outcome.state.account.releases == (Release(1 / 20, 1.35, 8),)


def test_reports_and_sweeps_tell_epsilon(tmp_path):
    run = execute(config(), tmp_path / "run")
    total = f"{epsilon((Release(8 / 20, 1.35, 4),), 1e-3):.4g}"
    series = together([run])
    write(tmp_path / "report.md", series, series[0], 0.5)
    text = (tmp_path / "report.md").read_text()
    head, _, row, *_ = (line.split("|") for line in text.splitlines() if line.startswith("|"))
    assert row[[cell.strip() for cell in head].index("epsilon")].strip() == total
    assert f"privacy: epsilon {float(total):.3g} at delta 0.001 after 4 rounds" in text
    assert ("epsilon", total) in summary(run)


def test_two_runs_with_the_systems_entropy_differ_and_two_of_a_seed_do_not():
    def end(source):
        found = config(rounds=1, **{"method.privacy.draws": source})
        made = run_context(found)
        return made.method.model(loop(found, made, "run").state).weights

    def equal(left, right):
        return all(bool((left[name] == right[name]).all()) for name in left)

    assert equal(end("seed"), end("seed"))
    assert not equal(end("system"), end("system"))


def test_under_a_mask_only_kept_weights_move():
    found = config(
        "random-mask",
        **{
            "method.privacy.clip": 0.5,
            "method.density": 0.5,
            "model.name": "mlp",
            "model.options": {"widths": [16]},
            "data.minimum": 1,
        },
    )
    made = run_context(found)
    outcome = loop(found, made, "run")
    assert outcome.state.account.releases == (Release(8 / 20, 1.0, 4),)
    assert "train_loss" not in outcome.rows[-1]
    for name, mask in outcome.state.held.masks.items():
        assert not bool(outcome.state.model.weights[name][~mask].count_nonzero())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"target": 0.9, "data.valid": 0.2}, "target would end the run by the clients' validation parts"),
        ({"patience": 3, "data.valid": 0.2}, "patience would end the run"),
        ({"clock.devices": "raspberry-pi-4", "clock.first": 2}, "a device's speed would decide whose answer counts"),
        ({"fleet.kind": "flower"}, "set method.privacy.draws = 'system'"),
        ({"objective.weights": "balanced"}, "balanced by what clients say"),
        ({"method.uplink": ["ef14", {"topk": 0.1}]}, "residual of ef14 or ef21"),
        ({"method.weighting.prior": "uniform"}, "leave weighting, sticky and aggregate_feedback out"),
        ({"method.sticky": {"group": 10, "fresh": 2}}, "leave weighting, sticky"),
        ({"method.privacy": {"clip": 0.0}, "budget.epsilon": 2.0}, "method averaging has no privacy"),
    ],
)
def test_what_would_let_raw_data_out_is_refused_by_name(settings, text):
    with pytest.raises(ConfigError, match=text):
        config(**settings)


def test_a_mask_of_another_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="the mask is made of another run's data"):
        config(
            "lottery-ticket", **{"method.privacy.clip": 0.5, "method.criterion": {"name": "run", "path": str(tmp_path)}}
        )


def test_a_method_that_cannot_have_it_says_why():
    with pytest.raises(ConfigError, match=r"method\.privacy: method 'moon' cannot have it, since a device keeps"):
        recipes.load("moon", "", {"method.privacy.clip": 1.0})


def test_clients_that_would_be_asked_for_sums_of_their_data_are_not():
    found = config()
    with pytest.raises(ConfigError, match="no noise covers"):
        private.check(found, 20, True)
    private.check(found, 20, False)


def test_the_noise_of_the_experiments_plan_is_what_its_names_say():
    from experiments.plans import plan_of

    plan = plan_of("privacy")
    checked = 0
    for variant in plan.variants:
        settings = variant.settings
        if (noise := settings.get("method.privacy", {}).get("noise")) is None:
            continue
        rate, rounds = (0.1, 25) if settings["method.cohort"] else (1.0, 10)
        assert rounds == settings["rounds"]
        wanted = float(variant.name.rpartition("-")[2])
        spent = epsilon((Release(rate, noise, rounds),), 1e-5)
        assert 0.98 * wanted < spent <= wanted
        checked += 1
    assert checked == 14
