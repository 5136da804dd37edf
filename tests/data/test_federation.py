"""A federation: normalised images, views instead of copies, and the trip to a worker process."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fedbonsai.arch import Arch
from fedbonsai.core import Client
from fedbonsai.data import DataConfig, Federation, load
from fedbonsai.data.sources import digits
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.training.evaluate import evaluate
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def federation() -> Federation:
    return load(DataConfig(server=50), 0)


def test_shapes_and_options(federation: Federation) -> None:
    wanted = {"shape": (1, 8, 8), "channels": 1, "height": 8, "width": 8, "size": 8, "classes": 10, "outputs": 10}
    assert federation.options == wanted
    assert federation.samples.x.shape == (1400, 1, 8, 8)
    assert federation.samples.stored.is_contiguous()
    assert federation.samples.stored.dtype == torch.uint8
    assert federation.samples.x.dtype == torch.float32
    assert federation.samples.y.dtype == torch.int64
    assert federation.test.x.shape == (397, 1, 8, 8)
    assert len(federation.train) == len(federation.valid) == len(federation.ids) == 10
    assert len(federation.server) == 50
    assert federation.offsets[-1] == 1400


def test_normalised_once_by_the_training_set(federation: Federation) -> None:
    assert federation.samples.x.mean() == pytest.approx(0, abs=1e-5)
    assert federation.samples.x.std(correction=0) == pytest.approx(1, abs=1e-5)
    raw = digits().x / 16
    assert federation.mean == (pytest.approx(raw.mean()),)
    assert federation.std == (pytest.approx(raw.std()),)


def test_parts_are_the_splits_rows(federation: Federation) -> None:
    images = digits()
    for rows, part in zip(
        [*federation.split.train, *federation.split.valid, federation.split.server],
        [*federation.train, *federation.valid, federation.server],
        strict=True,
    ):
        chosen = images.x[list(rows)][..., 0] / 16
        assert np.allclose(part.x[:, 0].numpy() * federation.std[0] + federation.mean[0], chosen, atol=1e-5)
        assert part.y.tolist() == images.y[list(rows)].tolist()


def test_parts_are_views(federation: Federation) -> None:
    for part in (*federation.train, *federation.valid, federation.server):
        assert part.stored.untyped_storage().data_ptr() == federation.samples.stored.untyped_storage().data_ptr()
        assert part.y.untyped_storage().data_ptr() == federation.samples.y.untyped_storage().data_ptr()
        assert part.stored.is_contiguous()


def test_shared_memory_and_pickle() -> None:
    federation = load(DataConfig(clients=3), 1)
    before = federation.train[1].x.clone()
    assert federation.share() is federation
    assert federation.samples.stored.is_shared()
    assert federation.train[1].stored.is_shared()
    assert torch.equal(federation.train[1].x, before)
    copy = pickle.loads(pickle.dumps(federation))
    assert torch.equal(copy.train[1].x, before)
    assert copy.ids == federation.ids


def test_saved_split_is_used(tmp_path: Path, federation: Federation) -> None:
    federation.split.save(tmp_path / "split.json")
    again = load(DataConfig(split=str(tmp_path / "split.json"), clients=3), 99)
    assert torch.equal(again.samples.x, federation.samples.x)
    assert again.ids == federation.ids
    with pytest.raises(ConfigError, match="cannot be read"):
        load(DataConfig(split=str(tmp_path / "other.json")), 0)


def test_same_seed_same_federation(federation: Federation) -> None:
    assert torch.equal(load(DataConfig(server=50), 0).samples.x, federation.samples.x)
    assert not torch.equal(load(DataConfig(server=50), 1).samples.x, federation.samples.x)


def test_digits_are_learnt(federation: Federation) -> None:
    """The default data and the default network fit: one client's few samples already teach it something."""
    model = Model.init(Arch("mlp", {name: federation.options[name] for name in ("channels", "size", "classes")}), 0)
    largest = max(range(10), key=lambda i: len(federation.train[i]))
    me = Client("x", 0, federation.train[largest], federation.valid[largest])
    done = train(model, me, SGD(lr=0.1, epochs=20))
    assert evaluate(model.replace(done.weights), me.valid).value > 0.5
