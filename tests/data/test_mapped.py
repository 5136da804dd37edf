"""Arrays in files are mapped and gathered in files: the same samples as in memory, and no second copy of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedbonsai.data import DataConfig, cache, load, mapped
from fedbonsai.data.mapped import gathered, is_mapped, joined, members, opened
from fedbonsai.errors import ConfigError

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def all_large(monkeypatch):
    """Every array counts as large."""
    monkeypatch.setattr(mapped, "SMALL", 0)
    monkeypatch.setattr(mapped, "SPOOL", 0)
    monkeypatch.setattr(mapped, "BLOCK", 1 << 10)


def arrays(folder: Path, count: int, shape=(5, 4, 3), kind=np.uint8, seed=0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.integers(0, 200, (count, *shape)).astype(kind)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", np.arange(count) % 3)
    return x, np.arange(count) % 3


def opened_by(path: Path, **more):
    return load(DataConfig(path=str(path), **({"partition": "iid", "clients": 3, "minimum": 1} | more)), 0)


def same(one, other) -> None:
    assert (one.split.train, one.split.valid, one.split.ids) == (other.split.train, other.split.valid, other.split.ids)
    for part in ("samples", "test"):
        mine, theirs = getattr(one, part), getattr(other, part)
        assert mine.stored.dtype == theirs.stored.dtype
        assert torch.equal(mine.stored, theirs.stored)
        assert torch.equal(mine.y, theirs.y)
    assert (one.mean, one.std) == (other.mean, other.std)


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.int16, np.float64])
@pytest.mark.parametrize("shape", [(5, 4, 3), (3, 5, 4), (7,)])
def test_mapped_arrays_give_the_samples_of_arrays_in_memory(tmp_path, all_large, monkeypatch, kind, shape):
    for split, count in (("train", 90), ("test", 20)):
        x, y = arrays(tmp_path / "folder" / split, count, shape, kind, count)
        np.savez(tmp_path / f"{split}.npz", x=x, y=y)
    transforms = () if kind == np.uint8 and len(shape) == 3 else ("standardise",)
    ours = opened_by(tmp_path / "folder", transforms=transforms)
    same(ours, opened_by(tmp_path, transforms=transforms))
    monkeypatch.undo()
    plain = opened_by(tmp_path, transforms=transforms)
    same(ours, plain)


def test_a_folder_for_each_client_and_one_without_a_test_set(tmp_path, all_large):
    parts = {name: arrays(tmp_path / "all" / name, count, seed=count)[0] for name, count in (("ann", 20), ("bob", 30))}
    held = opened_by(tmp_path / "all", partition="", clients=None)
    assert held.ids == ("ann", "bob")
    mine = {name: {row.tobytes() for row in np.moveaxis(x, 3, 1)} for name, x in parts.items()}
    for id, train in zip(held.ids, held.train, strict=True):
        assert {row.tobytes() for row in train.stored.numpy()} <= mine[id]
    assert len(held.test) == 5
    alone = opened_by(tmp_path / "all" / "bob", clients=2)
    assert (len(alone.samples), len(alone.test)) == (27, 3)


def test_names_of_classes_and_what_is_no_array(tmp_path):
    arrays(tmp_path / "a", 30)
    np.save(tmp_path / "a/names.npy", np.array(["cat", "dog", "owl"]))
    assert opened_by(tmp_path / "a").class_names == ("cat", "dog", "owl")
    (tmp_path / "a/y.npy").write_bytes(b"noise")
    with pytest.raises(ConfigError, match=r"y\.npy cannot be read: .*expected an array"):
        opened_by(tmp_path / "a")
    np.save(tmp_path / "a/y.npy", np.arange(29))
    with pytest.raises(ConfigError, match="x has 30, y has 29 samples"):
        opened_by(tmp_path / "a")


def test_files_stay_as_they_are_and_damage_is_seen(tmp_path, all_large):
    x, _ = arrays(tmp_path, 10)
    (held := opened(tmp_path / "x.npy"))[0] = 255
    assert np.array_equal(np.load(tmp_path / "x.npy"), x)
    assert held[0].min() == 255
    np.savez(tmp_path / "both.npz", x=x, y=np.asfortranarray(x))
    found = members(tmp_path / "both.npz")
    assert all(is_mapped(each) and np.array_equal(each, x) for each in found.values())
    raw = bytearray((tmp_path / "both.npz").read_bytes())
    raw[400] ^= 1  # a value of x
    (tmp_path / "both.npz").write_bytes(raw)
    with pytest.raises(Exception, match="Bad CRC-32"):
        members(tmp_path / "both.npz")
    assert cache.held(tmp_path / "both.npz", ("x", "y")) is None  # made again
    np.savez(tmp_path / "objects.npz", x=np.array([None, 3], object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        members(tmp_path / "objects.npz")


def test_rows_are_gathered_in_a_file_only_where_they_came_from_one(tmp_path, all_large, monkeypatch):
    x, _ = arrays(tmp_path, 40)
    rows = RANDOM.permutation(40)[:30]
    there = opened(tmp_path / "x.npy")
    for held in (x, there):
        got = gathered(held, rows, (0, 3, 1, 2))
        assert is_mapped(got) == (held is there)
        assert np.array_equal(got, x[rows].transpose(0, 3, 1, 2))
        assert np.array_equal(joined([held, held[:3]]), np.concatenate([x, x[:3]]))
    with pytest.raises(ValueError, match="must match"):
        joined([there, there[:, :2]])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    got = gathered(there, rows)
    assert not is_mapped(got)
    assert np.array_equal(got, x[rows])


CHILD = """
import json, sys
import flwr_datasets.partitioner, torch
from fedbonsai.data import DataConfig, load
from fedbonsai.devices.footprint import _resident
before = _resident(False)
held = load(DataConfig(path=sys.argv[1], partition="iid", clients=10), 0)
print(json.dumps([_resident(True) - before, held.samples.stored.nbytes, float(held.train[3][:8].x.mean())]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["npy", pytest.param("npz", marks=pytest.mark.exhaustive)])
def test_memory_of_large_bytes_is_a_small_part_of_them(tmp_path, ending):
    block = RANDOM.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    for split, times in (("train", 2), ("test", 1)):
        place = tmp_path / "data" / (split if ending == "npy" else "")
        place.mkdir(parents=True, exist_ok=True)
        x, y = np.concatenate([block] * times)[: 50_000 * times if times > 1 else 500], np.arange(50_000 * times) % 10
        if ending == "npy":
            np.save(place / "x.npy", x)
            np.save(place / "y.npy", y[: len(x)])
        else:
            np.savez(place / f"{split}.npz", x=x, y=y[: len(x)])
    child = [sys.executable, "-c", CHILD, str(tmp_path / "data")]
    peak, size, _ = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    assert size == 2 * block.nbytes
    assert peak < 0.3 * size
