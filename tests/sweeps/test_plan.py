"""Plans: what a grid comes to, worked by hand; every fault at once, before anything runs."""

import pytest

from fedbonsai.errors import ConfigError
from fedbonsai.runs.config import RunConfig
from fedbonsai.sweeps.configured import chosen, jobs_of, over, with_seeds
from fedbonsai.sweeps.plan import SECTIONS, read

TWO = {"runs": [{"recipe": "fedtiny"}, {"recipe": "fedavg", "grid": {}}], "grid": {"method.density": [0.2, 0.05]}}


def names(plan):
    return [each.name for each in plan.variants]


def refused(table, tmp_path=None, **more):
    with pytest.raises(ConfigError) as caught:
        jobs_of(read(table), tmp_path, **more)
    return str(caught.value).splitlines()


def test_a_grid_crosses_its_settings_and_a_runs_own_takes_its_place():
    plan = read({**TWO, "seeds": [3, 1], "settings": {"rounds": 5, "data": {"clients": 4, "alpha": 0.1}}})
    assert names(plan) == ["fedtiny-0.2", "fedtiny-0.05", "fedavg"]
    assert plan.variants[1].settings == {"rounds": 5, "data.clients": 4, "data.alpha": 0.1, "method.density": 0.05}
    assert plan.variants[1].varied == {"method.density": 0.05}
    assert (plan.variants[2].varied, plan.variants[2].seeds) == ({}, (3, 1))
    crossed = read({"runs": [{"recipe": "snip", "grid": {"method.density": [0.5, 0.1], "data.alpha": [0.1, 1.0, 10]}}]})
    assert names(crossed) == [f"snip-density={d}-alpha={a}" for d in (0.5, 0.1) for a in (0.1, 1.0, 10)]
    assert crossed.variants[5].settings == {"method.density": 0.1, "data.alpha": 10}


def test_what_is_varied_is_changed_one_at_a_time():
    plan = read({"runs": [{"name": "a", "recipe": "snip", "vary": {"method.density": [0.5], "data.alpha": [1, 2]}}]})
    assert {each.name: each.settings for each in plan.variants} == {
        "a-density=0.5": {"method.density": 0.5},
        "a-alpha=1": {"data.alpha": 1},
        "a-alpha=2": {"data.alpha": 2},
    }
    alone = read({"runs": [{"name": "a", "recipe": "snip", "vary": {"method.density": [0.5, 0.2]}}]})
    assert names(alone) == ["a-0.5", "a-0.2"]


def test_values_that_are_no_words_have_names():
    axis = {"model.options": {"group": {"norm": "group"}, "batch": {"norm": "batch"}}}
    plan = read({"runs": [{"recipe": "fedavg", "preset": "modern"}], "grid": axis})
    assert names(plan) == ["fedavg-modern-group", "fedavg-modern-batch"]
    assert plan.variants[1].settings == {"model.options": {"norm": "batch"}}
    assert plan.variants[1].varied == {"model.options": "batch"}


def test_a_file_names_the_sweep_and_a_plan_its_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    text = '[[runs]]\nrecipe = "fedavg"\n'
    for file, name in (("mine/plan.toml", "mine"), ("densities.toml", "densities")):
        (tmp_path / file).write_text(text)
        assert read(tmp_path / file).name == name
    (tmp_path / "a.toml").write_text(f'name = "other"\n{text}[tool.results]\nhighlights = ["fedavg"]\n')
    plan = read(tmp_path / "a.toml")
    assert (plan.name, plan.tool) == ("other", {"results": {"highlights": ["fedavg"]}})
    assert [each.seeds for each in plan.variants] == [(0, 1, 2)]


