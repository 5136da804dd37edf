import re
from dataclasses import field
from pathlib import Path

import pytest
import tomli_w

from fedbonsai.cli import main
from fedbonsai.errors import ConfigError
from fedbonsai.methods import registry
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.objectives import Classification, Objective, Regression
from fedbonsai.runs import recipes
from fedbonsai.runs.config import RunConfig, local_training
from fedbonsai.runs.structure import settings, structure, unstructure
from fedbonsai.training.optimizers import SGD, Adam, Optimizer


def test_a_recipe_its_overrides_and_its_table_are_one():
    config = recipes.load(
        "fedavg", overrides={"method.optimizer.lr": "0.5", "rounds": 3, "name": "7", "data.clients": "4"}
    )
    assert isinstance(config.method, Averaging)
    assert (config.method.optimizer.lr, config.rounds, config.name, config.data.clients) == (0.5, 3, "7", 4)
    assert structure(unstructure(config), RunConfig) == config


def test_all_faults_come_at_once_with_the_nearest_name():
    wrong = {"method.optimizer.lrr": "1", "data.clints": "3", "rounds": "2.5", "model.nam": "x", "fleet.kind": "cloud"}
    with pytest.raises(ConfigError) as caught:
        recipes.load("fedavg", overrides=wrong)
    text = str(caught.value)
    for part in (
        "method.optimizer.lrr",
        "did you mean 'lr'",
        "data.clints",
        "'clients'",
        "rounds: expected int",
        "model.nam",
    ):
        assert part in text
    assert "fleet.kind" in text


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"rounds": 0}, "rounds = 0"),
        ({"method.optimizer.lr": -1}, "method.optimizer: lr = -1"),
        ({"method.cohort": True}, "method.cohort: expected int, got True"),
        ({"method.name": "avraging"}, "did you mean 'averaging'"),
        ({"method": 3}, "method"),
        ({"data": "digits"}, "data"),
        ({"data.alpha": -1}, "alpha"),
        ({"fleet.threads": 100_000}, "fleet: threads = 100000: expected at least 1 and at most 1024"),
        ({"fleet.workers": 0, "fleet.threads": 0}, "workers = 0: .*threads = 0: "),
        ({"fleet.kind": "pool", "fleet.wire": False}, "fleet: wire = false: worker processes always use the wire"),
        ({"imports": ["no_such_module_of_mine"]}, "cannot be imported"),
    ],
)
def test_values_that_cannot_be_meant(overrides, text):
    with pytest.raises(ConfigError, match=text):
        recipes.load("fedavg", overrides=overrides)


def test_unknown_recipes_and_presets():
    with pytest.raises(ConfigError, match="did you mean 'fedavg'"):
        recipes.load("fedavgg")
    with pytest.raises(ConfigError, match="does not exist"):
        recipes.load("mine.toml")
    with pytest.raises(ConfigError, match="preset"):
        recipes.load("fedavg", "publishd")


def test_a_file_of_ones_own_with_presets(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('rounds = 2\n[method]\nname = "averaging"\n[presets.long]\nrounds = 99\n')
    assert recipes.load(str(file)).rounds == 2
    assert recipes.load(str(file), "long").rounds == 99
    file.write_text("rounds = = 2")
    with pytest.raises(ConfigError, match="not valid TOML"):
        recipes.load(str(file))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('method = "averaging"', "method: expected a table with the method's name"),
        ('method.name = ["averaging"]', "method: expected a table with the method's name"),
        (
            'data = "mnist"\nmethod.name = "averaging"',
            r"data: expected a table of settings \(name, path, .*got 'mnist'",
        ),
        ('fleet = 3\nmethod.name = "averaging"', r"fleet: expected a table of settings \(kind, .*got 3"),
        ('[[data]]\n[method]\nname = "averaging"', r"data: expected a table .*got \[\{\}\]"),
        ('presets = "fast"', r"presets: expected tables such as \[presets.small\], got 'fast'"),
        ("[presets]\nfast = 3", r"presets: expected tables .*got \{'fast': 3\}"),
        (f"a = {'[' * 4000}{']' * 4000}", "not valid TOML: brackets within brackets"),
        ("rounds = 2\nrounds = 3\n", "not valid TOML: .*line 2"),
        ("", "'method' is missing"),
    ],
)
def test_a_file_of_another_shape_is_refused_however_it_is_read(tmp_path, text, why, capsys):
    file = tmp_path / "mine.TOML"
    file.write_text(text)
    for overrides in ({}, {"name": "a", "rounds": "3"}):
        with pytest.raises(ConfigError, match=why):
            recipes.load(str(file), overrides=overrides)
    for words in (["show", str(file)], ["run", str(file), "--help"]):
        assert main(words) == 2
        assert re.search(why, capsys.readouterr().err)


