"""Masks, scores and units of networks of series, tables and tokens."""

import pytest
import torch
from torch import nn

from fedbonsai.arch import Arch, network
from fedbonsai.core import Client, Samples
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.stages.pruning import count
from fedbonsai.stages.pruning.filters import Ratio, Target
from fedbonsai.stages.pruning.masks import masked, prunable
from fedbonsai.stages.pruning.scores import magnitude, synflow
from fedbonsai.stages.pruning.units import forms_of, narrowed, prune, select, silenced, units
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD
from fedbonsai.wire import decode, encode
from tests.zoo.kinds import KINDS, WORDS, inputs, model


def me(kind, seed=0):
    x = inputs(kind, 8)
    samples = Samples(x, x if kind in WORDS else torch.arange(8) % 4)
    return Client("a", seed, samples, samples[:0])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tabular-mlp"])
def test_masks_hold_through_training(kind):
    made = model(kind)
    names = prunable(made)
    matrices = {name for name, value in made.build().named_parameters() if value.ndim > 1}
    assert set(names) == matrices
    masks = {name: torch.rand(made.weights[name].shape) < 0.5 for name in names}
    trained = train(made.replace(masked(made.weights, masks)), me(kind), SGD(lr=0.1, batch=4), masks).weights
    assert not any(bool(trained[name][~mask].any()) for name, mask in masks.items())
    assert any(not torch.equal(trained[name], masked(made.weights, masks)[name]) for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_synflow_reaches_every_weight(kind):
    made = model(kind)
    found = synflow(made, prunable(made), KINDS[kind][2])
    assert all(bool(score.any()) and bool(score.isfinite().all()) for score in found.values())
    if kind in WORDS:
        assert bool(found["stem.embedding.weight"].any(1).all()), "every token is put in"


def smaller(made, size, keep):
    groups = units(made, size)
    return prune(made, groups, select(made.weights, groups, keep.widths(made, groups, size))), groups


@pytest.mark.parametrize("kind", KINDS)
def test_the_smaller_network_computes_what_the_full_one_does_with_silent_units(kind):
    pytest.importorskip("torch_pruning")
    made, size = model(kind), KINDS[kind][2]
    groups = units(made, size)
    kept = select(made.weights, groups, Ratio(0.5).widths(made, groups, size))
    small, x = prune(made, groups, kept), inputs(kind)
    whole = silenced(made, groups, kept).build().eval()(x)
    torch.testing.assert_close(small.build().eval()(x), whole, rtol=1e-4, atol=1e-5)
    assert count.macs(small, size) < count.macs(made, size)
    sent = decode(encode(small))  # a device rebuilds it from shapes, and trains it
    assert torch.equal(sent.build().eval()(x), small.build().eval()(x))
    assert {n: v.shape for n, v in forms_of(sent.arch, narrowed(sent)).items()} == {
        n: v.shape for n, v in small.weights.items()
    }
    if kind != "tabular-mlp":
        trained = train(sent, me(kind), SGD(batch=4)).weights
        assert {n: v.shape for n, v in trained.items()} == {n: v.shape for n, v in small.weights.items()}


def test_units_of_gates_and_heads():
    pytest.importorskip("torch_pruning")
    first, _ = units(model("gru"), (9, 3))
    assert first.makers == ("stem.rnn1.gru.weight_ih_l0", "stem.rnn1.gru.weight_hh_l0")
    assert first.readers == (("stem.rnn1.gru.weight_hh_l0", 1), ("features.rnn2.gru.weight_ih_l0", 1))
    assert first.entries(torch.tensor([1, 5]), 24).tolist() == [1, 5, 9, 13, 17, 21]
    head = units(model("tokens"), (9,))[0]
    assert (head.width, head.each, head.readers) == (2, 4, (("features.block1.attention.out.weight", 4),))
    assert head.entries(torch.tensor([1]), 8).tolist() == [4, 5, 6, 7]
    assert len(head.makers) == 3


def test_a_depthwise_convolution_goes_with_what_it_reads():
    pytest.importorskip("torch_pruning")
    first = units(model("ds-cnn"), (20, 10))[0]
    assert first.makers == ("stem.conv.weight", "features.block1.depthwise.weight")
    assert first.readers == (("features.block1.pointwise.weight", 1),)


def test_a_target_counts_gates_and_heads():
    pytest.importorskip("torch_pruning")
    for kind in ("gru", "series"):
        made, size = model(kind), KINDS[kind][2]
        small, _ = smaller(made, size, Target(0.6, "macs"))
        assert 0.4 <= count.macs(small, size) / count.macs(made, size) <= 0.6


def test_recurrent_layers_that_cannot_be_resized_are_named():
    pytest.importorskip("torch_pruning")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(3, 4, 2, batch_first=True), nn.Linear(4, 5)

        def forward(self, x):
            return self.out(self.rnn(x)[1][-1])

    network("test-kinds-two")(Net)
    with pytest.raises(ConfigError, match=r"'rnn' is a GRU.*use masks"):
        units(Model.init(Arch("test-kinds-two"), 0), (9, 3))


class Odd(nn.Module):
    """Tied, frozen, non-contiguous weights, and a buffer of whole numbers."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.turned = nn.Parameter(torch.randn(6, 4).t())
        self.still = nn.Linear(4, 6).requires_grad_(False)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.words.weight
        self.register_buffer("order", torch.arange(8, -1, -1))

    def forward(self, x):
        return self.out(self.still(self.words(x)[:, self.order] @ self.turned.t()))


def test_tied_frozen_and_non_contiguous_weights_and_integer_buffers():
    network("test-kinds-odd")(Odd)
    arch = Arch("test-kinds-odd", {}, model("tokens").arch.objective)
    made = Model.init(arch, 0)
    assert prunable(made) == ["turned", "words.weight"]
    assert set(synflow(made, prunable(made), (9,))) == {"turned", "words.weight"}
    masks = {name: magnitude({name: made.weights[name]})[name] > 0.5 for name in prunable(made)}
    trained = train(made.replace(masked(made.weights, masks)), me("tokens"), SGD(lr=0.1, batch=4), masks).weights
    assert not any(bool(trained[name][~mask].any()) for name, mask in masks.items())
    assert torch.equal(trained["order"], made.weights["order"])
    assert torch.equal(trained["still.weight"], made.weights["still.weight"])
    assert count.macs(made, (9,)) == 9 * (6 * 4 + 4 * 6 + 6 * 11)
