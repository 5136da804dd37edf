"""Sparse layers in networks of series and tokens, against the dense ones under the same masks."""

import json

import pytest
import torch

pytest.importorskip("numba")

from fedbonsai import measured
from fedbonsai.cached_module import CachedModule
from fedbonsai.core import Client, Samples
from fedbonsai.sparse.convert import SparseNet, chosen
from fedbonsai.sparse.growth import watching
from fedbonsai.stages.pruning.masks import masked, prunable
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD
from tests.zoo.kinds import KINDS, inputs, model

SPARSE = {  # kind -> how many of its weights have a sparse form
    "cnn1d": 3,
    "ds-cnn": 4,
    "gru": 1,
    "tabular-mlp": 3,
    "char-gru": 1,
    "tokens": 13,
    "series": 14,
    "mobilenet-v2-small": 16,
}


def under_masks(kind, density=0.3):
    """A model that is zero outside random masks of all weights that may be pruned."""
    whole, random = model(kind), torch.Generator().manual_seed(1)
    masks = {name: torch.rand(whole.weights[name].shape, generator=random) < density for name in prunable(whole)}
    return whole.replace(masked(whole.weights, masks)), masks


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_dense_network(kind):
    made, masks = under_masks(kind)
    names = chosen(made, masks, KINDS[kind][2], 3, "on")
    assert len(names) == SPARSE[kind]
    dense, net = CachedModule(made.arch, made.weights).load(made.weights), SparseNet(made, masks, names)
    grown, x = {}, inputs(kind)

    def see(name, first, tile):
        grown.setdefault(name, {})[first] = tile

    loss = dense.module.eval()(x).square().mean()
    expected = dict(zip(dense.parameters, torch.autograd.grad(loss, list(dense.parameters.values())), strict=True))
    with watching(net, names, see):
        loss = net.module.eval()(x).square().mean()
        found = dict(zip(net.parameters, torch.autograd.grad(loss, list(net.parameters.values())), strict=True))
    for name, value in net.compact(expected).items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3 * scale + 1e-7, msg=name)
    for name, tiles in grown.items():
        whole, scale = torch.cat([tiles[first] for first in sorted(tiles)]), float(expected[name].abs().max())
        torch.testing.assert_close(whole, expected[name], rtol=1e-3, atol=1e-3 * scale + 1e-7, msg=name)
    assert grown.keys() == set(names)
    assert all(torch.equal(value, made.weights[name]) for name, value in net.snapshot().items() if name in masks)


@pytest.mark.parametrize("kind", ["cnn1d", "tokens"])
def test_training_with_sparse_layers_gives_what_dense_training_gives(kind):
    made, masks = under_masks(kind)
    x = inputs(kind, 12)
    samples = Samples(x, x if kind == "tokens" else torch.arange(12) % 4)
    me = Client("a", 0, samples, samples[:0])
    dense, sparse = (train(made, me, SGD(lr=0.1, batch=6, sparse=how), masks).weights for how in ("off", "on"))
    for name, value in dense.items():
        torch.testing.assert_close(sparse[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_the_breakeven_of_layers_of_series_is_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path))
    monkeypatch.setattr(measured, "SECONDS", 0.0)
    made, masks = under_masks("cnn1d")
    chosen(made, masks, KINDS["cnn1d"][2], 4)
    known = json.loads((tmp_path / "breakeven.json").read_text())
    assert sum("Conv1d" in key for key in known) == 2
    assert all(0 <= density <= 1 for density in known.values())
