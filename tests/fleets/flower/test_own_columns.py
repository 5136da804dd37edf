"""A device's own rows, recordings and text, read as the server's were, or refused with what does not fit."""

from __future__ import annotations

import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedbonsai import data
from fedbonsai.data import DataConfig, Federation
from fedbonsai.data.config import SeriesConfig
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower.frames import Form
from fedbonsai.fleets.flower.samples import Own, form_of
from fedbonsai.wire import decode, encode

ROWS = [
    (f"s{place}", cycle, 10.0 * place + cycle, "N" if cycle % 2 else "S", cycle % 3)
    for place in range(3)
    for cycle in range(12)
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path_factory.mktemp("cache")))


def csv(file: Path, rows: list[Any], head: str = "who,cycle,value,wind,label") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        head + "\n" + "\n".join(",".join("" if each is None else str(each) for each in row) for row in rows)
    )
    return file


def server(folder: Path, **settings: Any) -> Federation:
    csv(folder / "train.csv", ROWS)
    csv(folder / "test.csv", ROWS[:12])
    given = {"x": ("value", "wind"), "client": "who", "minimum": 1, "valid": 0.0, **settings}
    return data.load(DataConfig(path=str(folder), **given), 0)


def travelled(held: Federation) -> Form:
    return decode(encode(form_of(held)))


def test_a_client_reads_what_the_simulation_gives_it(tmp_path: Path) -> None:
    transforms = ({"onehot": "wind"}, "standardise")
    for series in (SeriesConfig(), SeriesConfig(4, order=("cycle",))):
        held = server(tmp_path / "server", transforms=transforms, series=series)
        own = csv(tmp_path / "own.csv", [row for row in ROWS if row[0] == "s1"])
        train, _ = Own(str(own), 0.0, "s1")(travelled(held))
        mine = held.train[held.ids.index("s1")]
        order, wanted = (torch.argsort(part.stored.flatten(1)[:, 0] + 100 * part.y) for part in (train, mine))
        assert torch.equal(train[order].x, mine[wanted].x)
        assert torch.equal(train[order].y, mine[wanted].y)