def test_what_is_no_file_of_settings_is_called_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("d.toml").mkdir()
    Path("notes.txt").touch()
    for name, why in (
        ("d.toml", "d.toml cannot be read: Is a directory"),
        ("notes.txt", r"'notes.txt' is not known, and of files only those are read that are called .toml\."),
        ("fedprox:wide", r"; a preset is chosen by --preset wide\."),
        ("zzz", r"'zzz' is not known; give one of those, or a .toml file\. Known: .*\bdgc, "),
    ):
        with pytest.raises(ConfigError, match=why):
            recipes.load(name)
    with pytest.raises(ConfigError, match="'fedprox' is a recipe, not a method: begin with it: fedbonsai cp fedprox"):
        recipes.load("fedavg", overrides={"method.name": "fedprox"})


def test_a_table_and_its_parts_are_not_given_both():
    for words in (["--data", "digits", "--data.limit", "90"], ["--data.limit", "90", "--data", "digits"]):
        with pytest.raises(ConfigError, match=r"data = 'digits' and data.limit exclude each other"):
            recipes.load("fedavg", overrides=recipes.overrides_of(words))
    whole = recipes.load(
        "fedavg", overrides={"model.options": "{ widths = [8] }", "model.name": "mlp", "data.limit": 90}
    )
    assert (whole.model.options, whole.data.limit, whole.data.clients) == ({"widths": [8]}, 90, 10)


def test_another_network_or_method_drops_the_old_ones_options():
    config = recipes.load("fedavg", overrides={"model.options.widths": "[8]", "model.name": "mlp"})
    assert config.model.options == {"widths": [8]}


def test_words_of_the_command_line():
    assert recipes.overrides_of(["--a.b", "1", "--c=x=y", "--flag", "--d", "-1"]) == {
        "a.b": "1",
        "c": "x=y",
        "flag": "true",
        "d": "-1",
    }
    with pytest.raises(ConfigError, match="belongs to no setting"):
        recipes.overrides_of(["value"])
    assert recipes.overrides_of(["--rounds", "2", "--rounds=3"]) == {"rounds": "3"}


def test_every_setting_has_a_help_text(optimised):
    for objective in Objective.choices:
        for optimizer in Optimizer.choices:
            chosen = {"objective": {"name": objective}, "method": {"optimizer": {"name": optimizer}}}
            for setting in settings(RunConfig, "test-optimised", chosen=chosen):
                assert setting.help, f"{setting.path} has no docstring"


@pytest.fixture
def optimised(monkeypatch):
    """A method whose local training is any optimiser; no other test sees it."""
    monkeypatch.setattr(registry, "_methods", registry.methods())

    @registry.method("test-optimised")
    class Optimised:
        optimizer: Optimizer = field(default_factory=SGD)
        """Local training."""

    return Optimised


MINE = {"name": "test-optimised"}


