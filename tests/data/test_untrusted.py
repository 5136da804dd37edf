"""Data as people have them: classes in another order, pictures on their side, odd names of folders, skewed test sets."""

from __future__ import annotations

import json
import unicodedata
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import fedbonsai
from fedbonsai.data import DataConfig, Federation, load
from fedbonsai.data.classes import translated
from fedbonsai.data.columns import UPRIGHT, decode
from fedbonsai.data.folders import stray
from fedbonsai.data.sources import read
from fedbonsai.errors import ConfigError
from fedbonsai.reports.page import summary
from fedbonsai.reports.series import Series
from fedbonsai.runs.recipes import table


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path / "cache"))


def png(value: int, size: tuple[int, int] = (4, 4)) -> dict[str, Any]:
    file = BytesIO()
    Image.new("L", size, value).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write(file: Path, kinds: list[Any], names: list[str] | None = None, **more: list[Any]) -> None:
    """A Parquet file whose pictures are as bright as their class says: ``kinds`` are numbers, or names where there are any."""
    file.parent.mkdir(parents=True, exist_ok=True)
    order = sorted(set(map(str, kinds)))
    columns = {"image": [png(50 * order.index(str(kind))) for kind in kinds], "label": kinds} | more
    if names is None:
        pq.write_table(pa.table(columns), file)
        return
    columns["label"] = [names.index(kind) for kind in kinds]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    held = datasets.Features(features | {name: datasets.Value("string") for name in more})
    pq.write_table(pa.table(columns, held.arrow_schema), file)


def opened(folder: Path, **settings: Any) -> Federation:
    return load(DataConfig(**{"path": str(folder), "clients": 2, "partition": "iid", "minimum": 2, **settings}), 0)


def meanings(y: Any, x: Any, names: tuple[str, ...]) -> set[tuple[str, int]]:
    return {(names[number], int(picture.max())) for number, picture in zip(y.tolist(), x, strict=True)}


# --- classes --------------------------------------------------------------------------------------------------------