def test_a_baseline_is_a_variant_or_a_run_at_equal_settings():
    by = {"fedtiny-0.2": "fedavg", "fedtiny-0.05": "fedavg", "fedavg": ""}
    plan = read({**TWO, "baseline": "fedavg"})
    assert {each.name: plan.beside(each) for each in plan.variants} == by
    both = {
        "runs": [{"recipe": "snip"}, {"recipe": "random-mask"}, {"recipe": "fedavg", "grid": {}}],
        **{"grid": TWO["grid"]},
    }
    plan = read({**both, "baseline": "random-mask"})
    by = {
        "snip-0.2": "random-mask-0.2",
        "snip-0.05": "random-mask-0.05",
        "random-mask-0.2": "",
        "random-mask-0.05": "",
        "fedavg": "",
    }
    assert {each.name: plan.beside(each) for each in plan.variants} == by


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"format": 2}, "format = 2, a plan of a later fedbonsai: this one reads up to format 1"),
        ({"sseds": [0]}, "sseds: there is no such setting; did you mean 'seeds'?"),
        (
            {"runs": [{"recipe": "fedavg", "setings": {}}]},
            "runs[0].setings: there is no such setting; did you mean 'settings'?",
        ),
        ({"runs": [{}]}, "runs[0].recipe"),
        ({"runs": []}, "runs: expected at least one table"),
        ({"seeds": []}, "seeds = []: expected at least one"),
        ({"seeds": [0, 1, 0]}, "seeds: 0 stands there twice"),
        ({"seeds": [-1]}, "seeds: -1: expected numbers >= 0"),
        ({"seeds": 3}, "seeds"),
        ({"grid": {"method.density": 0.1}}, "grid.method.density: expected a list of values, got 0.1"),
        ({"grid": {"method.density": []}}, "grid.method.density: expected a list of values, got []"),
        ({"grid": {"rounds": [1, 1]}}, "grid.rounds: 1 stands there twice"),
        ({"grid": {"model.options": [{"norm": "group"}]}}, "lists and tables need names"),
        ({"grid": {"seed": [1, 2]}}, "grid.seed: is set by the sweep; use seeds"),
        ({"settings": {"name": "x"}}, "settings.name: is set by the sweep; use runs.name"),
        (
            {"runs": [{"recipe": "fedavg", "grid": {"rounds": [1]}, "vary": {"rounds": [2]}}]},
            "grid and vary exclude each other",
        ),
        ({"runs": [{"recipe": "fedavg"}, {"recipe": "fedavg"}]}, "2 runs would have the folder 'fedavg-0'"),
        ({"runs": [{"recipe": "fedavg", "name": "../x"}]}, "no slash"),
        ({"baseline": "fedvag"}, "baseline = 'fedvag': no run or variant has that name; there are fedavg"),
        ({"name": "a/b"}, "no slash"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(table, why):
    assert why in "\n".join(refused({"runs": [{"recipe": "fedavg"}], **table}))


def test_all_faults_of_all_variants_are_told_at_once_and_each_once(tmp_path):
    said = refused(
        {
            "runs": [
                {"recipe": "fedtiny"},
                {"recipe": "fedvag", "grid": {}},
                {"recipe": "snip", "settings": {"rounds": 0}},
                {"name": "other", "recipe": "snip"},
                {"name": "again", "recipe": "snip"},
                {"name": "real", "recipe": "fedavg", "settings": {"fleet": "flower"}, "grid": {}},
            ],
            "grid": {"method.density": [0.1, 0.2, 0.3, 0.4, 2.0]},
        },
        tmp_path,
    )
    assert said[0] == "fedtiny-2.0, snip-2.0, other-2.0 and 1 more: method: density = 2.0: expected a share in (0, 1]"
    assert any(line.startswith("fedvag: recipe 'fedvag' is not known; did you mean 'fedavg'?") for line in said)
    assert "snip-0.1, snip-0.2, snip-0.3 and 2 more: configuration: rounds = 0: expected at least 1" in said
    assert "again-0.1: is the same run as other-0.1; leave one of them out" in said
    assert "real: fleet.kind = 'flower': a sweep runs on this machine; take local or pool" in said
    assert not list(tmp_path.iterdir())


def test_a_metric_is_a_column_that_the_objective_gives(tmp_path):
    assert (
        "metric = 'acuracy': objective 'classification' gives no such column"
        in refused({"runs": [{"recipe": "fedavg"}], "metric": "acuracy"}, tmp_path)[0]
    )
    plan = read({"runs": [{"recipe": "fedavg"}], "metric": "client_p10"})
    assert [job.name for job in jobs_of(plan, tmp_path)] == ["fedavg-0", "fedavg-1", "fedavg-2"]


def test_data_are_looked_for_by_name_in_a_folder(tmp_path):
    (tmp_path / "mnist").mkdir()
    plan = read({"runs": [{"recipe": "fedavg", "grid": {"data.name": ["mnist", "digits"]}}], "seeds": [7]})
    jobs = jobs_of(plan, tmp_path / "home", tmp_path)
    assert [(job.config.data.name, job.config.data.path) for job in jobs] == [
        ("mnist", str(tmp_path / "mnist")),
        ("digits", ""),
    ]
    assert [(job.name, job.config.name, job.config.seed) for job in jobs] == [
        ("fedavg-mnist-7", "fedavg-mnist-7", 7),
        ("fedavg-digits-7", "fedavg-digits-7", 7),
    ]
    assert "there is no such folder" in refused({"runs": [{"recipe": "fedavg"}]}, tmp_path, data=tmp_path / "gone")[0]


def test_a_part_of_a_plan_and_settings_over_it():
    plan = read(TWO)
    assert names(chosen(plan, ["fedtiny"])) == ["fedtiny-0.2", "fedtiny-0.05"]
    assert names(chosen(plan, ["fedavg", "fedtiny-0.05"])) == ["fedtiny-0.05", "fedavg"]
    with pytest.raises(
        ConfigError, match=r"--only fedtiny-0\.5: no run or variant has that name; did you mean 'fedtiny-0\.05'"
    ):
        chosen(plan, ["fedtiny-0.5"])
    assert {each.seeds for each in chosen(plan, [], [5, 1]).variants} == {(5, 1)}
    with pytest.raises(ConfigError, match="--seeds 1 1: expected numbers >= 0, each once, not 1"):
        chosen(plan, [], [1, 1])
    more = with_seeds(plan, {"fedavg": [5, 1]})
    assert [each.seeds for each in more.variants] == [(0, 1, 2), (0, 1, 2), (0, 1, 2, 5)]
    assert {each.settings["rounds"] for each in over(plan, {"rounds": "2"}).variants} == {"2"}
    with pytest.raises(ConfigError, match="the plan's grid changes it"):
        over(plan, {"method.density": "0.1"})
    with pytest.raises(ConfigError, match="use --seeds"):
        over(plan, {"seed": "1"})


def test_sections_are_those_of_a_configuration():
    assert set(SECTIONS) <= RunConfig.__dataclass_fields__.keys()
