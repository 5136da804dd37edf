"""The one training loop with sparse layers against itself without."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("numba")

from fedbonsai.core import Client, Samples
from fedbonsai.sparse import convert
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD
from tests.sparse.nets import masked

ROOT = Path(__file__).parents[2]
SGD3 = SGD(lr=0.05, batch=8, steps=3)


def client(shape, count=20):
    random = torch.Generator().manual_seed(5)
    x, y = torch.randn(count, *shape, generator=random), torch.arange(count) % 10
    return Client("a", 7, Samples(x, y), Samples(x[:0], y[:0]))


def close(ours, theirs, masks):
    assert list(ours.weights) == list(theirs.weights)
    for name, value in theirs.weights.items():
        torch.testing.assert_close(ours.weights[name], value, rtol=1e-3, atol=1e-5, msg=name)
        if name in masks:
            assert not ours.weights[name][~masks[name]].any()
    assert (ours.examples, ours.steps) == (theirs.examples, theirs.steps)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)


@pytest.mark.parametrize("name", ["mlp", "lenet5", "cnn-bn"])
@pytest.mark.parametrize("change", [{}, {"momentum": 0.9, "weight_decay": 0.01, "proximal": 0.1}])
def test_training_gives_the_weights_of_the_dense_loop(name, change):
    model, masks, shape = masked(name, 0.3)
    sgd, me = replace(SGD3, **change), client(shape)
    shift = {weight: torch.full_like(value, 0.01) for weight, value in model.weights.items()}
    dense = train(model, me, sgd, mask=masks, shift=shift)
    close(train(model, me, replace(sgd, sparse="on"), mask=masks, shift=shift), dense, masks)


def test_masks_may_leave_layers_out():
    model, masks, shape = masked("lenet5", 0.3)
    some = {name: masks[name] for name in list(masks)[1:3]}
    close(
        train(model, client(shape), replace(SGD3, sparse="on"), mask=some),
        train(model, client(shape), SGD3, mask=some),
        some,
    )


def test_the_next_client_starts_from_its_own_model():
    model, masks, shape = masked("lenet5", 0.3)
    other, others, _ = masked("lenet5", 0.1, seed=1)
    sgd, me = replace(SGD3, sparse="on"), client(shape)
    first = train(model, me, sgd, mask=masks)
    train(other, me, sgd, mask=others)
    again = train(model, me, sgd, mask=masks)
    assert all(torch.equal(again.weights[name], value) for name, value in first.weights.items())


def test_a_hook_sees_dense_gradients(monkeypatch):
    model, masks, shape = masked("mlp", 0.3)
    monkeypatch.setattr(convert, "_nets", convert.OrderedDict())
    seen = []
    train(model, client(shape), replace(SGD3, sparse="on"), mask=masks, hook=lambda g: seen.append(dict(g)))
    assert not convert._nets
    assert all(value.shape == model.weights[name].shape for name, value in seen[0].items())


@pytest.mark.parametrize("change", [{"clip": 1.0}, {"precision": "bf16"}, {"channels_last": True}])
def test_what_sparse_layers_cannot_do_is_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} .* with sparse = on"):
        SGD(sparse="on", **change)


WITHOUT = """
import sys
sys.modules["numba"] = None
import torch
from tests.sparse.nets import masked
from fedbonsai.core import Client, Samples
from fedbonsai.errors import ConfigError
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD
model, masks, shape = masked("mlp", 0.3)
x = torch.zeros(4, *shape)
me = Client("a", 0, Samples(x, torch.zeros(4).long()), Samples(x[:0], torch.zeros(0).long()))
train(model, me, SGD(sparse="auto"), mask=masks)
try:
    train(model, me, SGD(sparse="on"), mask=masks)
except ConfigError as error:
    print(error)
"""


@pytest.mark.slow
def test_without_numba_auto_is_dense_and_on_says_what_to_install():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "pip install 'fedbonsai[sparse]'" in done.stdout