def test_the_settings_of_what_is_chosen_are_shown(optimised, tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text(
        '[method]\nname = "test-optimised"\n[method.optimizer]\nname = "adamw"\n[objective]\nname = "regression"\n'
    )
    assert main(["run", str(file), "--help"]) == 0
    out = capsys.readouterr().out
    for part in (
        "--objective.name str ('regression')\n        One of classification, binary, multilabel, regression, tokens.",
        "--objective.loss_of mse | mae | huber ('mse')\n        Squared, absolute or Huber loss.",
        "--method.optimizer.name str ('adamw')\n        One of sgd, adam, adamw. Local training.",
        "--method.optimizer.beta2 float (0.999)\n        Decay of the mean of their squares.",
        "--method.optimizer.weight_decay float (0.01)\n        Share of the weights, times the rate, that each step takes away.",
    ):
        assert part in out
    assert "smoothing" not in out
    for what, part in (
        ("objectives", "regression      (metric, loss_of, delta,"),
        ("optimizers", "adamw  (lr, beta1,"),
    ):
        assert main(["ls", what]) == 0
        assert part in capsys.readouterr().out


def test_an_earlier_name_of_a_setting_is_today_s_everywhere(optimised, tmp_path):
    table = {"method": MINE | {"sgd": {"lr": 0.5, "momentum": 0.9}}}
    config = structure(table, RunConfig)
    assert config.method.optimizer == SGD(lr=0.5, momentum=0.9)
    assert unstructure(config)["method"]["optimizer"]["name"] == "sgd"
    assert structure(unstructure(config), RunConfig) == config
    file = tmp_path / "mine.toml"
    file.write_text(
        '[method]\nname = "test-optimised"\n[method.optimizer]\nlr = 0.5\n[presets.old]\nmethod.sgd.batch = 7\n'
    )
    loaded = recipes.load(str(file), "old", {"method.optimizer.momentum": "0.5", "method.optimizer.epochs": 2})
    assert loaded.method.optimizer == SGD(lr=0.5, momentum=0.5, batch=7, epochs=2)
    assert recipes.load("fedavg", "", {"method.optimizer.lr": 0.3}).method.optimizer.lr == 0.3
    for both in ({"sgd": {}, "optimizer": {}}, {"sgd": {"lr": 1.0}, "optimizer": {"lr": 1.0}}):
        with pytest.raises(ConfigError, match="method: sgd and optimizer are the same setting: leave sgd out"):
            structure({"method": MINE | both}, RunConfig)
        file.write_text(tomli_w.dumps({"method": MINE | both}))
        with pytest.raises(ConfigError, match="method: sgd and optimizer are the same setting: leave sgd out"):
            recipes.load(str(file))


def test_a_table_without_a_name_is_of_the_choice_by_default(optimised):
    config = structure({"method": MINE | {"optimizer": {"lr": 0.3}}, "objective": {"smoothing": 0.1}}, RunConfig)
    assert (config.method.optimizer, config.objective) == (SGD(lr=0.3), Classification(smoothing=0.1))
    with pytest.raises(ConfigError, match=r"method.optimizer: expected a table with a name among .*near is 'adam'"):
        structure({"method": MINE | {"optimizer": {"name": "adamm"}}}, RunConfig)
    with pytest.raises(ConfigError, match=r"objective.loss_of: there is no such setting"):
        structure({"method": MINE, "objective": {"loss_of": "mae"}}, RunConfig)


def test_another_optimiser_keeps_batches_and_the_proximal_term_but_no_rate(optimised, tmp_path):
    file = tmp_path / "mine.toml"
    own = {"lr": 0.5, "momentum": 0.9, "batch": 7, "epochs": 3, "proximal": 0.1}
    for name in ({}, {"name": "sgd"}):
        file.write_text(tomli_w.dumps({"method": MINE | {"optimizer": name | own}}))
        made = recipes.load(str(file), "", {"method.optimizer.name": "adam", "method.optimizer.beta1": "0.8"}).method
        assert made.optimizer == Adam(batch=7, epochs=3, proximal=0.1, beta1=0.8)
        made = recipes.load(str(file), "", {"method.optimizer.name": "sgd"}).method
        assert made.optimizer == SGD(**own)
    other = recipes.load("fedavg", "", {"objective.name": "regression", "objective.loss_of": "mae"})
    assert other.objective == Regression(loss_of="mae")


@pytest.mark.parametrize("key", ["sgd", "optimizer"])
def test_a_cosine_ends_with_the_run_unless_it_says_when(optimised, key):
    name = "test-optimised"
    config = structure({"rounds": 17, "method": {"name": name, key: {"schedule": "cosine"}}}, RunConfig)
    assert config.method.optimizer.rounds == 17
    assert structure(unstructure(config), RunConfig) == config
    config = structure({"rounds": 17, "method": {"name": name, key: {"schedule": "cosine", "rounds": 5}}}, RunConfig)
    assert config.method.optimizer.rounds == 5
    assert local_training(config.method) is config.method.optimizer


def test_a_faulty_part_hides_no_fault_of_the_whole():
    with pytest.raises(ConfigError) as refused:
        recipes.load("fedavg", "", {"rounds": -1, "method.optimizer.lr": -1.0, "data.clients": -5})
    said = str(refused.value)
    assert all(part in said for part in ("rounds = -1", "lr = -1.0", "clients = -5"))
    with pytest.raises(ConfigError) as refused:
        recipes.load("fedavg", "", {"rounds": -1, "method.optimizer.speed": 3, "data.cleints": 10})
    said = str(refused.value)
    assert all(part in said for part in ("rounds = -1", "speed", "did you mean 'clients'"))
    assert len(said.splitlines()) == 3