def test_names_of_columns_may_be_left_out_in_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form = travelled(server(tmp_path / "server", x=("value", "cycle")))
    np.savez(tmp_path / "own.npz", x=np.array([[1.5, 2], [2.5, 3]]), y=np.array([2, 0]))
    train, valid = Own(str(tmp_path / "own.npz"), 0.5, "pi")(form)
    assert sorted([*train.x.tolist(), *valid.x.tolist()]) == [[1.5, 2.0], [2.5, 3.0]]
    (tmp_path / "rows_of_mine.py").write_text(
        "def read(): return [[1.5, 2], [2.5, 3]], [2, 0]\ndef wide(): return [[1, 2, 3]], [0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    train, _ = Own("rows_of_mine:read", 0.0, "pi")(form)
    assert train.x.sum() == 9
    with pytest.raises(ConfigError, match=r"x has the shape \(3,\); the task wants 2 columns, value, cycle"):
        Own("rows_of_mine:wide", 0.0, "pi")(form)
    with pytest.raises(ConfigError, match="does not exist; expected a folder"):
        Own("nowhere", 0.0, "pi")(form)


@pytest.mark.parametrize(
    ("rows", "head", "text"),
    [
        ([("a", 1, 2.0, 0)], "who,cycle,valu,label", r"'value': no such column in .*did you mean 'valu'"),
        ([("a", 1, None, 0), ("a", 1, 2.0, 1)], "who,cycle,value,label", r"1 in 'value', of 2 rows"),
        ([("a", 1, "x", 0), ("a", 1, "y", 1)], "who,cycle,value,label", "'value' hold text, expected numbers"),
        (
            [("a", 1, 2.0, 3), ("a", 1, 2.0, 1)],
            "who,cycle,value,label",
            "labels of .* run from 1 to 3, the task has 3 classes",
        ),
        ([("a", 1, 2.0, 0.5)], "who,cycle,value,label", r"the label of row 0 is 0\.5"),
        ([("a", 1, 2.0, "cat")], "who,cycle,value,label", "holds classes that the training files do not name: cat"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, rows: list[Any], head: str, text: str) -> None:
    form = travelled(server(tmp_path / "server", x=("value", "cycle")))
    with pytest.raises(ConfigError, match=text):
        Own(str(csv(tmp_path / "own.csv", rows, head)), 0.0, "pi")(form)


def test_values_in_another_unit_are_refused(tmp_path: Path) -> None:
    x = np.arange(60, dtype=np.int16).reshape(20, 3)
    np.savez(tmp_path / "all.npz", x=x, y=np.arange(20) % 2)
    held = data.load(DataConfig(path=str(tmp_path / "all.npz"), partition="iid", clients=2, minimum=1), 0)
    form = travelled(held)
    train, _ = Own(str(tmp_path / "all.npz"), 0.0, "pi")(form)
    assert (train.stored.dtype, train.kind) == (torch.int16, torch.float32)
    np.savez(tmp_path / "own.npz", x=x * 0.002, y=np.arange(20) % 2)
    with pytest.raises(
        ConfigError, match=r"float32 values from 0 to 0\.118, the task stores int16: give them in the same unit"
    ):
        Own(str(tmp_path / "own.npz"), 0.0, "pi")(form)
    np.savez(tmp_path / "own.npz", x=x[:, :2], y=np.arange(20) % 2)
    with pytest.raises(ConfigError, match=r"has 2 values a row, \[2\]; expected \[3\]"):
        Own(str(tmp_path / "own.npz"), 0.0, "pi")(form)


def test_recordings_and_pictures_of_folders(tmp_path: Path) -> None:
    for name, step in (("no", 0.1), ("yes", 1.0)):
        for number in range(6):
            (tmp_path / "sounds" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "pictures" / name).mkdir(parents=True, exist_ok=True)
            with wave.open(str(tmp_path / "sounds" / name / f"{number}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes((9000 * np.sin(step * np.arange(600))).astype("<i2").tobytes())
            Image.new("L", (6 + number, 8), 9 * number).save(tmp_path / "pictures" / name / f"{number}.png")
    for place, transforms in (("sounds", ({"window": 500}, {"logmel": 6})), ("pictures", ({"resize": 4},))):
        held = data.load(
            DataConfig(path=str(tmp_path / place), transforms=transforms, partition="iid", clients=2, minimum=1), 0
        )
        train, _ = Own(str(tmp_path / place), 0.0, "pi")(travelled(held))
        assert (train.shape, len(train)) == (held.samples.shape, 12)
        assert train.stored.dtype == held.samples.stored.dtype
        assert train.y.sum() == 6
        if held.samples.scale is not None:
            assert train.scale is not None
            assert torch.equal(train.scale.mean, held.samples.scale.mean)


def test_text_has_the_servers_alphabet(tmp_path: Path) -> None:
    csv(tmp_path / "all" / "train.csv", [("a", "to be or not"), ("b", "to bee")] * 3, "who,text")
    csv(tmp_path / "all" / "test.csv", [("a", "be")], "who,text")
    held = data.load(DataConfig(path=str(tmp_path / "all"), client="who", transforms=({"chars": 8},), minimum=1), 0)
    own = csv(tmp_path / "own.csv", [("zebra to",), ("be",)], "text")
    train, _ = Own(str(own), 0.0, "pi")(travelled(held))
    assert train.kind == torch.int64
    text = "".join(held.class_names[token] for token in train.x[train.y[:, -1] >= 0].flatten().tolist())
    assert text == "\N{REPLACEMENT CHARACTER}eb\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} to".replace(
        "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}", "r\N{REPLACEMENT CHARACTER}"
    )


def test_a_form_of_pictures_has_the_bytes_of_before() -> None:
    form = Form((1, 4, 4), ("a", "b"), (0.5,), (0.25,))
    assert b"reading" not in bytes(encode(form))
    assert decode(encode(replace(form, reading="{}"))).reading == "{}"


def test_how_to_read_that_is_not_known_here_is_refused(tmp_path: Path) -> None:
    held = server(tmp_path / "server", x="value")
    form = replace(form_of(held), reading=held.reading.replace('"transforms": []', '"transforms": [{"unheard": {}}]'))
    with pytest.raises(ConfigError, match="'unheard' is not known"):
        Own(str(tmp_path / "server"), 0.0, "pi")(form)
