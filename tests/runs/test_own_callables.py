"""A network by ``package.module:callable``: in process, in workers, and by whoever imports it; never from the wire alone."""

import sys

import pytest

import fedbonsai
from fedbonsai import arch
from fedbonsai.arch import Arch, networks
from fedbonsai.errors import ConfigError
from fedbonsai.runs import recipes
from fedbonsai.runs.check import check

TEXT = """
from torch import nn


def build(size: int = 8, classes: int = 10, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(size * size, width), nn.ReLU(), nn.Linear(width, classes))
"""
SMALL = {"rounds": 2, "data.clients": 3, "data.limit": 120, "method.optimizer.batch": 20}


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "callable_nets.py").write_text(TEXT)
    monkeypatch.setattr(arch, "_builders", networks())  # other tests need not meet it
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield
    sys.modules.pop("callable_nets", None)


@pytest.mark.slow
def test_it_trains_the_same_in_process_and_in_workers():
    settings = {**SMALL, "model.name": "callable_nets:build", "model.options": {"width": 6}}
    given = {key.replace(".", "__"): value for key, value in settings.items()}
    runs = [fedbonsai.run("fedavg", name=kind, progress=False, fleet__kind=kind, **given) for kind in ("local", "pool")]
    one, two = (run.model.weights for run in runs)
    assert all(one[name].equal(two[name]) for name in one)
    made = fedbonsai.load(runs[0].path).model.arch
    assert made == Arch("callable_nets:build", {"size": 8, "classes": 10, "width": 6})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("callable_nets:bild", "did you mean 'build'"),
        ("no_such_module:build", "no such module"),
        ("os:sep", "no callable"),
    ],
)
def test_what_is_not_there_is_told(name, text):
    with pytest.raises(ConfigError, match=text):
        check(recipes.load("fedavg", "", {**SMALL, "model.name": name}))


def test_a_name_that_nobody_brought_is_not_imported():
    there = "tabnanny" in sys.modules
    with pytest.raises(ConfigError, match="not known"):
        Arch("tabnanny:process_tokens").takes()
    assert ("tabnanny" in sys.modules) == there
    assert "tabnanny:process_tokens" not in networks()
