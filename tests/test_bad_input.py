"""What is wrong with a user's data or network is told before anything is trained: what was given, expected, and what to do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedbonsai import data, network
from fedbonsai.errors import ConfigError
from fedbonsai.runs import recipes
from fedbonsai.runs.setup import run_context

X = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
Y = np.arange(80) % 3


def put(array: np.ndarray, value: float) -> np.ndarray:
    """The same with one other value."""
    found = array.astype(np.float64)
    found.flat[5] = value
    return found


@network("bad-linear")
def linear(features: int = 4, classes: int = 3, outputs: int = 0, scale: float = 1.0) -> nn.Module:
    net = nn.Linear(features, outputs or classes)
    net.weight.data *= scale
    return net


@network("bad-keyword")
def keyword(features: int, depth: int) -> nn.Module:
    return nn.Linear(features, depth)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        return self.out(row)


@network("bad-two")
def two() -> nn.Module:
    return Two()


def context(given: object, **more: object):
    held = given if isinstance(given, data.Given) else data.of(given)
    settings = {
        "model.name": "bad-linear",
        "model.options": {},
        "data.clients": 2,
        "data.partition": "iid",
        "method.optimizer": {"lr": 0.1, "batch": 16, "epochs": 1, "momentum": 0.5},
    }
    return run_context(recipes.load("fedavg", "", {**held.settings, **settings, **more}))


halves = {"a": (X[:40], Y[:40]), "b": (X[40:], Y[40:])}
BAD: dict[str, tuple[Callable[[], object], dict[str, object], str]] = {
    "NaN in x": (
        lambda: (put(X, np.nan), Y),
        {},
        r"missing \(null or NaN\): 1 in 'x', of 72 rows; drop these rows, or set data\.impute to",
    ),
    "infinity in x": (lambda: (put(X, np.inf), Y), {}, r"1 input values are NaN or infinite; clean"),
    "NaN in y": (
        lambda: (X, put(Y, np.nan)),
        {},
        r"1 of \d+ targets \(y\) are missing, first in row \d+; drop these rows, or",
    ),
    "infinity in y": (lambda: (X, put(Y, np.inf)), {}, r"targets are infinite; drop these rows"),
    "label out of range": (
        lambda: data.of((X, put(Y, 7).astype(int)), classes=("a", "b", "c")),
        {},
        r"labels run from 0 to 7, expected 0 to 3 - 1",
    ),
    "negative label": (lambda: (X, put(Y, -1).astype(int)), {}, r"labels run from -1 to 2, expected 0 to the number"),
    "fractional label": (lambda: (X, put(Y, 0.5)), {}, r"objective.name = 'classification': .*"),
    "one class": (
        lambda: (X, 0 * Y),
        {},
        r"all 72 training samples are of one class, '0': nothing can be learned .*add",
    ),
    "no rows": (lambda: (X[:0], Y[:0]), {}, r"no rows; expected at least one"),
    "other shapes": (
        lambda: {**halves, "b": (X[40:, :3], Y[40:])},
        {},
        r"'x' is .* of shape \(3,\) in .*client b and .* of shape \(4,\) in .*client a; all files need the same columns",
    ),
    "other lengths": (lambda: (X, Y[:79]), {}, r"x has 80, y has 79 samples; expected as many of each"),
    "too wide": (
        lambda: (X, Y),
        {"model.options": {"outputs": 7}},
        r"gives \[\d+, 7\] .* expects \[\d+, 3\], since .* 3 classes",
    ),
    "not finite": (
        lambda: (X, Y),
        {"model.options": {"scale": 1e38}},
        r"'bad-linear' .*its loss is (inf|nan).*: expected a finite number; bring inputs",
    ),
    "other keywords": (
        lambda: (X, Y),
        {"model.name": "bad-keyword"},
        r"'bad-keyword' needs depth, which data do not say .*set model\.options = \{ depth = ",
    ),
    "unknown option": (
        lambda: (X, Y),
        {"model.options": {"wide": 2}},
        r"'bad-linear' does not take \['wide'\]; it takes",
    ),
    "two inputs of one": (
        lambda: (X, Y),
        {"model.name": "bad-two"},
        r"'bad-two' takes image, row and the data have one input: say in data\.inputs",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_it_is_refused_before_anything_is_trained(what):
    given, settings, text = BAD[what]
    with pytest.raises(ConfigError, match=f"(?s){text}"):
        context(given(), **settings)


def test_weights_of_another_network_are_refused_with_both_sides(tmp_path):
    save_file({"encoder.weight": torch.zeros(3, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"(?s)encoder\.weight.*weight"):
        context((X, Y), **{"model.weights": str(tmp_path / "other.safetensors")})


def test_clients_without_rows_are_left_out_and_small_ones_train():
    made = context({**halves, "c": (X[:0], Y[:0])}, **{"data.partition": "natural", "data.clients": None})
    assert made.federation.ids == ("a", "b")
    few = context(halves, **{"data.partition": "natural", "method.optimizer.batch": 500})
    assert max(map(len, few.federation.train)) < 500
