"""Networks for series, tables and tokens, and pictures that are not square: shapes, parts, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedbonsai.arch import Arch
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.runs.setup import facts_for
from tests.zoo.kinds import KINDS, WORDS, inputs, model

OBLONG = {
    "conv2": (1, 8, 12),
    "cnn-mnist": (1, 8, 12),
    "cnn-bn": (1, 4, 12),
    "lenet5": (1, 12, 36),
    "alexnet": (1, 12, 20),
    "vgg11": (3, 32, 64),
    "vgg11-bn": (3, 64, 32),
    "vgg16": (3, 32, 64),
    "resnet18": (3, 8, 16),
    "resnet18-7x7": (3, 32, 48),
    "resnet-tiny": (3, 4, 16),
    "wrn-16": (3, 4, 16),
    "mlp": (1, 8, 3),
    "mobilenet-v2-small": (3, 8, 24),
}
HEAVY = ("alexnet", "vgg11", "vgg11-bn", "vgg16", "resnet18", "resnet18-7x7")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_goes_through_three_parts(kind):
    made, x = model(kind), inputs(kind)
    net = made.build().eval()
    assert [part for part, _ in net.named_children()] == ["stem", "features", "classifier"]
    assert isinstance(net.get_submodule("classifier"), nn.Linear)
    shape = (3, 9, 11) if kind in WORDS else (3, KINDS[kind][1]["classes"])
    assert net(x).shape == net.train()(x).shape == shape


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in HEAVY)) for name in OBLONG])
def test_pictures_need_not_be_square(name):
    channels, height, width = OBLONG[name]
    net = Arch(name, {"channels": channels, "height": height, "width": width, "classes": 5}).build().eval()
    assert net(torch.randn(2, channels, height, width)).shape == (2, 5)


def test_a_square_given_by_its_sides_is_the_same_network():
    for name in ("lenet5", "cnn-bn", "mlp", "wrn-16"):
        square = Model.init(Arch(name, {"channels": 1, "size": 12}), 0).weights
        sides = Model.init(Arch(name, {"channels": 1, "height": 12, "width": 12}), 0).weights
        assert all(torch.equal(value, sides[key]) for key, value in square.items())


def test_an_architecture_of_square_pictures_names_their_size_alone():
    facts = {"channels": 1, "height": 8, "width": 8, "size": 8, "classes": 10, "shape": (1, 8, 8)}
    assert facts_for(Arch("lenet5").takes(), facts) == {"channels": 1, "size": 8, "classes": 10}
    del facts["size"]
    assert facts_for(Arch("lenet5").takes(), facts) == {"channels": 1, "height": 8, "width": 8, "classes": 10}


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("lenet5", {"height": 12}, "height = 12, width = 0: expected both"),
        ("lenet5", {"height": 12, "width": 8}, "at least 12x12 pixels, got 12x8"),
        ("cnn1d", {"length": 3}, "a length of 4 or more, got 3"),
        ("cnn1d", {"widths": ()}, "expected one at least"),
        ("cnn1d", {"widths": (8, 0)}, r"widths = \[8, 0\]: expected each at least 1"),
        ("ds-cnn", {"features": 1}, "series of 49x1, kernel"),
        ("gru", {"hidden": 0}, "hidden = 0: expected at least 1"),
        ("gru", {"read": "first"}, "expected 'last' or 'mean'"),
        ("tabular-mlp", {"norm": "group"}, "expected 'batch' or 'none'"),
        ("tiny-transformer", {}, "expected one of them, for tokens or for series"),
        ("tiny-transformer", {"vocabulary": 9, "features": 9}, "expected one of them"),
        ("tiny-transformer", {"vocabulary": 9, "width": 6}, "width = 6: expected a multiple of heads = 4"),
        ("mobilenet-v2-small", {"size": 7}, "at least 8x8 pixels, got 7x7"),
        ("mobilenet-v2-small", {"multiplier": 0}, "expected a number above 0"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(name, options, text):
    with pytest.raises(ConfigError, match=f"'{name}'.*{text}"):
        Arch(name, options).build()


def test_a_token_knows_nothing_of_later_ones():
    for kind in WORDS:
        net, x = model(kind).build().eval(), inputs(kind)
        other = x.clone()
        other[:, 5:] = (other[:, 5:] + 1) % 11
        torch.testing.assert_close(net(x)[:, :5], net(other)[:, :5])
        assert not torch.allclose(net(x)[:, 5:], net(other)[:, 5:])
        assert torch.equal(net(x), net(x.to(torch.uint8)))


@pytest.mark.parametrize("kind", ["cnn1d", "ds-cnn", "gru", "series", "tokens", "tabular-mlp"])
def test_the_stem_gets_a_small_classifier_of_its_own(kind):
    name, options, _ = KINDS[kind]
    auxiliary = Arch("auxiliary", {"of": name, "options": options}).build().eval()
    assert auxiliary(inputs(kind)).shape == model(kind).build().eval()(inputs(kind)).shape
