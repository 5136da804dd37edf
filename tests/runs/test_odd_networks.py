"""Networks that no run could train rightly are refused in one text, whatever their code does, and leave no trace."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import fedbonsai
from fedbonsai import network
from fedbonsai.errors import ConfigError
from fedbonsai.runs import recipes
from fedbonsai.runs.setup import federation, initial_model, rehearsed

RUN = {"rounds": 1, "data.clients": 3, "data.limit": 90, "data.partition": "iid"}
CALLS = itertools.count(1)
DRAWS = torch.Generator().manual_seed(0)
ONE = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Away(BaseException):
    pass


class Net(nn.Module):
    """64 inputs, 10 scores."""

    def __init__(self, changed=lambda net, x: x, after=lambda net, scores: scores) -> None:
        super().__init__()
        self.out, self.changed, self.after = nn.Linear(64, 10), changed, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self, self.out(self.changed(self, x.flatten(1))))


def raising(error: BaseException):
    def change(net: nn.Module, x: Tensor) -> Tensor:
        raise error

    return lambda: Net(change)


def grown(net: Net, x: Tensor) -> Tensor:
    if not hasattr(net, "more"):
        net.more = nn.Linear(64, 64)
    return net.more(x)


def replaced(net: Net, x: Tensor) -> Tensor:
    net.out = nn.Linear(64, 10)
    return x


def in_a_list(net: Net, x: Tensor) -> Tensor:
    return net.layers[0](x)


def hidden() -> nn.Module:
    net = Net(in_a_list)
    net.layers = [nn.Linear(64, 64, bias=False)]
    return net


class NoReturn(Net):
    def train(self, mode: bool = True):
        super().train(mode)


class NoEval(Net):
    def eval(self):
        super().eval()


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


REFUSED = {
    "stop": (raising(StopIteration()), r"StopIteration \(test_odd_networks.py, line \d+\)"),
    "empty": (raising(KeyError()), r"KeyError \(test_odd_networks.py, line \d+\)"),
    "mute": (raising(Mute()), r"Mute \(its text cannot be shown\)"),
    "away": (raising(Away("far")), "Away: far"),
    "closed": (raising(GeneratorExit()), "GeneratorExit"),
    "coloured": (raising(ValueError("\x1b[31m red\x00")), r"ValueError: \[31m red"),
    "class": (lambda: Net, "gives the class Net: expected a network"),
    "nothing": (lambda: None, "gives a NoneType: expected a network"),
    "one": (lambda: ONE, "the same network or layers in every call"),
    "one-layer": (lambda: nn.Sequential(nn.Flatten(), ONE[1]), "the same network or layers in every call"),
    "drifts": (lambda: nn.Sequential(nn.Flatten(), scaled(nn.Linear(64, 10))), "other weights in every call"),
    "counts": (lambda: Net(lambda net, x: x * next(CALLS)), "training step .* other values the second time"),
    "draws": (lambda: Net(lambda net, x: x + torch.rand(1, generator=DRAWS)), "other values the second time"),
    "judges": (lambda: Net(lambda net, x: x if net.training else x * next(CALLS)), "score .* the second time"),
    "grown": (lambda: Net(grown), r"makes parameters \(more.weight, more.bias\)"),
    "replaced": (lambda: Net(replaced), r"makes parameters \(out.weight, out.bias\)"),
    "hidden": (hidden, r"computes with 1 parameters .* shape \[64, 64\]"),
    "frozen": (lambda: linear().requires_grad_(False), "nothing in it can learn"),
    "bare": (lambda: nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10)), "nothing in it can learn"),
    "no-return": (NoReturn, r"train\(\) does not give the network back"),
    "no-eval": (NoEval, r"eval\(\) does not give the network back"),
}


def scaled(layer: nn.Linear) -> nn.Linear:
    layer.weight.data *= next(CALLS)
    return layer


class Counting(Net):
    """What it does depends on what it remembers, in an attribute of its own."""

    def __init__(self) -> None:
        super().__init__(lambda net, x: x * (1 + 0.1 * len(net.seen)))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return super().forward(x)


TRAINED = {
    "attributes": Counting,
    "any-options": lambda **options: nn.Sequential(nn.Flatten(), nn.Linear(64, options.get("classes", 10))),
    "hooked": lambda: hooked(linear()),
    "scripted": lambda: torch.jit.script(linear()),
    "statistics": lambda: nn.Sequential(*linear(), nn.BatchNorm1d(10)).requires_grad_(False),
    "types": lambda: Net(lambda net, x: x.double(), lambda net, scores: scores.float()).double(),
}


def hooked(net: nn.Module) -> nn.Module:
    net.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.5,))
    return net


for _name, _build in {**{n: build for n, (build, _) in REFUSED.items()}, **TRAINED}.items():
    network(f"odd-{_name}")(_build)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, (_, text) in REFUSED.items()])
def test_what_no_run_could_train_rightly_is_refused_by_name(name, text):
    config = recipes.load("fedavg", "", RUN | {"model.name": f"odd-{name}"})
    with pytest.raises(ConfigError, match=f"(?s)'odd-{name}'.*{text}"):
        rehearsed(config, federation(config))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", TRAINED)
def test_what_can_be_trained_is_trained_twice_alike(name, tmp_path):
    runs = [
        fedbonsai.run(
            "fedavg",
            runs=tmp_path,
            name=which,
            rounds=1,
            data__clients=2,
            data__limit=60,
            model__name=f"odd-{name}",
            model__options={},
            progress=False,
        )
        for which in ("one", "two")
    ]
    one, two = ((run.path / "model.safetensors").read_bytes() for run in runs)
    assert one == two
    trained, begun = runs[0].model.weights, initial_model(runs[0].config, federation(runs[0].config)).weights
    assert trained.keys() == begun.keys()
    assert any(not torch.equal(value, begun[key]) for key, value in trained.items())


def test_options_of_any_name_reach_a_builder_that_takes_them():
    config = recipes.load(
        "fedavg", "", RUN | {"model.name": "odd-any-options", "model.options": {"classes": 10, "depth": 3}}
    )
    assert initial_model(config, federation(config)).arch.options == {"classes": 10, "depth": 3}


def test_what_a_network_does_to_torch_is_undone():
    def build() -> nn.Module:
        torch.set_default_dtype(torch.float64)
        return Net(lambda net, x: (torch.set_grad_enabled(False), x)[1])

    network("odd-global")(build)
    config = recipes.load("fedavg", "", RUN | {"model.name": "odd-global"})
    with pytest.raises(ConfigError, match="odd-global"):
        rehearsed(config, federation(config))
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
