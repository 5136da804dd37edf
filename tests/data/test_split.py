"""Divisions of the digits: who gets what, from which seed, and what cannot be had."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbonsai.data import DataConfig, Split, split
from fedbonsai.data.arrays import Arrays
from fedbonsai.data.sources import digits
from fedbonsai.data.split import DRAWS, _partitioner, draw
from fedbonsai.errors import ConfigError

DIGITS = digits()
EACH: list[dict[str, Any]] = [
    {"partition": "iid"},
    {"partition": "dirichlet", "alpha": 0.3},
    {"partition": "pathological", "classes_per_client": 3},
    {"partition": "shards", "shards_per_client": 2},
    {"partition": "natural", "by": "writer", "clients": 7},
]


@pytest.fixture(scope="module")
def written() -> Arrays:
    """The digits with writers: some prolific, five of them with three samples each."""
    random = np.random.default_rng(0)
    owners = np.asarray([f"w{number:02}" for number in random.integers(0, 20, len(DIGITS.y))], "U8")
    owners[:15] = [f"rare{number % 5}" for number in range(15)]
    return replace(DIGITS, owners=owners)


def everyone(split: Split) -> list[int]:
    return [*chain(*split.train, *split.valid), *split.server]


@pytest.mark.slow
@pytest.mark.parametrize("given", EACH, ids=lambda given: given["partition"])
def test_each_partition(given: dict[str, Any], written: Arrays) -> None:
    config = DataConfig(**{"clients": 10, "server": 100, **given})
    split = draw(written, config, 5)
    rows = everyone(split)
    assert len(split.train) == len(split.valid) == len(split.ids) == config.clients
    assert len(rows) == len(set(rows))
    assert set(rows) <= set(range(1400))
    assert len(split.server) == 100
    sizes = [len(a) + len(b) for a, b in zip(split.train, split.valid, strict=True)]
    assert min(sizes) >= config.minimum
    for size, valid in zip(sizes, split.valid, strict=True):
        assert len(valid) == max(1, round(0.1 * size))
    if given["partition"] in ("iid", "dirichlet", "pathological"):
        assert len(rows) == 1400
    if given["partition"] == "iid":
        assert sizes == [130] * 10
        assert all(len(set(DIGITS.y[list(part)])) == 10 for part in split.train)
    if given["partition"] == "pathological":
        both = [[*a, *b] for a, b in zip(split.train, split.valid, strict=True)]
        assert all(len(set(DIGITS.y[part])) == 3 for part in both)
    if given["partition"] == "shards":
        assert sizes == [130] * 10
        assert np.mean([len(set(DIGITS.y[list(part)])) for part in split.train]) < 5
    if given["partition"] == "natural":
        for name, part in zip(split.ids, split.train, strict=True):
            assert {str(owner) for owner in written.owners[list(part)]} == {name}
            assert not name.startswith("rare")
    assert split.parameters["partition"] == given["partition"]
    assert draw(written, config, 5) == split
    assert draw(written, config, 5).hash == split.hash
    assert set(draw(written, config, 6).train) != set(split.train)


def test_dirichlet_alpha_is_felt() -> None:
    def classes(alpha: float) -> float:
        split = draw(DIGITS, DataConfig(alpha=alpha, clients=5, minimum=5), 0)
        return float(np.mean([len(set(DIGITS.y[list(part)])) for part in split.train]))

    assert classes(0.1) < classes(0.5) < classes(100.0) == 10


@pytest.mark.slow
def test_own_seed_wins_over_the_runs() -> None:
    assert draw(DIGITS, DataConfig(seed=3), 0) == draw(DIGITS, DataConfig(seed=3), 1) == draw(DIGITS, DataConfig(), 3)


def test_ids_are_padded() -> None:
    assert draw(DIGITS, DataConfig(partition="iid", clients=12), 0).ids[:2] == ("000", "001")


def test_limit_is_a_random_part_and_counts_before_the_server() -> None:
    split = draw(DIGITS, DataConfig(partition="iid", limit=300, server=50), 0)
    assert len(everyone(split)) == 300
    assert len(split.server) == 50
    assert max(everyone(split)) > 1000


@pytest.mark.parametrize(("valid", "sizes"), [(0.0, {0}), (0.01, {1}), (0.5, {70}), (0.99, {139})])
def test_validation_part(valid: float, sizes: set[int]) -> None:
    split = draw(DIGITS, DataConfig(partition="iid", valid=valid), 0)
    assert {len(part) for part in split.valid} == sizes
    assert {len(part) for part in split.train} == {140 - size for size in sizes}


@pytest.mark.slow
def test_a_client_of_one_sample_trains_on_it() -> None:
    split = draw(DIGITS, DataConfig(partition="iid", clients=1400, minimum=1), 0)
    assert {len(part) for part in split.train} == {1}
    assert {len(part) for part in split.valid} == {0}


def test_natural_ids_all_that_have_enough(written: Arrays) -> None:
    split = draw(written, DataConfig(partition="natural", by="writer", clients=0), 0)
    assert split.ids == tuple(f"w{number:02}" for number in range(20))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"clients": 200}, "need 2000, there are 1400; lower data.clients"),
        ({"server": 1390, "clients": 2}, "for the server"),
        ({"partition": "iid", "limit": 50}, "there are 50"),
        ({"limit": 2000}, "data.limit = 2000: the training set has 1400"),
        ({"partition": "dirichlet", "clients": 100, "alpha": 0.01}, "alpha = 0.01 .*raise data.alpha"),
        ({"partition": "iid", "clients": 10, "minimum": 141}, "lower data"),
        ({"partition": "pathological", "classes_per_client": 11}, "lower .*classes_per_client"),
        ({"partition": "pathological", "classes_per_client": 10, "clients": 140, "minimum": 11}, "lower"),
        ({"partition": "shards", "clients": 100, "shards_per_client": 20}, "2000 shards .*there are 1400; lower"),
        ({"partition": "natural", "by": "writer", "clients": 21}, "20 of 25 values of 'writer'"),
    ],
)
def test_impossible_requests_are_refused_at_once(
    given: dict[str, Any], text: str, written: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[object] = []
    monkeypatch.setitem(draw.__globals__, "_partitioner", lambda *args: drawn.append(args) or _partitioner(*args))
    with pytest.raises(ConfigError, match=text):
        draw(written, DataConfig(**given), 0)
    assert len(drawn) <= (DRAWS if "alpha" in given else 1)


def test_saved_and_loaded(tmp_path: Path) -> None:
    split = draw(DIGITS, DataConfig(server=10), 0)
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json", DIGITS) == split
    assert Split.load(tmp_path / "split.json").hash == split.hash


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    draw(DIGITS, DataConfig(), 0).save(file)
    held = json.loads(file.read_text())
    for change in (
        {"train": [held["train"][0][1:], *held["train"][1:]]},
        {"samples": 1399},
        {"ids": ["x", *held["ids"][1:]]},
    ):
        file.write_text(json.dumps(held | change))
        with pytest.raises(ConfigError, match="altered"):
            Split.load(file)
    for text in ("", "{}", "[1]", "\x00", json.dumps(held | {"train": "no"})):
        file.write_text(text)
        with pytest.raises(ConfigError, match="cannot be read"):
            Split.load(file)
    file.write_text(json.dumps(held | {"format": "other"}))
    with pytest.raises(ConfigError, match="format 'other'"):
        Split.load(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        Split.load(tmp_path / "missing.json")


def test_other_data_is_refused(tmp_path: Path) -> None:
    split = draw(DIGITS, DataConfig(), 0)
    split.save(tmp_path / "split.json")
    for other in (replace(DIGITS, y=DIGITS.y[:-1]), replace(DIGITS, fingerprint="0" * 64)):
        with pytest.raises(ConfigError, match="use the data it was drawn from"):
            Split.load(tmp_path / "split.json", other)


def test_rows_given_twice_or_beyond_the_data_are_refused() -> None:
    split = draw(DIGITS, DataConfig(), 0)
    for wrong in (replace(split, server=(split.train[0][0],)), replace(split, server=(1400,))):
        with pytest.raises(ConfigError, match="twice or one outside"):
            wrong.check(DIGITS)
    with pytest.raises(ConfigError, match="other numbers of ids"):
        replace(split, ids=("a",)).check(DIGITS)


def test_clients_of_one_name_or_none_and_rows_beyond_all_numbers_are_refused(tmp_path: Path) -> None:
    split = draw(DIGITS, DataConfig(clients=3), 0)
    for change, text in (
        ({"ids": ("a", "b", "a")}, r"of one name \(\['a'\]\)"),
        ({"ids": ("", "b", "a")}, "without a name"),
        ({"train": ((1 << 70,), *split.train[1:])}, "a row twice or one outside"),
    ):
        replace(split, **change).save(tmp_path / "split.json")  # pyright: ignore[reportArgumentType]
        with pytest.raises(ConfigError, match=text):
            Split.load(tmp_path / "split.json", DIGITS)


@pytest.mark.slow
@pytest.mark.parametrize("given", EACH, ids=lambda given: given["partition"])
def test_a_division_comes_back_from_the_cache(
    given: dict[str, Any], written: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path))
    config = DataConfig(**{"clients": 10, "server": 100, **given})
    drawn = draw(written, config, 5)
    assert draw(written, config, 6).train != drawn.train
    others = replace(written, owners=written.owners[::-1].copy())
    assert (draw(others, config, 5).train != drawn.train) == (config.partition == "natural")

    def again(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(split, "_partition", again)
    assert draw(written, config, 5) == drawn


@pytest.mark.parametrize("clients", [1, 7, 60])
def test_iid_is_cut_as_the_partitioner_cuts(clients: int) -> None:
    datasets, kinds = (pytest.importorskip(name) for name in ("datasets", "flwr_datasets.partitioner"))
    rows = np.random.default_rng(1).permutation(123)
    maker = kinds.IidPartitioner(clients)
    maker.dataset = datasets.Dataset.from_dict({"row": rows})
    _, parts = split._partition(rows, rows, np.empty(0, np.str_), DataConfig(partition="iid", clients=clients), 0)
    assert [part.tolist() for part in parts] == [maker.load_partition(i)[:]["row"] for i in range(clients)]
