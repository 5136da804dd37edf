"""A gate and a criterion in one file of a user's own: by configuration, in process, in worker processes, on a device."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from fedbonsai import wire
from fedbonsai.choice import choice, homes
from fedbonsai.cli import main
from fedbonsai.errors import ConfigError
from fedbonsai.modules import own
from fedbonsai.runs import recipes
from fedbonsai.runs.run import execute, load
from fedbonsai.runs.structure import settings
from fedbonsai.stages.pruning.criteria import Criterion
from fedbonsai.stages.pruning.gates import Gate
from fedbonsai.stages.pruning.masks import prunable
from fedbonsai.wire import encode

FILE = '''"""Two choices of my own."""

from fedbonsai.choice import choice
from fedbonsai.stages.pruning.criteria import Criterion
from fedbonsai.stages.pruning.gates import Gate, gate


@gate("mygate")
class MyGate(Gate):
    """Every so many rounds, beginning with the first."""

    period: int = 1
    """Rounds from one upload to the next."""

    def __post_init__(self):
        if self.period < 1:
            raise ValueError(f"period = {self.period}: expected at least 1")

    def passes(self, found, seen):
        assert found.change
        return found.t % self.period == 0

    def faults(self, use):
        return ["gate mygate has no meaning with a cache: set skippers = 'drop'"] if use.cached else []


@choice("mycriterion")
class MyCriterion(Criterion):
    """The last weights of each layer, or the first ones."""

    first: bool = False
    """The first ones."""

    def scores(self, grounds):
        sign = -1 if self.first else 1
        return {name: sign * w.new_ones(w.shape).flatten().cumsum(0).reshape(w.shape) for name, w in grounds.weights.items()}
'''
MINE = "my_two_choices"
SMALL = {"rounds": 2, "data.clients": 3, "method.optimizer.epochs": 1, "fleet.threads": 1}
GATED = {**SMALL, "method.gate.name": "mygate", "method.gate.period": 2, "method.selection.pool": 2}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The name of such a module, in the current folder; all that it registers is forgotten afterwards."""
    (tmp_path / f"{MINE}.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield MINE
    sys.modules.pop(MINE, None)
    for known in (Gate.choices, Criterion.choices, wire._messages):
        for name in [name for name, made in known.items() if made.__module__ == MINE]:
            del known[name]


def run(recipe, mine, name, **more):
    overrides = {"imports": [mine], **{path.replace("__", "."): value for path, value in more.items()}}
    config = recipes.load(recipe, "", {**overrides, "name": name})
    return execute(config, Path(name))


def final(made):
    return (made.path / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_gate_decides_in_process_and_in_worker_processes(mine):
    local = run("fedtiny-gated", mine, "local", **GATED)
    assert [row["skips"] for row in local.metrics if row["round"] >= 0] == [0, 3]
    pool = run("fedtiny-gated", mine, "pool", **GATED, fleet__kind="pool", fleet__workers=2)
    assert final(pool) == final(local)
    assert 'name = "mygate"' in (local.path / "config.toml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "pool"])
def test_a_criterion_decides_which_weights_stay(mine, kind):
    more = {"method.criterion.name": "mycriterion", "method.density": 0.25, "fleet.kind": kind}
    made = run("static-magnitude", mine, kind, **SMALL, **more)
    weights = made.model.weights
    for name in prunable(made.model):
        kept = (weights[name] != 0).flatten()
        pruned = kept.numel() - int(kept.sum())
        assert 0.7 < pruned / kept.numel() < 0.8
        assert not kept[:pruned].any()


@pytest.mark.slow
def test_the_command_line_runs_it_and_goes_on_with_it(mine):
    words = [f"--{path}={value}" for path, value in GATED.items()]
    assert main(["run", "fedtiny-gated", "--imports", mine, "--name", "told", "--quiet", *words]) == 0
    assert load("runs/told").metrics[-1]["skips"] == 3


def test_its_settings_are_checked_and_have_a_help(mine):
    config = recipes.load("fedtiny-gated", "", {"imports": mine, **GATED})
    assert config.method.gate == Gate.choices["mygate"](2)
    assert {"period"} <= {one.path.rpartition(".")[2] for one in settings(Gate.choices["mygate"])}
    for more, text in (
        ({"method.gate.period": 0}, "period = 0: expected at least 1"),
        ({"method.gate.perod": 1}, "did you mean 'period'"),
        ({"method.gate.name": "mygat"}, "near is 'mygate'"),
    ):
        with pytest.raises(ConfigError, match=text):
            recipes.load("fedtiny-gated", "", {"imports": mine, **GATED, **more})
    with pytest.raises(ConfigError, match="no meaning with a cache"):
        recipes.load("fl-pqsu", "", {"imports": mine, "method.gate.name": "mygate"})
    recipes.load("fl-pqsu", "", {"imports": mine, "method.gate.name": "mygate", "method.skippers": "drop"})


def test_a_name_is_taken_once(mine):
    own(mine)
    with pytest.raises(ValueError, match=f"Criterion 'mycriterion' is taken by {mine}; choose another name"):

        @choice("mycriterion")
        class Other(Criterion):
            """Another one."""

    import_module("importlib").reload(sys.modules[mine])  # its own module may define it again
    assert homes() >= {mine}


@pytest.mark.slow
def test_a_device_reads_it_with_the_module_and_says_what_is_missing_without(mine):
    own(mine)
    Path("gate").write_bytes(encode(Gate.choices["mygate"](5)))
    code = (
        "import sys; from pathlib import Path; from fedbonsai.fleets.flower.device import DeviceConfig\n"
        "trial = {'name': 'digits', 'clients': 2}\n"
        "DeviceConfig('pi', '.', part=0, trial=trial, imports=tuple(sys.argv[1:])).worker()\n"
        "from fedbonsai.wire import decode; print(decode(Path('gate').read_bytes()))"
    )
    for imports, text in (([mine], "MyGate(period=5)"), ([], "message 'gate/mygate@1' is not known here")):
        done = subprocess.run([sys.executable, "-c", code, *imports], capture_output=True, text=True, env=os.environ)
        assert text in done.stdout + done.stderr
