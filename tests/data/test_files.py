"""Own data in every kind of file: Parquet, CSV, .npz, folders for classes, folders and files for clients."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fedbonsai.data import DataConfig, Federation, load
from fedbonsai.data.config import HoldoutConfig
from fedbonsai.errors import ConfigError, Missing

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path_factory.mktemp("cache")))


def opened(path: Path, **settings: Any) -> Federation:
    return load(DataConfig(path=str(path), **{"minimum": 1, **settings}), 0)


def parquet(file: Path, metadata: str = "", **columns: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata({"shape": metadata} if metadata else None), file)
    return file


def fixed(values: Any) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)


def sound(file: Path, samples: Any, rate: int = 8000, channels: int = 1) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.asarray(samples, "<i2").tobytes())


def picture(file: Path, value: int, size: tuple[int, int] = (4, 4)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(file)


# --- files of rows --------------------------------------------------------------------------------------------------


def test_lists_have_the_shape_and_scale_that_metadata_say(tmp_path: Path) -> None:
    x = RANDOM.integers(-500, 500, (30, 5, 2), dtype=np.int16)
    for split in ("train", "test"):
        parquet(tmp_path / f"{split}.parquet", '{"shape": [5, 2], "scale": [0.5, 2]}', x=fixed(x), label=[0, 1, 2] * 10)
    held = opened(tmp_path, clients=3)
    assert held.samples.stored.dtype == torch.int16
    assert held.options == {"shape": (5, 2), "length": 5, "features": 2, "classes": 3, "outputs": 3}
    assert np.allclose(held.test.x.numpy(), x * np.array([0.5, 2]))
    assert "the shape [5, 2] and are multiplied with 0.5, 2, as the files' metadata say" in held.remarks()[0]
    flat = opened(tmp_path, clients=3, shape=(10,), transforms=("standardise",))
    assert flat.samples.shape == (10,)
    assert flat.samples.x.mean(0).abs().max() < 1e-4
    assert torch.allclose(flat.samples.x.std(0, correction=0), torch.ones(10), atol=1e-4)
    with pytest.raises(ConfigError, match=r"has 10 values a row, \[5, 2\]; expected \[3, 2\] \(data.shape\)"):
        opened(tmp_path, shape=(3, 2))


def test_columns_of_numbers_are_features(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b,c1,c2,kind,who\n" + "1,2.5,3,4,yes,x\n2,3.5,4,5,no,y\n" * 20)
    (tmp_path / "test.csv").write_text("a,b,c1,c2,kind,who\n9,2.5,3,4,no,z\n")
    held = opened(tmp_path, x=("a", "c*"), y="kind", client="who")
    assert held.samples.shape == (3,)
    assert held.samples.kind == torch.float32
    assert held.class_names == ("no", "yes")
    assert held.ids == ("x", "y")
    assert held.test.x.tolist() == [[9, 3, 4]]
    assert held.tested == "1 sample of 1 other client"
    every = opened(tmp_path, x="*", y="kind", client="who")
    assert every.samples.shape == (4,)
    both = opened(tmp_path, x="a", y=("b", "c1"), partition="iid", clients=2)
    assert both.test.y.tolist() == [[2.5, 3.0]]
    assert both.options["outputs"] == 2
    assert both.classes == 0


def test_small_whole_numbers_are_stored_as_they_are(tmp_path: Path) -> None:
    columns = {"a": pa.array([1, 2] * 20, pa.int8()), "b": pa.array([300, 4] * 20, pa.int16())}
    parquet(tmp_path / "own.parquet", **columns, label=[0, 1] * 20)
    held = opened(tmp_path / "own.parquet", x=("a", "b"), clients=2, partition="iid")
    assert held.samples.stored.dtype == torch.int16
    assert held.samples.kind == torch.float32
    assert len(held.test) == 4  # a tenth


def test_arrays_of_npz(tmp_path: Path) -> None:
    x, y = RANDOM.normal(size=(40, 6)), np.arange(40) % 2
    np.savez(tmp_path / "own.npz", x=x, y=y, names=np.array(["no", "yes"]), who=np.array(["a", "b"])[y])
    held = opened(tmp_path / "own.npz", client="who")
    assert held.samples.stored.dtype == torch.float32
    assert held.samples.scale is None
    assert (held.ids, held.class_names) == (("a", "b"), ("no", "yes"))
    np.savez(tmp_path / "pictures.npz", x=RANDOM.integers(0, 255, (40, 3, 4, 5), dtype=np.uint8), y=y)
    held = opened(tmp_path / "pictures.npz", clients=2)
    assert held.options["width"] == 5
    assert "size" not in held.options
    assert held.samples.stored.dtype == torch.uint8
    assert held.samples.x.mean((0, 2, 3)).abs().max() < 0.2  # normalised as pictures are


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for number in range(12):
        for value, name in ((20, "ant"), (200, "bee")):
            picture(tmp_path / "set" / name / f"{number}.png", value, (6, 4))
    held = opened(tmp_path / "set", clients=2)
    assert held.class_names == ("ant", "bee")
    assert held.samples.shape == (1, 4, 6)
    assert {(int(y), int(x.max())) for x, y in zip(held.samples.stored, held.samples.y, strict=True)} == {
        (0, 20),
        (1, 200),
    }
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            picture(tmp_path / "split" / split / name / "0.png", 3)
            picture(tmp_path / "split" / split / name / "1.png", 3)
    assert len(opened(tmp_path / "split", clients=2, partition="iid").test) == 4


def test_a_folder_of_classes_for_each_client(tmp_path: Path) -> None:
    for client in ("anna", "bert"):
        for name in ("cat", "dog"):
            for number in range(5):
                picture(tmp_path / client / name / f"{number}.png", 9 * number)
    held = opened(tmp_path, valid=0.0)
    assert held.ids == ("anna", "bert")
    assert held.split.parameters["partition"] == "natural"
    assert sum(map(len, held.train)) == 18
    assert opened(tmp_path, holdout=HoldoutConfig(names=("bert",))).tested == "10 samples of 1 other client"


def test_a_file_or_folder_of_rows_for_each_client(tmp_path: Path) -> None:
    for client in ("s1", "s2", "s3"):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{client}.csv").write_text("x,label\n" + "1,0\n2,1\n" * 10)
        parquet(tmp_path / "folders" / client / "day1.parquet", x=[1.0, 2.0] * 5, label=[0, 1] * 5)
        parquet(tmp_path / "folders" / client / "day2.parquet", x=[1.0, 2.0] * 5, label=[0, 1] * 5)
    for place in ("files", "folders"):
        held = opened(tmp_path / place)
        assert held.ids == ("s1", "s2", "s3")
        assert held.samples.shape == (1,)
        assert len(held.samples) + len(held.test) == 60


def test_recordings(tmp_path: Path) -> None:
    for number in range(8):
        for name, step in (("low", 0.1), ("high", 1.0)):
            sound(tmp_path / "a" / name / f"{number}.wav", 9000 * np.sin(step * np.arange(900 + 50 * number)))
    held = opened(tmp_path / "a", clients=2, transforms=({"window": 1000}, {"logmel": {"bands": 8}}, "standardise"))
    assert held.samples.shape == (1 + (1000 - 256) // 128, 8)
    high, low = (held.samples.stored[held.samples.y == number].mean((0, 1)) for number in (0, 1))
    assert low[0] > low[-1]
    assert high[0] < high[-2]
    with pytest.raises(ConfigError, match=r"inputs are of lengths of their own; set data.transforms = \[\{window"):
        opened(tmp_path / "a")
    raw = opened(tmp_path / "a", clients=2, transforms=({"window": 1000},))
    assert (raw.samples.stored.dtype, raw.samples.shape) == (torch.int16, (1000,))
    sound(tmp_path / "a" / "low" / "99.wav", [1] * 900, 16000)
    with pytest.raises(ConfigError, match="has 16000 samples a second, those before 8000"):
        opened(tmp_path / "a")
    for name in ("low", "high"):
        sound(tmp_path / "b" / name / "0.wav", [1] * 900, channels=2)
    with pytest.raises(ConfigError, match="has 2 channels of 16 bits; expected one"):
        opened(tmp_path / "b")
    for name in ("low", "high"):
        (tmp_path / "b" / name / "0.wav").write_bytes(b"RIFF no")
    with pytest.raises(ConfigError, match="cannot be read"):
        opened(tmp_path / "b")
    for name in ("low", "high"):
        (tmp_path / "b" / name / "0.wav").rename(tmp_path / "b" / name / "0.flac")
        (tmp_path / "b" / name / "0.flac").write_bytes(b"fLaC ...")
    with pytest.raises((Missing, ConfigError), match=r"FLAC, which needs soundfile|cannot be read"):
        opened(tmp_path / "b")
    picture(tmp_path / "b" / "low" / "0.png", 3)
    with pytest.raises(ConfigError, match=r"holds pictures and recordings \(0.flac, 0.flac\)"):
        opened(tmp_path / "b")


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "settings", "text"),
    [
        ({"a": [1.0, None] * 20}, {"x": "a"}, r"training: values are missing \(null or NaN\): 18 in 'a', of 36 rows"),
        ({"a": [1.0, np.inf] * 20}, {"x": "a"}, r"18 input values are NaN or infinite"),
        ({"a": ["u", "v"] * 20}, {"x": ["a"]}, r"inputs are text; set data.transforms = \[\{chars = 80\}\]"),
        ({"a": ["u", "v"] * 20, "b": [1, 2] * 20}, {"x": ["a", "b"]}, r"'a' hold text, expected numbers; .*onehot = \['a'\]"),
        ({"a": [[1.0], [2.0, 3.0]] * 20}, {"x": "a"}, r"values of 'a' have 2 shapes, such as \[1\] and \[2\]; .*window = 2"),
        ({"aa": [1.0, 2.0] * 20}, {"x": "aaa"}, r"data.x = 'aaa': no such column in .*did you mean 'aa'"),
        ({"aa": [1.0, 2.0] * 20}, {"x": "b*"}, r"data.x = 'b\*': no such column"),
        ({"a": [1.0, 2.0] * 20}, {"x": "a", "shape": (2,)}, r"data.shape = \[2\]: a are no lists"),
        ({"a": [1.0, 2.0] * 20}, {"x": ["a", "label"], "y": "label"}, "label: both an input and a target"),
        ({"a": [1.0, 2.0] * 20}, {"x": "a", "label": [0.5, 1.5] * 20, "y": "label", "targets": "classes"},
         "the label of row 0 is 0.5; expected a whole number"),
        ({"a": [1.0, 2.0] * 20}, {"x": "a", "label": [0.5, np.inf] * 20, "y": "label"}, "18 targets are infinite"),
        ({"a": [1.0, 2.0] * 20}, {"x": "a", "label": [0.5, 0.5] * 20, "y": "label", "partition": "iid"},
         "36 training samples are of one target, 0.5: nothing can be learned"),
        ({"a": [1.0, 2.0] * 20}, {"x": "a", "label": [0.5, None] * 20, "y": "label"},
         r"18 of 36 targets \(label\) are missing, first in row 1; drop these rows, or set data.drop_missing_targets"),
        ({"a": [1.0, 2.0] * 20}, {"x": "a", "label": [0.5, 1.5] * 20, "y": "label", "clients": 2},
         "'dirichlet' divides by classes, and the targets are numbers: set data.partition = 'iid'"),
        ({"a": [1.0, 2.0] * 20}, {"x": "a", "partition": "natural"}, "set data.client to the column"),
        ({"a": [1.0, 2.0] * 20, "who": ["x", None] * 20}, {"x": "a", "client": "who"}, "'who' is missing in"),
        ({"a": [1.0, 2.0] * 20, "b": [{"q": 1}] * 40}, {"x": ["a", "b"]}, r"'b' \(.*\): expected columns of numbers"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_meant(tmp_path: Path, columns: Any, settings: Any, text: str) -> None:
    label = settings.pop("label", [0, 1] * 20)
    parquet(tmp_path / "own.parquet", **columns, label=label)
    with pytest.raises(ConfigError, match=text):
        opened(tmp_path / "own.parquet", **settings)


def test_whole_numbers_are_classes_or_quantities(tmp_path: Path) -> None:
    parquet(tmp_path / "own.parquet", x=[1.0, 2.0] * 20, cycles=[7, 125] * 20, label=[0, 1] * 20)
    held = opened(tmp_path / "own.parquet", y="cycles", partition="iid", clients=2)
    assert (held.classes, held.samples.y.dtype) == (0, torch.float32)
    assert "always answers the mean of the training targets has an rmse of 59" in held.remarks()[0]
    numbers = opened(tmp_path / "own.parquet", y="label", targets="numbers", partition="iid", clients=2)
    assert (numbers.classes, numbers.samples.y.dtype) == (0, torch.float32)
    with pytest.raises(ConfigError, match="without 0"):
        opened(tmp_path / "own.parquet", y="cycles", targets="classes")


def test_missing_values_are_filled_in_by_name(tmp_path: Path) -> None:
    first = [1.0, None, 3.0, 8.0] * 10
    parquet(tmp_path / "train.parquet", x=first, who=["b", "a"] * 20, label=[0, 1] * 20)
    parquet(tmp_path / "test.parquet", x=[None, 5.0], who=["a", "a"], label=[0, 1])
    for how, value in (("mean", 4.0), ("median", 3.0), ("zero", 0.0)):
        held = opened(tmp_path, impute=how, clients=2, partition="iid")
        assert held.test.x.flatten().tolist() == [value, 5.0]
    last = opened(tmp_path, impute="last", client="who", valid=0.0)
    assert sorted(set(last.train[0].x.flatten().tolist())) == [3.0, 8.0]  # 3 before the first, as none is before it


def test_targets_that_are_missing_are_left_out_when_asked(tmp_path: Path) -> None:
    parquet(tmp_path / "own.parquet", x=[1.0, 2.0, 3.0, 4.0] * 10, label=[0, 1, None, 1] * 10)
    held = opened(tmp_path / "own.parquet", y="label", drop_missing_targets=True, clients=2)
    assert held.class_names == ("0", "1")
    assert 3.0 not in held.samples.x
    with pytest.raises(ConfigError, match=r"the label of row . is missing"):
        opened(tmp_path / "own.parquet", clients=2)


def test_shapes_of_files_must_agree(tmp_path: Path) -> None:
    parquet(tmp_path / "train-0.parquet", x=fixed(np.zeros((4, 3))), label=[0, 1] * 2)
    parquet(tmp_path / "train-1.parquet", x=fixed(np.zeros((4, 2))), label=[0, 1] * 2)
    with pytest.raises(ConfigError, match=r"'x' is double\[2\] of shape \(2,\) in .*train-1.*all files need the same"):
        opened(tmp_path)
    parquet(tmp_path / "train-1.parquet", x=["a"] * 4, label=[0, 1] * 2)
    with pytest.raises(ConfigError, match="'x' is string"):
        opened(tmp_path)
