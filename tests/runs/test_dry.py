"""Before a run begins, one step shows whether the network can be trained on the data; `validate` says what `run` would."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedbonsai
from fedbonsai import network
from fedbonsai.cli import main
from fedbonsai.errors import ConfigError
from fedbonsai.runs import recipes
from fedbonsai.runs.check import check
from fedbonsai.runs.setup import federation, rehearsed, run_context

RUN = {"rounds": 1, "data.clients": 3, "data.limit": 90, "data.partition": "iid"}


class Net(nn.Module):
    """64 inputs, 10 scores, wrong in one way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.out, self.side = how, nn.Linear(64, 10), nn.Linear(64, 10)
        if how == "builder":
            self.out = nn.Linear(64, 10, bias=3, colour="red")
        if how == "index":
            self.embed = nn.Embedding(4, 64)
        if how == "nan":
            nn.init.constant_(self.out.weight, float("nan"))

    def forward(self, x: Tensor) -> object:
        flat = x.flatten(1)
        match self.how:
            case "tuple":
                return (self.out(flat), self.side(flat)) if self.training else self.out(flat)
            case "dictionary":
                return {"scores": self.out(flat)}
            case "key":
                return {}["scores"]
            case "exit":
                raise SystemExit("no")
            case "squeezed":
                return self.out(flat).squeeze()
            case "wide":
                return torch.cat([self.out(flat), self.side(flat)], 1)
            case "classes":
                return self.out(flat).argmax(1)
            case "index":
                return self.out(self.embed(flat.long() + 100).mean(1))
            case "constant":
                return torch.zeros(len(x), 10)
            case "writes":
                return self.out(F.relu_(x).flatten(1))
            case "halved":
                return self.out(flat)[: (len(x) + 1) // 2]
        return self.out(flat)


WAYS = {
    "builder": "cannot be built with .* TypeError",
    "tuple": r"gives a tuple in training: expected one tensor of outputs \[11, 10\]",
    "dictionary": "gives a dict in training",
    "key": "KeyError: 'scores'",
    "squeezed": r"cannot score 1 sample .* gives \[10\]",
    "wide": r"gives \[\d+, 20\] .* since the data has 10 classes",
    "classes": "int64",
    "index": "IndexError: index out of range",
    "constant": "no parameter that is trained has an effect",
    "writes": "writes into its input",
    "halved": r"gives \[6, 10\] .*expects \[11, 10\], since the data has 10 classes",
    "nan": "expected a finite number",
    "exit": "SystemExit: no",
}
for _how in [*WAYS, "right"]:
    network(f"dry-{_how}")(lambda how=_how: Net(how))
network("dry-once")(
    lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10, track_running_stats=False))
)
network("dry-norm")(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)))


@pytest.mark.parametrize(("how", "text"), WAYS.items())
def test_what_cannot_be_trained_is_refused_by_its_name(how, text):
    config = recipes.load("fedavg", "", RUN | {"model.name": f"dry-{how}"})
    data = federation(config)
    with pytest.raises(ConfigError, match=f"(?s)'dry-{how}'.*{text}"):
        rehearsed(config, data)


def test_what_can_be_trained_is_not():
    for how in ("right", "norm", "once"):
        config = recipes.load("fedavg", "", RUN | {"model.name": f"dry-{how}"})
        _, said = rehearsed(config, federation(config))
        assert [text.split(":")[0] for text in said] == (
            ["model 'dry-once' cannot score 1 sample of [1, 8, 8] alone"] if how == "once" else []
        )


def test_a_layout_of_pictures_is_refused_where_nothing_has_it():
    last = {"method.optimizer.channels_last": True}
    config = recipes.load("fedavg", "", RUN | last | {"model.name": "dry-right"})
    with pytest.raises(ConfigError, match=r"channels_last = true has no effect on model 'dry-right', .* leave it out"):
        rehearsed(config, federation(config))
    config = recipes.load("fedavg", "", RUN | last | {"model.name": "cnn-bn"})
    assert rehearsed(config, federation(config))[1] == ()


