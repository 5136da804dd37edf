"""Layers and parameters of every kind: trained, masked, counted, exported and made smaller, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedbonsai
from fedbonsai import data, network
from fedbonsai.arch import Arch
from fedbonsai.errors import ConfigError
from fedbonsai.export.formats import FORMATS
from fedbonsai.export.parity import compare
from fedbonsai.export.trained import Trained
from fedbonsai.model import Model
from fedbonsai.runs.setup import federation, initial_model
from fedbonsai.stages.pruning.count import macs

LENGTH, FEATURES, CLASSES, WIDTH = 6, 4, 3, 8


class Kind(nn.Module):
    """Series [samples, 6, 4] to 3 scores: 8 features of each step, what is of the kind, the mean over time, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, WIDTH)
        self.hidden, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.middle(self.first(x).relu()).mean(1)).relu())

    def middle(self, x: Tensor) -> Tensor:
        return x


PLAIN = 6 * 4 * 8 + 8 * 8 + 8 * 3  # products of these layers for one sample


class Tied(Kind):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(WIDTH, WIDTH)
        self.again.weight = self.hidden.weight

    def middle(self, x: Tensor) -> Tensor:
        return self.again(x).relu()


class Frozen(Kind):
    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(False)


class Turned(Kind):
    """A weight that is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.turned = nn.Parameter(torch.randn(WIDTH, WIDTH).t() / 3)
        assert not self.turned.is_contiguous()

    def middle(self, x: Tensor) -> Tensor:
        return x @ self.turned


class Buffers(Kind):
    """Whole and boolean buffers."""

    order: Tensor
    used: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(WIDTH - 1, -1, -1))
        self.register_buffer("used", torch.arange(WIDTH) != 3)

    def middle(self, x: Tensor) -> Tensor:
        return x[..., self.order] * self.used


class Normed(Kind):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Looked(Kind):
    """What a table has at the size of the first value of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, WIDTH)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.table((2 * x.detach()[..., 0]).long().clamp(0, 4))


