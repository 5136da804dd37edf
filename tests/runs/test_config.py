import re
from pathlib import Path

import pytest

from fedbonsai.cli import main
from fedbonsai.errors import ConfigError
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.runs import recipes
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.structure import settings, structure, unstructure


def test_a_recipe_its_overrides_and_its_table_are_one():
    config = recipes.load("fedavg", overrides={"method.sgd.lr": "0.5", "rounds": 3, "name": "7", "data.clients": "4"})
    assert isinstance(config.method, Averaging)
    assert (config.method.sgd.lr, config.rounds, config.name, config.data.clients) == (0.5, 3, "7", 4)
    assert structure(unstructure(config), RunConfig) == config


def test_all_faults_come_at_once_with_the_nearest_name():
    wrong = {"method.sgd.lrr": "1", "data.clints": "3", "rounds": "2.5", "model.nam": "x", "fleet.kind": "cloud"}
    with pytest.raises(ConfigError) as caught:
        recipes.load("fedavg", overrides=wrong)
    text = str(caught.value)
    for part in (
        "method.sgd.lrr",
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
        ({"method.sgd.lr": -1}, "method.sgd: lr = -1"),
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
        ("zzz", r"'zzz' is not known; give one of those, or a .toml file\. Known: dgc, "),
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


def test_every_setting_has_a_help_text():
    for name in ("averaging",):
        for setting in settings(RunConfig, name):
            assert setting.help, f"{setting.path} has no docstring"


def test_a_faulty_part_hides_no_fault_of_the_whole():
    with pytest.raises(ConfigError) as refused:
        recipes.load("fedavg", "", {"rounds": -1, "method.sgd.lr": -1.0, "data.clients": -5})
    said = str(refused.value)
    assert all(part in said for part in ("rounds = -1", "lr = -1.0", "clients = -5"))
    with pytest.raises(ConfigError) as refused:
        recipes.load("fedavg", "", {"rounds": -1, "method.sgd.speed": 3, "data.cleints": 10})
    said = str(refused.value)
    assert all(part in said for part in ("rounds = -1", "speed", "did you mean 'clients'"))
    assert len(said.splitlines()) == 3
