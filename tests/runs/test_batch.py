"""`fleet.batch` from a configuration to a run's folder."""

from pathlib import Path

import pytest

from fedbonsai.errors import ConfigError
from fedbonsai.runs import recipes
from fedbonsai.runs.run import execute, stored
from fedbonsai.runs.setup import run_context

SMALL = {"rounds": 2, "data.clients": 5, "data.limit": 200, "method.optimizer.epochs": 1, "method.optimizer.batch": 20}


def run(tmp_path: Path, name: str, recipe: str = "fedavg", **more):
    return execute(recipes.load(recipe, "", {**SMALL, **more}), tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fedavg", "fedtiny"])
def test_what_was_measured_is_written_down_and_repeats_the_run(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("fedbonsai.training.stacked.width.width", lambda *_: 3)
    auto = run(tmp_path, "auto", recipe, **{"fleet.batch": "auto"})
    assert stored(auto.path).fleet.batch == 3
    three = run(tmp_path, "three", recipe, **{"fleet.batch": 3})
    one = run(tmp_path, "one", recipe)
    ends = [(each.path / "model.safetensors").read_bytes() for each in (auto, three)]
    assert ends[0] == ends[1]
    assert three.bytes == one.bytes
    assert abs(three.score - one.score) < 0.05
    assert "3 clients at a time" in auto.info["notes"]["warning"]


@pytest.mark.slow
def test_the_measurement_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fedbonsai.measured.SECONDS", 0.0)
    auto = run(tmp_path, "auto", **{"fleet.batch": "auto"})
    found = stored(auto.path).fleet.batch
    assert isinstance(found, int)
    assert found >= 1
    assert (tmp_path / "cache" / "batches.json").exists()


def test_what_cannot_train_together_is_said():
    made = run_context(recipes.load("fedavg", "", {**SMALL, "fleet.batch": 4, "method.optimizer.precision": "bf16"}))
    assert made.batch == 1
    assert any("one after another, since stacks compute in fp32" in text for text in made.said)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fleet.batch": 0}, "expected 'auto', or at least 1"),
        ({"fleet.batch": "many"}, r"expected int \| auto"),
        ({"fleet.batch": 4, "fleet.kind": "flower"}, "devices train alone"),
    ],
)
def test_bad_input_is_told(settings, words):
    with pytest.raises(ConfigError, match=words):
        recipes.load("fedavg", "", {**SMALL, **settings})
