"""Data given in Python: arrays, a dict by client, data sets of Hugging Face and of torch."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from fedbonsai import data
from fedbonsai.data import DataConfig, Federation, given
from fedbonsai.errors import ConfigError

X = np.random.default_rng(0).normal(size=(40, 3, 2))
Y = np.arange(40) % 2


def opened(held: data.Given, **settings: Any) -> Federation:
    return data.load(DataConfig(path=held.path, name=held.name, **{"clients": 2, "minimum": 1, **settings}), 0)


def test_arrays_tensors_and_lists() -> None:
    for x, y in ((X, Y), (torch.tensor(X), torch.tensor(Y)), (X.tolist(), Y.tolist()), (list(X), list(Y))):
        held = opened(data.of((x, y), (x[:4], y[:4]), classes=("no", "yes"), name="mine"))
        assert held.samples.shape == (3, 2)
        assert (held.name, held.class_names, len(held.test)) == ("mine", ("no", "yes"), 4)
        assert np.allclose(held.test.x.numpy(), X[:4])


def test_a_dict_by_client_is_divided_so() -> None:
    held = opened(data.of({"a": (X[:20], Y[:20]), 7: (X[20:], Y[20:])}), clients=None, valid=0.0)
    assert held.ids == ("7", "a")
    assert held.split.parameters["partition"] == "natural"
    with pytest.raises(ConfigError, match="an empty dict"):
        data.of({})


def test_data_sets_of_hugging_face_and_torch() -> None:
    table = datasets.Dataset.from_dict({"t": X[:, 0, 0].tolist(), "label": Y.tolist(), "who": ["u", "v"] * 20})
    assert opened(data.of(table), x="t", client="who", clients=None).ids == ("u", "v")
    both = datasets.DatasetDict({"train": table, "test": table.select(range(5))})
    assert len(opened(data.of(both), x="t").test) == 5
    held = opened(data.of(TensorDataset(torch.tensor(X), torch.tensor(Y))))
    assert held.samples.shape == (3, 2)
    pictures = TensorDataset(
        torch.zeros(40, 3, 4, 4, dtype=torch.uint8) + torch.arange(40)[:, None, None, None].byte(), torch.tensor(Y)
    )
    assert opened(data.of(pictures)).options["channels"] == 3


def test_tokens() -> None:
    tokens = np.random.default_rng(0).integers(0, 9, (40, 6))
    held = opened(data.of((tokens[:, :-1], tokens[:, 1:])), transforms=({"tokens": 9},), partition="iid")
    assert held.options == {"shape": (5,), "length": 5, "vocabulary": 9, "classes": 9, "outputs": 9}
    assert held.samples.kind == torch.int64
    with pytest.raises(ConfigError, match="from 0 to 8; expected whole numbers from 0 to 3"):
        opened(data.of((tokens[:, :-1], tokens[:, 1:])), transforms=({"tokens": 4},), partition="iid")


def test_floats_with_fractions_are_numbers() -> None:
    held = opened(data.of((X, Y + 0.5)), partition="iid")
    assert (held.samples.y.dtype, held.classes) == (torch.float32, 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "int; expected"),
        ((X, Y, Y), "tuple; expected"),
        ((X, Y[:-1]), "x has 40, y has 39 samples"),
        (TensorDataset(torch.tensor(X)), "items are tuple; expected pairs"),
    ],
)
def test_what_is_no_data(value: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        data.of(value)


def test_other_processes_are_told_to_give_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    held = data.of((X, Y))
    assert data.of((X.copy(), Y.copy())).path == held.path
    assert data.of((X + 1, Y)).path != held.path
    monkeypatch.setattr(given, "_held", {})
    with pytest.raises(ConfigError, match="given in Python to another process; give them again"):
        opened(held)
