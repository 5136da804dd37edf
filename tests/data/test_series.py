"""Windows of rows, which never cross two engines; test sets of other clients and of later samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedbonsai.data import DataConfig, Federation, load
from fedbonsai.data.config import HoldoutConfig, SeriesConfig
from fedbonsai.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path_factory.mktemp("cache")))


def engines(folder: Path, **lengths: int) -> Path:
    """A file of engines whose rows are mixed up: a row holds the engine's number times 100 and the cycle."""
    rows = [
        (name, 100 * place + cycle, cycle, length)
        for place, (name, length) in enumerate(lengths.items())
        for cycle in range(length)
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    lines = [
        f"{name},{value},{cycle},{length - 1 - cycle + 0.5},{str(cycle == length - 1).lower()}"
        for name, value, cycle, length in rows
    ]
    folder.mkdir(exist_ok=True)
    (folder / "train.csv").write_text("engine,value,cycle,rul,last\n" + "\n".join(lines[i] for i in order))
    (folder / "test.csv").write_text("engine,value,cycle,rul,last\n" + "\n".join(lines))
    return folder


def opened(folder: Path, series: SeriesConfig, **settings: Any) -> Federation:
    given = {"x": "value", "y": "rul", "client": "engine", "series": series, "valid": 0.0, "minimum": 1, **settings}
    return load(DataConfig(path=str(folder), **given), 0)


def windows(part: Any) -> set[tuple[int, ...]]:
    return {tuple(map(int, row)) for row in part.stored[..., 0].tolist()}


def test_windows_are_in_order_and_of_one_engine(tmp_path: Path) -> None:
    held = opened(engines(tmp_path, a=4, b=5), SeriesConfig(3, order=("cycle",)))
    assert held.samples.shape == (3, 1)
    assert windows(held.train[0]) == {(0, 1, 2), (1, 2, 3)}
    assert windows(held.train[1]) == {(100, 101, 102), (101, 102, 103), (102, 103, 104)}
    assert sorted(held.train[0].y.tolist()) == [0.5, 1.5]


def test_stride_horizon_and_what_is_scored(tmp_path: Path) -> None:
    place = engines(tmp_path, a=6, b=7)
    ahead = opened(place, SeriesConfig(2, order=("cycle",), stride=2, horizon=1))
    assert windows(ahead.train[0]) == {(0, 1), (2, 3)}
    assert sorted(ahead.train[0].y.tolist()) == [1.5, 3.5]
    scored = opened(place, SeriesConfig(2, order=("cycle",), scored="last"))
    assert windows(scored.test) == {(4, 5), (105, 106)}
    assert len(scored.train[0]) == 5
    both = opened(place, SeriesConfig(2, order=("cycle",), horizon=1), x=("value", "rul"))
    assert both.samples.shape == (2, 2)
    with pytest.raises(ConfigError, match="rul: both an input and a target"):
        opened(place, SeriesConfig(2, order=("cycle",)), x=("value", "rul"))


def test_short_series_are_padded_refused_or_left_out(tmp_path: Path) -> None:
    place = engines(tmp_path, a=2, b=5)
    padded = opened(place, SeriesConfig(4, order=("cycle",)))
    assert windows(padded.train[0]) == {(0, 0, 0, 1)}
    assert padded.tested == "3 samples of the same 2 clients"
    with pytest.raises(
        ConfigError, match=r"1 of 2 series have fewer rows than a window and its horizon, 4 \(2 the shortest\)"
    ):
        opened(place, SeriesConfig(4, order=("cycle",), short="refuse"))
    assert opened(place, SeriesConfig(4, order=("cycle",), short="drop")).ids == ("b",)


def test_a_test_set_of_other_clients(tmp_path: Path) -> None:
    place = engines(tmp_path, **{f"e{n}": 6 for n in range(5)})
    named = opened(place, SeriesConfig(3, order=("cycle",)), holdout=HoldoutConfig(names=("e1",)))
    assert named.ids == ("e0", "e2", "e3", "e4")
    assert named.tested == "10 samples of 1 other client"  # of both files
    drawn = opened(place, SeriesConfig(3, order=("cycle",)), holdout=HoldoutConfig(clients=2))
    assert len(drawn.ids) == 3
    assert drawn.tested == "20 samples of 2 other clients"
    for holdout, text in (
        (HoldoutConfig(names=("e9",)), "e9: no such clients; there are e0"),
        (HoldoutConfig(clients=5), "there are 5"),
    ):
        with pytest.raises(ConfigError, match=text):
            opened(place, SeriesConfig(3), holdout=holdout)
    with pytest.raises(ConfigError, match=r"set data.client to the column"):
        opened(place, SeriesConfig(3), holdout=HoldoutConfig(clients=1), client="")


def test_a_test_set_of_later_samples(tmp_path: Path) -> None:
    place = engines(tmp_path, a=10, b=20)
    (place / "test.csv").unlink()
    held = opened(place, SeriesConfig(2, order=("cycle",)), holdout=HoldoutConfig(later=0.2))
    assert windows(held.test) == {(8, 9), (116, 117), (117, 118), (118, 119)}
    assert max(windows(held.train[0])) == (6, 7)
    assert held.tested == "4 later samples of the same 2 clients"
    rows = opened(place, SeriesConfig(), holdout=HoldoutConfig(later=0.5, order=("cycle",)))
    assert len(rows.test) == 15
    with pytest.raises(ConfigError, match=r"single rows cannot be taken out of series; set data.holdout"):
        opened(place, SeriesConfig(2))


def test_two_clients_that_call_their_series_alike_share_no_window(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b", "c")):
        rows = [f"{run},{100 * number + 10 * run + time},{time},{run % 2}" for run in range(4) for time in range(3)]
        for part in ("train", "test"):
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / f"{name}.csv").write_text("run,value,time,label\n" + "\n".join(rows))
    series = SeriesConfig(3, by="run", order=("time",))
    held = load(DataConfig(path=str(tmp_path), x="value", y="label", series=series, valid=0.0, minimum=1), 0)
    assert [windows(part) for part in held.train] == [
        {tuple(100 * number + 10 * run + time for time in range(3)) for run in range(4)} for number in range(3)
    ]
