"""Settings that cannot be meant are refused before anything runs, whichever method or choice has them."""

import copy
import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import fedbonsai
from fedbonsai.choice import Choice
from fedbonsai.cli import main
from fedbonsai.core import Device
from fedbonsai.errors import ConfigError
from fedbonsai.methods.registry import methods
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.recipes import load
from fedbonsai.runs.structure import structure, unstructure
from fedbonsai.stages.sampling import cohort

NUMBERS = {int: int, int | None: int, float: float, float | None: float}
NEVER = (float("nan"), float("inf"), float("-inf"), True, "many", 2**63, 10**30)
BELOW_ZERO = {  # what is meant by a number below zero: decibels, before the first round, far ones count more
    *(f"method.cell.{name}" for name in ("noise", "noise_figure", "power", "station_power", "gap")),
    "method.schedule.first",
    "method.weighting.beta",
    "objective.offset",
}


def numbers(cls: type[Any], prefix: str = ""):
    """Path, kind and default of each number of a table, and the names of the choices that lead to it."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, path = hints[field.name], f"{prefix}{field.name}"
        if isinstance(kind, type) and Choice in kind.__bases__:
            for name, each in kind.choices.items():
                yield from ((*found, chosen | {f"{path}.name": name}) for *found, chosen in numbers(each, f"{path}."))
        elif kind in NUMBERS:
            yield path, NUMBERS[kind], field.default, {}
        elif dataclasses.is_dataclass(kind) and path != "method.uplink":
            yield from numbers(kind, f"{path}.")


def every():
    yield from ((("averaging"), *found) for found in numbers(RunConfig))
    for name, cls in sorted(methods().items()):
        yield from ((name, *found) for found in numbers(cls, "method."))


def faults(method: str, **values: object) -> str:
    """What is wrong with a configuration; empty if nothing is."""
    table: dict[str, Any] = {"method": {"name": method}}
    for path, value in values.items():
        *parents, last = path.split(".")
        here = table
        for part in parents:
            here = here.setdefault(part, {})
        here[last] = value
    try:
        structure(copy.deepcopy(table), RunConfig)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_no_number_is_infinite_a_truth_or_text():
    for method, path, kind, default, chosen in every():
        for value in NEVER:
            if value == default or (kind is float and isinstance(value, int) and not isinstance(value, bool)):
                continue
            said = faults(method, **chosen, **{path: value})
            assert any(line.startswith(f"{path}: expected") for line in said.splitlines()), (method, path, value, said)


def test_nothing_below_zero_is_taken_where_it_means_nothing():
    taken = set()
    for method, path, kind, _, chosen in every():
        if not {"sgd", "optimizer"} & {*path.split(".")} and not path.startswith(
            "method.server."
        ):  # local training says it itself
            for value in (-1, -7) if kind is int else (-1.0, -1e-9):
                taken |= {path} if faults(method, **chosen, **{path: value}) == faults(method, **chosen) else set()
    assert taken == BELOW_ZERO


def test_where_infinite_means_no_limit_it_is_taken_and_read_again():
    config = load("fedavg", "", {"method.name": "wireless-pruning", "method.cell.cap": "inf"})
    assert config.method.cell.cap == float("inf")
    assert structure(unstructure(config), RunConfig) == config
    assert "expected a finite number" in faults("wireless-pruning", **{"method.cell.cap": float("nan")})


@pytest.mark.parametrize("name", ["../a", "/a", "a/b", "a\\b", ".", "..", "-a", "a\0b", "a\nb", " a", "a ", "ł" * 101])
def test_a_name_is_that_of_a_folder_below(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="expected the name of a folder"):
        fedbonsai.run("fedavg", name=name, rounds=1)
    if "\0" not in name:
        assert main(["validate", "fedavg", f"--name={name}"]) == 2
        assert main(["compare", "fedavg", f"--name={name}", "--plan"]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a", "a.b", ".a", "a b", "żółw", "try [bold] <b>&amp;|", "ł" * 100])
def test_other_names_are_free(name):
    assert load("fedavg", "", {"name": name}).name == name


@pytest.mark.slow
def test_more_clients_than_there_are_cannot_be_asked(tmp_path):
    assert "there are 4 devices" in faults("averaging", **{"data.clients": 4, "method.cohort": 5})
    assert not faults("averaging", **{"data.clients": 4, "method.cohort": 4})
    split = fedbonsai.run(
        "fedavg", name="a", runs=tmp_path, rounds=1, data__clients=3, data__limit=90, model__name="mlp"
    ).path
    with pytest.raises(ConfigError, match="cohort = 4: there are 3 devices"):  # as many as the split has
        fedbonsai.run(
            "fedavg", name="b", runs=tmp_path, data__split=str(split / "split.json"), data__limit=90, method__cohort=4
        )
    assert not (tmp_path / "b").exists()
    for count in (-1, 3):
        with pytest.raises(ConfigError, match=f"cohort = {count}"):
            cohort([Device("a"), Device("b")], count, 0, 0)


@pytest.mark.parametrize("given", ["own_nets", "own_nets,own_data", " own_nets , own_data", '["own_nets", "own_data"]'])
def test_names_are_a_list_or_one(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("own_nets", "own_data"):
        Path(f"{name}.py").touch()
    wanted = ("own_nets",) if given == "own_nets" else ("own_nets", "own_data")
    assert load("fedavg", "", {"imports": given}).imports == wanted
    assert load("feddst", "", {"method.never": given}).method.never == wanted
    Path("r.toml").write_text('imports = "own_nets"\n[method]\nname = "averaging"\n')
    assert load("r.toml").imports == ("own_nets",)
    assert "expected a name or a list of names" in faults("averaging", imports=3)
    assert "expected a table" in faults("averaging", **{"model.options": "wide"})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "there is no such module"),
        ("import nowhere_to_be_found", "line 1: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("x = 1\n\nx.y()", "line 3: AttributeError: 'int' object has no attribute 'y'"),
        ("def f(:\n", "line 1: "),
        ("import sys\nsys.exit('usage: me')", "line 2: SystemExit: usage: me"),
        ("raise ValueError('two\\nlines')", "line 1: ValueError: two lines"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "validate"])
def test_a_module_that_cannot_be_imported_is_one_line(text, why, verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = f"mine_{abs(hash((text, verb)))}"
    if text is not None:
        Path(f"{name}.py").write_text(text)
    assert main([verb, "fedavg", "--imports", name]) == 2
    said = capsys.readouterr().err
    assert f"module '{name}' cannot be imported: " in said
    assert why in said
    assert said.count("\n") == 1
    assert text is None or f"{name}.py" in said


def test_text_that_no_file_can_hold_is_refused():
    assert "written as UTF-8" in faults("averaging", **{"data.path": "caf\udce9"})
