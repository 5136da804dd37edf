"""A network that refuses samples as they lie in files says what to set, and then takes them."""

import tomllib

import numpy as np
import pytest

from fedbonsai.errors import ConfigError
from fedbonsai.runs import recipes
from fedbonsai.runs.setup import federation, rehearsed


def config(path, network, transforms=(), **more):
    settings = {"data.path": str(path), "data.partition": "iid", "data.clients": 2, "model.name": network}
    return recipes.load("fedavg", "", {**settings, "data.transforms": list(transforms), **more})


@pytest.fixture
def flat(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 256)).astype(np.float32)
    np.savez(tmp_path / "train.npz", x=x, y=np.arange(60) % 3)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "transforms", "kind", "setting"),
    [
        ("cnn1d", [], "a series [length, features]", "[{reshape = [256, 1]}]"),
        ("gru", ["standardise"], "a series [length, features]", '["standardise", {reshape = [256, 1]}]'),
        ("tiny-transformer", [], "a series [length, features]", "[{reshape = [256, 1]}]"),
        ("ds-cnn", [], "a series [length, features]", "[{reshape = [128, 2]}]"),  # its kernel is wider than one feature
        ("cnn-bn", [], "a picture [channels, height, width]", "[{reshape = [1, 16, 16]}]"),
        ("mlp", [], "a picture [channels, height, width]", "[{reshape = [1, 16, 16]}]"),
        ("tabular-mlp", [{"reshape": [64, 4]}], "a table [features]", "[{reshape = [64, 4]}, {reshape = [256]}]"),
        (
            "cnn1d",
            [{"standardise": {"from": "clients"}}, {"reshape": [1, 4, 64]}],
            "a series [length, features]",
            '[{standardise = {from = "clients"}}, {reshape = [1, 4, 64]}, {reshape = [4, 64]}]',
        ),
    ],
)
def test_what_a_network_takes_is_said_and_works(flat, network, transforms, kind, setting):
    refused = config(flat, network, transforms)
    with pytest.raises(ConfigError) as caught:
        rehearsed(refused, federation(refused))
    text = str(caught.value)
    assert f"and this network takes {kind}: set data.transforms = {setting}" in text
    told = tomllib.loads(f"value = {setting}")["value"]
    taken = config(flat, network, told)
    model, _ = rehearsed(taken, federation(taken))
    assert model.arch.name == network


def test_no_advice_where_no_shape_would_do(flat):
    refused = config(flat, "char-gru")
    with pytest.raises(ConfigError) as caught:
        rehearsed(refused, federation(refused))
    assert "this network takes" not in str(caught.value)
    wrong = config(flat, "tabular-mlp", **{"objective.weights": [1.0, 2.0]})
    with pytest.raises(ConfigError, match=r"has 2 entries, the data 3 classes: give one for each$"):
        rehearsed(wrong, federation(wrong))
