"""What an earlier release wrote is read in today's form: settings, plans, and the folders of runs."""

import json
import tomllib
from dataclasses import replace

import pytest
import tomli_w
import torch
from experiments.plans import plan_of
from tests.cases import SMALL

from fedbonsai.cli import main
from fedbonsai.errors import ConfigError
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.split.method import Clusters, LocalLoss, Split
from fedbonsai.methods.split.rounds import State
from fedbonsai.runs import former, recipes
from fedbonsai.runs.run import execute, load, stored
from fedbonsai.stages.weighting import Weighting
from fedbonsai.wire import decode, encode


def method_of(recipe, preset="", **overrides):
    return recipes.load(recipe, preset, {name.replace("__", "."): value for name, value in overrides.items()}).method


def test_a_topology_that_is_named_over_a_recipe_is_its_method():
    clusters = method_of("sparse-collaborative")
    flat = method_of("sparse-collaborative", method__topology__name="flat")
    assert flat == method_of("distance-weights")
    assert method_of("sparse-collaborative", "published", method__topology="flat") == method_of(
        "distance-weights", "published"
    )
    split = method_of("sparse-collaborative", method__topology={"name": "split", "version": 2})
    assert split == Split(clusters.optimizer, version=2, downlink=clusters.downlink)
    assert method_of("feddct", method__topology__size="5") == replace(method_of("feddct"), size=5)
    assert method_of("feddct", method__topology="clusters").draw == "fixed"  # a word means the topology as by default
    assert isinstance(method_of("splitfed-v1", method__topology="local-loss"), LocalLoss)
    with pytest.raises(ConfigError, match="method 'ring' is not known"):
        method_of("sparse-collaborative", method__topology="ring")


OWN = """# mine
[method]
name = "sparse-collaborative"
cohort = 1
[method.topology]
name = "clusters"
size = 4
[presets.flat.method]
topology = "flat"
[presets.bare.method]
name = "sparse-collaborative"
"""


def test_a_file_of_ones_own_may_be_of_before(tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text(OWN)
    assert method_of(str(file)) == Clusters(cohort=1, size=4)
    assert method_of(str(file), method__topology__size="6") == Clusters(cohort=1, size=6)
    flat = method_of(str(file), "flat")
    assert (flat.cohort, flat.ramp, flat.weighting) == (1, 2, Weighting(beta=1.0))  # the defaults of before
    file.write_text(OWN.replace("[method.topology]\nname = ", "[method.topology]\nnames = "))
    with pytest.raises(ConfigError, match=r"method\.names"):
        method_of(str(file))
    file.write_text('[method]\nname = "sparse-collaborative"\n')
    assert method_of(str(file)) == Clusters()
    assert main(["run", str(file), "--help"]) == 0
    assert "method.size" in capsys.readouterr().out


@pytest.mark.parametrize("experiment", ["sparse_collaborative", "sparse_collaborative_mnist"])
def test_plans_of_before_are_of_the_methods_that_they_name(experiment):
    for variant in plan_of(experiment).variants:
        method = recipes.load(variant.recipe, variant.preset, variant.settings).method
        kinds = {"t1": Split, "t1v2": Split, "t2": LocalLoss, "t3": Clusters}
        assert type(method) is kinds.get(variant.name.split("-")[0], Averaging), variant.name
        if type(method) is Averaging:
            assert method.ramp == 0
            assert method.weighting.beta == (1.0 if "beta1" in variant.name else 0.0)


def of_before(folder, topology):
    """Make the folder of a run one that the earlier release wrote."""
    table = tomllib.loads((folder / "config.toml").read_text())
    found = table["method"]
    alone = {} if topology == "flat" else {name: found.pop(name) for name in former.own_settings(topology)}
    found |= {"name": former.COLLABORATIVE, "topology": {"name": topology, **alone}}
    if topology == "flat":
        del found["warmup"]
        state = folder / "checkpoint" / json.loads((folder / "checkpoint" / "manifest.json").read_text())["state"]
        now = decode(state.read_bytes())
        figures = {"train_loss": now.loss, "dropped": float(now.dropped), "withheld": now.withheld, **now.spread}
        state.write_bytes(encode(State(now.model, now.seed, {}, {"": now.broadcast}, figures)))
    (folder / "config.toml").write_text(tomli_w.dumps(table | {"rounds": 4}))


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["flat", "split", "local-loss", "clusters"])
def test_a_run_of_before_goes_on(topology, tmp_path):
    config = recipes.load("sparse-collaborative", "", {**SMALL, "method.topology": topology, "rounds": 4})
    whole = execute(config, tmp_path / "whole")
    execute(replace(config, rounds=2), tmp_path / "half")
    of_before(tmp_path / "half", topology)
    assert stored(tmp_path / "half").method == config.method
    resumed = execute(config, tmp_path / "half", resume=True)
    assert all(torch.equal(value, whole.model.weights[name]) for name, value in resumed.model.weights.items())
    same = [{name: value for name, value in row.items() if name != "seconds"} for row in whole.metrics]
    assert [{name: value for name, value in row.items() if name != "seconds"} for row in resumed.metrics] == same
    assert load(tmp_path / "half").info["status"] == "finished"