def test_labels_mean_their_names_in_every_file(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", ["ant", "bee", "fly"] * 8, ["fly", "ant", "bee"])
    write(tmp_path / "train-1.parquet", ["ant", "bee", "fly"] * 8, ["ant", "bee", "fly"])
    write(tmp_path / "test-0.parquet", ["ant", "bee", "fly"] * 2, ["bee", "fly", "ant"])
    images = read(DataConfig(path=str(tmp_path)))
    assert images.names == ("fly", "ant", "bee")
    right = {("ant", 0), ("bee", 50), ("fly", 100)}
    assert meanings(images.y, images.x, images.names) == right
    assert meanings(images.test_y, images.test_x, images.names) == right


def test_files_that_declare_only_their_own_classes_are_joined(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", ["ant"] * 8, ["ant"])
    write(tmp_path / "train-1.parquet", ["bee"] * 8, ["bee"])
    write(tmp_path / "test.parquet", ["bee"] * 4, ["bee", "wasp"])  # declared, and there is none
    federation = opened(tmp_path)
    assert federation.class_names == ("ant", "bee")
    assert federation.test.y.tolist() == [1] * 4
    assert sorted(federation.samples.y.tolist()) == [0] * 8 + [1] * 8


def test_one_name_in_two_encodings_is_one_class() -> None:
    apart, together = unicodedata.normalize("NFD", "Hündin"), unicodedata.normalize("NFC", "Hündin")
    assert apart != together
    y = np.array([0, 1, 0])
    assert translated(y, ["Katze", apart], [together, "Katze"], "x").tolist() == [1, 0, 1]


def test_a_class_of_the_test_files_that_training_does_not_name_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", ["ant", "bee"] * 8, ["ant", "bee"])
    write(tmp_path / "test-0.parquet", ["ant", "wasp"] * 2, ["ant", "bee", "wasp"])
    with pytest.raises(ConfigError, match=r"test-0\.parquet holds classes .* not name: wasp; theirs are ant, bee"):
        read(DataConfig(path=str(tmp_path)))


@pytest.mark.parametrize("named", ["train", "test"])
def test_names_on_one_side_and_bare_numbers_on_the_other_are_refused(tmp_path: Path, named: str) -> None:
    for part in ("train", "test"):
        kinds: list[Any] = ["ant", "bee"] * 8 if part == named else [0, 1] * 8
        write(tmp_path / f"{part}-0.parquet", kinds, ["bee", "ant"] if part == named else None)
    with pytest.raises(ConfigError, match="which is which cannot be told"):
        read(DataConfig(path=str(tmp_path)))


def test_names_that_are_the_numbers_go_with_bare_numbers(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", ["0", "1"] * 8, ["0", "1"])
    write(tmp_path / "test-0.parquet", [0, 1] * 3)
    assert read(DataConfig(path=str(tmp_path))).test_y.tolist() == [0, 1] * 3


@pytest.mark.parametrize(
    ("train", "test", "text"),
    [
        ([0, 2, 4], [0, 2], r"3 different numbers from 0 to 4, without 1 \(2 are missing in all\): .* 0 to 2"),
        ([1, 2], [1, 2], r"from 1 to 2, without 0"),
        ([0, 1], [0, 9_999_999], r"without 2 \(9999997 are missing"),
        ([2**62, 5], [5], "without 0"),
        ([0, 1, None], [0, 1], "the label of row 2 is missing"),
        ([0, 1], [0, None], "test-0.*the label of row 1 is missing"),
        ([0, 1], [-1, 1], "test-0.*labels run from -1 to 1"),
        ([0, 1], [0.0, 1.5], r"test-0.*the label of row 1 is 1\.5; expected a whole number"),
        ([0.0, 1.0], [0, 1], r"0 columns of classes, .*label \(double|float64\)"),
        ([1, 1], [0, 1], "one class, '1': nothing can be learned"),
    ],
)
def test_numbers_that_count_no_classes_are_refused(tmp_path: Path, train: Any, test: Any, text: str) -> None:
    write(tmp_path / "train-0.parquet", train * 8)
    write(tmp_path / "test-0.parquet", test * 8)
    with pytest.raises(ConfigError, match=text):
        opened(tmp_path)


def test_a_gap_is_fine_where_all_names_are_declared_and_is_told(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", ["ant", "fly"] * 8, ["ant", "bee", "fly", "gnat"])
    write(tmp_path / "test-0.parquet", ["ant", "bee", "fly"], ["ant", "bee", "fly", "gnat"])
    federation = opened(tmp_path)
    assert federation.classes == 4
    assert federation.remarks() == (
        "in the test set, but no client trains on them: bee",
        "declared, but neither trained on nor tested: outputs without a use: gnat",
    )


def test_files_beside_those_of_the_data_are_told_of(tmp_path: Path) -> None:
    for name in ("train-0", "test-0", "validation-0", "training-1", "more", "._train-0"):
        write(tmp_path / f"{name}.parquet", [0, 1] * 8)
    (tmp_path / "notes.txt").touch()
    for _ in range(2):  # from the files, and from what was kept of them
        (said,) = opened(tmp_path).remarks()
        assert said.endswith(": more.parquet, training-1.parquet, validation-0.parquet")
    for name in ("training-1", "more", "validation-0"):
        (tmp_path / f"{name}.parquet").unlink()
    assert not opened(tmp_path).remarks()


@pytest.mark.parametrize(
    ("test", "majority", "remark"),
    [
        ([0] * 19 + [1], ("0", 0.95), "a model that always answers '0' reaches 95.0% on the test set"),
        ([1] * 7, ("1", 1.0), "all test samples are of class '1': the accuracy says nothing of the others"),
        ([1, 1, 0], ("1", 2 / 3), ""),
    ],
)
def test_what_a_constant_answer_reaches_is_told(tmp_path: Path, test: Any, majority: Any, remark: str) -> None:
    write(tmp_path / "train-0.parquet", [0, 1] * 8)
    write(tmp_path / "test-0.parquet", test)
    federation = opened(tmp_path)
    assert federation.majority == (majority[0], pytest.approx(majority[1]))
    assert federation.remarks() == ((remark,) if remark else ())


# --- pictures -------------------------------------------------------------------------------------------------------

CORNERS = np.kron(np.array([[250, 150], [100, 0]], np.uint8), np.ones((8, 8), np.uint8))  # four corners, all different
BACK = UPRIGHT | {6: UPRIGHT[8], 8: UPRIGHT[6]}  # each is its own inverse, but for the two quarter turns


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures_are_read_upright(orientation: int, kind: str, mode: str) -> None:
    stored = Image.fromarray(CORNERS).convert(mode)
    if orientation > 1:
        stored = stored.transpose(getattr(Image.Transpose, BACK[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    stored.save(file := BytesIO(), kind, exif=exif, **options)
    found = decode([{"bytes": file.getvalue(), "path": None}], "test")[0, :, :, 0].astype(int)
    assert np.abs(found - CORNERS).max() < 12  # JPEG is lossy


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    whole = png(3)["bytes"]
    for number, raw in enumerate((b"plain text", whole[:40], b"", whole[:-20])):
        (tmp_path / "b[1].png").write_bytes(raw)
        for item in ({"bytes": None, "path": str(tmp_path / "b[1].png")}, {"bytes": raw, "path": "b[1].png"}):
            with pytest.raises(ConfigError, match=r"image 1 \(.*b\[1\]\.png\) cannot be read"):
                decode([png(1), item], f"case {number}")
    for nothing in (None, {"bytes": None, "path": None}):
        with pytest.raises(ConfigError, match="image 1 is missing"):
            decode([png(1), nothing], "training")


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "[a-c]",
        "?*",
        "{x,y}",
        "s3::zip",
        "%2e%2e",
        "#1 & ;",
        " lead",
        ".dot",
        "~",
        "été 東京",
        "hf:/datasets",
        "a=b/c|d",
    ],
)
def test_folders_are_read_as_they_are_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "test"):
        write(tmp_path / name / f"{part}-0.parquet", [0, 1] * 4)
    assert len(read(DataConfig(path=str(tmp_path / name))).y) == 8
    monkeypatch.chdir(tmp_path)
    assert len(read(DataConfig(path=name)).y) == 8


def test_strays_beside_parquet_files_are_passed_over(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / f"{part}-0.parquet", [0, 1] * 4)
        (tmp_path / f"._{part}-0.parquet").write_bytes(b"\0\5\26\7 AppleDouble")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    assert len(read(DataConfig(path=str(tmp_path))).y) == 8
    assert all(stray(tmp_path / name) for name in ("__MACOSX", "THUMBS.DB", ".thumbnails", "._0.png"))
    assert not any(stray(tmp_path / name) for name in ("0.png", "_private", "macosx"))


def test_files_without_rows_are_passed_over_unless_all_are(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [])
    write(tmp_path / "test-0.parquet", [0, 1])
    with pytest.raises(ConfigError, match=r"train-0\.parquet: no rows"):
        read(DataConfig(path=str(tmp_path)))
    write(tmp_path / "train-1.parquet", ["ant", "bee"] * 4, ["ant", "bee"])
    write(tmp_path / "test-0.parquet", ["ant", "bee"], ["ant", "bee"])
    assert len(read(DataConfig(path=str(tmp_path))).y) == 8


def test_what_is_wrong_with_a_file_is_told_with_its_name(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [0, 1] * 4, picture_by=["x"] * 8)
    pq.write_table(pa.table({"image": [png(1)], "labels": [0]}), tmp_path / "train-1.parquet")
    with pytest.raises(ConfigError, match=r"'label': no such column in .*train-1\.parquet \(did you mean 'labels'\?\)"):
        read(DataConfig(path=str(tmp_path)))
    whole = (tmp_path / "train-0.parquet").read_bytes()
    cut = whole[:20] + bytes(200) + whole[220:]  # its footer is whole
    for raw, text in (
        (b"", "it is empty"),
        (b"PAR1 not", "Arrow"),
        (b"1,2\n3,4\n" * 9, "Arrow"),
        (cut, "expected a Parq"),
    ):
        (tmp_path / "train-1.parquet").write_bytes(raw)
        with pytest.raises(ConfigError, match=rf"train-1\.parquet cannot be read: .*{text}"):
            read(DataConfig(path=str(tmp_path)))
    (tmp_path / "train-1.parquet").unlink()
    (tmp_path / "train-1.parquet").mkdir()
    with pytest.raises(ConfigError, match=r"train-1\.parquet cannot be read: it is a folder"):
        read(DataConfig(path=str(tmp_path)))
    (tmp_path / "train-1.parquet").rmdir()
    with pytest.raises(ConfigError, match=r"data\.client = 'pictured_by': no such column .*did you mean 'picture_by'"):
        read(DataConfig(path=str(tmp_path), partition="natural", by="pictured_by"))
    (tmp_path / "train-0.parquet").rename(tmp_path / "training.parquet")
    with pytest.raises(ConfigError, match=r"holds no train-\*\.parquet \(but training\.parquet\)"):
        read(DataConfig(path=str(tmp_path)))


def test_a_path_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, text in (
        ("file", "is not a folder"),
        ("x" * 300, "cannot be read: File name too long"),
        ("*", "is not a"),
    ):
        with pytest.raises(ConfigError, match=text):
            read(DataConfig(path=str(tmp_path / path)))


@pytest.mark.parametrize(
    ("names", "fine"),
    [
        (["0000-of-2", "0001-of-2"], True),
        (["0000-of-2"], False),
        (["0000-of-1", "0000-of-2", "0001-of-2"], False),
        (["a", "b"], True),
    ],
)
def test_parts_that_are_missing_or_of_another_writing_are_refused(tmp_path: Path, names: list[str], fine: bool) -> None:
    for name in names:
        write(tmp_path / f"train-{name}.parquet", [0, 1] * 4)
    write(tmp_path / "test-0-of-1.parquet", [0, 1])
    if fine:
        assert len(read(DataConfig(path=str(tmp_path))).y) == 16
    else:
        with pytest.raises(ConfigError, match=r"holds . files train-.*copy all parts of one writing"):
            read(DataConfig(path=str(tmp_path)))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    columns = [pa.array([png(1)] * 2), pa.array([0, 1]), pa.array([1, 0])]
    pq.write_table(pa.Table.from_arrays(columns, ["image", "label", "label"]), tmp_path / "train.parquet")
    with pytest.raises(ConfigError, match=r"train\.parquet has several columns of one name: label"):
        read(DataConfig(path=str(tmp_path)))


def test_nobody_is_called_none(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [0, 1] * 4, who=["a", None, *["b"] * 6])
    with pytest.raises(ConfigError, match="'who' is missing in 1 rows, first in 1"):
        read(DataConfig(path=str(tmp_path), partition="natural", by="who"))


# --- names ----------------------------------------------------------------------------------------------------------


def test_own_data_are_called_by_their_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert DataConfig(path=str(tmp_path / "birds")).name == "birds"
    assert DataConfig(name="digits", path="a/birds/").name == "birds"
    assert DataConfig(name="my birds", path="a/b").name == "my birds"
    monkeypatch.chdir(tmp_path)
    assert DataConfig(path=".").name == tmp_path.name
    assert DataConfig(path="/").name == "data"
    (tmp_path / "own.toml").write_text(
        '[method]\nname = "averaging"\n[data]\nname = "mnist"\nclients = 5\n[model]\nname = "mlp"'
    )
    assert "name" not in table("own.toml", "", {"data.path": "x"})["data"]
    assert table("own.toml", "", {"data.path": "x", "data.name": "y"})["data"]["name"] == "y"
    assert table("own.toml")["data"] == {"name": "mnist", "clients": 5}


@pytest.mark.parametrize("name", ["/etc/data", "./data", "../x/y", "hf://a/b", "a/b/c", "a/", "https://x/y"])
def test_a_folder_or_an_address_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="or a folder in path"):
        DataConfig(name=name)


def test_a_folder_here_is_not_taken_for_the_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "ylecun" / "mnist" / "train.parquet", [0, 1] * 4)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"ylecun/mnist lies here too"):
        read(DataConfig(name="mnist"))


@pytest.mark.slow
def test_a_run_says_what_its_accuracy_is_held_against(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "blood" / "train-0.parquet", ["well", "ill"] * 20, ["well", "ill", "unknown"])
    write(tmp_path / "blood" / "test-0.parquet", ["well"] * 24 + ["ill"], ["well", "ill", "unknown"])
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {
        "data__path": "blood",
        "data__clients": 2,
        "data__partition": "iid",
        "model__name": "mlp",
    }
    run = fedbonsai.run("fedavg", name="x", runs=tmp_path / "runs", rounds=1, **settings)
    told = "a model that always answers 'well' reaches 96.0% on the test set"
    assert told in caplog.text
    assert told in run.info["notes"]["warning"]
    assert "neither trained on nor tested: outputs without a use: unknown" in run.info["notes"]["warning"]
    assert run.info["data"]["name"] == run.config.data.name == "blood"
    assert run.info["data"]["floor"] == {"answer": "'well'", "metric": "accuracy", "value": 0.96}
    assert json.loads((run.path / "split.json").read_text())["parameters"]["name"] == "blood"
    text = summary([Series("x", (run,))])
    assert text.startswith("1 run on blood. Always answering &#x27;well&#x27; reaches accuracy 96.0 % on its test set.")