def test_clients_whose_batches_are_too_small_are_said():
    config = recipes.load("fedavg", "", RUN | {"model.name": "dry-norm"})
    data = federation(config)
    split = data.split
    object.__setattr__(split, "train", (split.train[0][:1], split.train[1], split.train[2][:1]))
    object.__setattr__(data, "split", split)
    _, said = rehearsed(config, data)
    assert len(said) == 1
    assert said[0].startswith("client 000 will stay silent: its smallest batch has 1 samples")
    assert said[0].endswith("(so 1 more clients)")


def test_a_refused_network_leaves_no_folder(tmp_path):
    with pytest.raises(ConfigError, match="dry-tuple"):
        fedbonsai.run("fedavg", runs=tmp_path, name="x", rounds=1, data__clients=3, model__name="dry-tuple")
    assert not list(tmp_path.iterdir())


REFUSED = [
    ("fedavg", {"model.name": "dry-wide"}),
    ("fedtiny", {"model.options": {"norm": "group"}}),
    ("fedavg", {"data.path": "no-such-folder"}),
    ("fedavg", {"clock.devices": "raspberry-pi-40"}),
    ("splitfed-v1", {"model.name": "dry-right"}),
    ("feddct", {"data.clients": 5}),
    ("fedavg", {"fleet.device": "cuda:9"}),
    ("fedavg", {"fleet.kind": "flower", "target": 0.5}),
]


@pytest.mark.parametrize(("recipe", "settings"), REFUSED)
def test_validate_refuses_what_a_run_refuses(recipe, settings):
    with pytest.raises(ConfigError):
        check(recipes.load(recipe, "", RUN | settings))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipes.shipped())
def test_shipped_recipes_are_valid_and_nothing_is_written(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [said for said in check(recipes.load(recipe)) if not said.startswith("a model that always answers")] == []
    assert not list(Path.cwd().iterdir())


def test_validate_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["validate", "fedavg", "--data.clients", "3"]) == 0
    assert "is valid" in capsys.readouterr().out
    assert main(["validate", "fedavg", "--model.name", "dry-key"]) == 2
    assert "KeyError" in capsys.readouterr().err


def test_training_here_does_not_start_workers():
    assert check(recipes.load("fedavg", "", RUN | {"fleet.kind": "pool", "fleet.workers": 64})) == ()
    assert run_context(recipes.load("fedavg", "", RUN)).said == ()


NOTEBOOK = """
import fedbonsai
from torch import nn

@fedbonsai.network("of-a-cell")
def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

run = fedbonsai.run("fedavg", name="here", rounds=1, data__clients=3, model__name="of-a-cell")
print(run.info["status"])
fedbonsai.run("fedavg", name="there", rounds=1, data__clients=3, model__name="of-a-cell", fleet__kind="pool")
"""


@pytest.mark.slow
def test_a_network_of_a_notebook_works_here_and_is_refused_by_worker_processes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-"], input=NOTEBOOK, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["finished"]
    assert "ConfigError: model 'of-a-cell' was defined in this session" in done.stderr


@pytest.mark.parametrize("ids", [(), ("a", "b", "c")])
def test_a_split_in_which_nobody_has_samples_is_refused_by_both(ids, tmp_path):
    config = recipes.load("fedavg", overrides={**RUN, "model.name": "mlp"})
    nothing = ((),) * len(ids)
    replace(federation(config).split, ids=ids, train=nothing, valid=nothing).save(tmp_path / "none.json")
    config = recipes.load("fedavg", overrides={**RUN, "model.name": "mlp", "data.split": str(tmp_path / "none.json")})
    for build in (check, run_context):
        with pytest.raises(ConfigError, match=r"no client has training samples in the split .*none\.json"):
            build(config)