class Recurrent(Kind):
    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.steps = kind(WIDTH, WIDTH, batch_first=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.steps(x)[0]


class Attends(Kind):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def middle(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Over(Kind):
    """A layer over time."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def middle(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2)).relu().transpose(1, 2)


BUILDERS = {
    "tied": Tied,
    "frozen": Frozen,
    "turned": Turned,
    "buffers": Buffers,
    "layernorm": Normed,
    "embedding": Looked,
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
    "attention": Attends,
    "depthwise": lambda: Over(nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)),
    "transposed": lambda: Over(nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1)),
}
# products of the layer between, by hand: places x inputs x outputs; gates; 4 projections and both products of attention
BETWEEN = {
    "tied": 6 * 8 * 8,
    "frozen": 0,
    "turned": 6 * 8 * 8,
    "buffers": 0,
    "layernorm": 0,
    "embedding": 0,
    "gru": 6 * 3 * (8 * 8 + 8 * 8),
    "lstm": 6 * 4 * (8 * 8 + 8 * 8),
    "attention": 6 * 4 * 8 * 8 + 2 * 6 * 6 * 8,
    "depthwise": 6 * 8 * 3,
    "transposed": 6 * 8 * 8 * 3,
}
HIDDEN = {"hidden.weight", "hidden.bias", "head.weight"}
FIRST = {"first.weight", "first.bias", "hidden.weight"}
STEPS = {f"steps.{part}_{way}_l0" for part in ("weight", "bias") for way in ("ih", "hh")}
# what is smaller where 0.8 of the operations stay (of two kinds 0.98), or what the refusal says
SMALLER: Mapping[str, set[str] | str] = {
    "tied": "'hidden' is a Linear that shares its weights; 'again' is a Linear that shares its weights",
    "frozen": HIDDEN,
    "turned": "cannot be multiplied .*use masks",
    "buffers": "out of bounds .*use masks",
    "layernorm": HIDDEN,
    "embedding": HIDDEN,
    "gru": FIRST | STEPS | HIDDEN,
    "lstm": HIDDEN,
    "attention": "'attention' is a MultiheadAttention.*use masks",
    "depthwise": FIRST | {"layer.weight", "layer.bias"} | HIDDEN,
    "transposed": HIDDEN,
}
for _name, _build in BUILDERS.items():
    network(f"kind-{_name}")(_build)


@pytest.fixture(scope="module")
def given() -> data.Given:
    random = np.random.default_rng(0)
    y = random.integers(0, CLASSES, 160)
    x = random.normal(size=(160, LENGTH, FEATURES)) + 1.5 * np.eye(CLASSES, FEATURES)[y][:, None]
    return data.of((x.astype(np.float32), y), name="series")


SETTINGS = {
    "rounds": 2,
    "model.options": {},
    "data.clients": 2,
    "data.partition": "iid",
    "method.optimizer": {"lr": 0.1, "batch": 16, "epochs": 1, "momentum": 0.5},
}


@pytest.fixture(scope="module")
def trained(given, tmp_path_factory):
    """A finished FedAvg run of each kind."""
    known: dict[str, fedbonsai.Run] = {}
    place = tmp_path_factory.mktemp("kinds")

    def of(kind: str) -> fedbonsai.Run:
        if kind not in known:
            settings = {**SETTINGS, "model.name": f"kind-{kind}", "name": kind}
            known[kind] = fedbonsai.run("fedavg", data=given, runs=place, progress=False, **settings)
        return known[kind]

    return of


each = pytest.mark.parametrize("kind", BUILDERS)


@pytest.mark.slow
@each
def test_what_learns_moves_and_all_else_stays_as_it_was(kind, trained):
    run = trained(kind)
    begun, ended = initial_model(run.config, federation(run.config)), run.model
    learns = {name for name, value in begun.build().named_parameters() if value.requires_grad}
    assert ended.weights.keys() == begun.weights.keys()
    moved = {name for name, value in ended.weights.items() if not torch.equal(value, begun.weights[name])}
    assert moved == learns
    assert all(bool(torch.isfinite(value).all()) for value in ended.weights.values() if value.is_floating_point())
    assert all(value.dtype == begun.weights[name].dtype for name, value in ended.weights.items())


@pytest.mark.slow
@each
def test_masked_weights_are_zero_and_others_are_left_alone(kind, given, tmp_path):
    settings = {**SETTINGS, "model.name": f"kind-{kind}", "method.density": 0.5}
    run = fedbonsai.run("static-magnitude", data=given, runs=tmp_path, progress=False, **settings)
    begun = initial_model(run.config, federation(run.config))
    learns = {name for name, value in begun.build().named_parameters() if value.requires_grad}
    zeros = {name: int((value == 0).sum()) for name, value in run.model.weights.items() if name in learns}
    masked = {name for name in learns if run.model.weights[name].ndim > 1}
    count = sum(run.model.weights[name].numel() for name in masked)
    assert sum(zeros[name] for name in masked) == pytest.approx(count / 2, abs=1 + 0.02 * count)
    assert all(not zeros[name] for name in learns - masked if bool(begun.weights[name].all()))
    for name in begun.weights.keys() - learns:
        assert torch.equal(run.model.weights[name], begun.weights[name])


@each
def test_operations_are_those_by_hand(kind):
    assert macs(Model.init(Arch(f"kind-{kind}"), 0), (LENGTH, FEATURES)) == PLAIN + BETWEEN[kind]


@pytest.mark.slow
@each
def test_an_onnx_file_says_what_the_network_says(kind, trained, tmp_path):
    it, form, file = Trained.of(trained(kind)), FORMATS["onnx"], tmp_path / "net.onnx"
    form.write(it, file, False)
    same = compare("onnx", file, form.runner(it, file), it.network(), it.test, it.model.arch.objective)
    assert same.difference < 1e-4
    assert same.agreement == 1


@pytest.mark.slow
@each
def test_units_go_or_the_network_is_refused_by_name(kind, given, tmp_path):
    settings = {
        **SETTINGS,
        "model.name": f"kind-{kind}",
        "method.keep": {"name": "target", "share": 0.98 if kind in ("lstm", "transposed") else 0.8},
        "method.pretrain": 0,
        "method.finetune": 0,
        "method.score": "l1",
    }
    wanted = SMALLER[kind]
    if isinstance(wanted, str):
        with pytest.raises(ConfigError, match=f"'kind-{kind}' cannot be pruned by units: .*{wanted}"):
            fedbonsai.run("fl-pqsu", data=given, runs=tmp_path, progress=False, **settings)
        return
    run = fedbonsai.run("fl-pqsu", data=given, runs=tmp_path, progress=False, **settings)
    begun = initial_model(run.config, federation(run.config))
    assert {n for n, value in run.model.weights.items() if value.shape != begun.weights[n].shape} == wanted
    assert macs(run.model, (LENGTH, FEATURES)) < macs(begun, (LENGTH, FEATURES))
    assert all(bool(torch.isfinite(value).all()) for value in run.model.weights.values() if value.is_floating_point())
    if kind == "frozen":
        assert torch.equal(run.model.weights["first.weight"], begun.weights["first.weight"])
