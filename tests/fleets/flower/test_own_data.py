"""What devices have on their discs: stray files, pictures on their side, names for labels, arrays of every type and range."""

import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower.frames import Form
from fedbonsai.fleets.flower.samples import Own

FORM = Form((1, 4, 4), ("été", "hiver"), (0.5,), (0.25,))
Y = np.arange(6) % 2
BYTES = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4) + np.uint8(100)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path / "cache"))


def arrays(folder: Path, **held) -> str:
    np.savez(folder / "a.npz", **held)
    return str(folder / "a.npz")


def taken(where: str, form: Form = FORM):
    """Samples and labels in the order in which a device without validation draws them, and values from 0 to 1."""
    train, _ = Own(where, 0.0, "pi")(form)
    return train.x * form.std[0] + form.mean[0], train.y


def pictures(folder: Path, classes=("été", "hiver"), count=3) -> Path:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("L", (4, 4), 51 * number).save(folder / name / f"{index}.png")
    return folder


# --- arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "top"),
    [
        (BYTES, 255),
        (BYTES / 255, 1),
        ((BYTES / 255).astype(np.float16), 1),
        ((BYTES / 255).astype(">f4"), 1),
        ((BYTES / 255).astype(np.longdouble), 1),
        (BYTES > 150, 1),
        (np.zeros((6, 4, 4)), 1),
        (np.zeros((6, 4, 4), np.uint8), 255),
        (BYTES[..., ::-1] / 255 * 1.0005, 1),  # rounding
    ],
)
def test_bytes_floats_and_booleans_are_taken_for_what_they_are(tmp_path, x, top):
    found, _ = taken(arrays(tmp_path, x=x, y=Y))
    assert found.dtype == torch.float32
    assert float(found.sum()) == pytest.approx(float(x.astype(float).sum()) / top, abs=1e-2)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (BYTES.astype(np.int8), "type int8 from -128 to 127"),
        (BYTES.astype(np.int16), r"type int16 from 100 to 195; .*astype\(np\.uint8\)"),
        (BYTES.astype(np.uint32), "type uint32"),
        (BYTES.astype(np.int64) // 255, "type int64 from 0 to 0"),
        (BYTES.astype(np.float64), r"float64 values from 100 to 195; .*divide by .*255"),
        (BYTES.astype(np.float16), "float16 values from 100"),
        (BYTES / 255 * 16, "float64 values from .* to 12"),
        ((BYTES / 255 - 0.5) / 0.25, "before any normalisation"),
        (-(BYTES / 255), "float64 values from -0"),
        (BYTES / 255**2, "nothing can be seen"),
        ((BYTES > 150).astype(np.uint8), r"uint8 values up to 1, where 255 is white: .*astype\(bool\)"),
        (BYTES.astype(complex), "type complex128"),
        (BYTES.astype("datetime64[s]"), "type datetime64"),
        (BYTES.astype(str), "type <U3"),
        (np.where(BYTES == 100, np.inf, 0.5), "not finite"),
        (np.where(BYTES == 100, np.nan, 0.5), "not finite"),
        (np.float64(0.5), "no array"),
    ],
)
def test_types_and_ranges_of_which_nobody_knows_what_they_count_from_are_refused(tmp_path, x, text):
    with pytest.raises(ConfigError, match=text):
        Own(arrays(tmp_path, x=x, y=Y), 0.0, "pi")(FORM)


def test_what_a_function_returns_is_looked_at_as_a_file_is(tmp_path, monkeypatch):
    (tmp_path / "camera_of_mine.py").write_text(
        "import numpy as np, torch\n"
        "y = [0, 1]\n"
        "def tensor(): return torch.full((2, 4, 4), 0.5, requires_grad=True), torch.tensor(y)\n"
        "def half(): return torch.full((2, 4, 4), 0.5, dtype=torch.bfloat16), y\n"
        "def lists(): return [[[0.5] * 4] * 4] * 2, y\n"
        "def ragged(): return [[[0.5] * 4] * 4, [0.5]], y\n"
        "def objects(): return np.array([[[None] * 4] * 4] * 2), y\n"
        "def masked(): return np.ma.masked_array(np.full((2, 4, 4), 0.5), np.eye(4)[None].repeat(2, 0)), y\n"
        "def number(): return np.full((2, 4, 4), 0.5), 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("tensor", "half", "lists"):
        assert torch.equal(taken(f"camera_of_mine:{name}")[0], torch.full((2, 1, 4, 4), 0.5))
    for name, text in (
        ("ragged", "no array"),
        ("objects", "type object"),
        ("masked", "masked"),
        ("number", "no array"),
    ):
        with pytest.raises(ConfigError, match=text):
            taken(f"camera_of_mine:{name}")


def test_faint_values_are_told_in_the_log(tmp_path, caplog):
    digits = (np.arange(6 * 16) % 17).reshape(6, 4, 4).astype(np.uint8)  # 0 to 16, as scikit-learn's are
    with caplog.at_level(logging.WARNING, "fedbonsai"):
        taken(arrays(tmp_path, x=digits, y=Y))
        assert "are its values scaled as 0 to 255" in caplog.text
        caplog.clear()
        taken(arrays(tmp_path, x=np.linspace(0, 1, 96).reshape(6, 4, 4), y=Y))
        assert not caplog.text


@pytest.mark.parametrize("raw", [b"", b"plain text", b"PK\3\4 cut off", None])
def test_a_file_that_is_no_npz_is_named(tmp_path, raw):
    place = tmp_path / "a.NPZ"
    if raw is None:
        with place.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        place.write_bytes(raw)
    with pytest.raises(ConfigError, match=r"a\.NPZ cannot be read"):
        taken(str(place))


@pytest.mark.parametrize("where", ["x" * 300, "a\0b", "hf://a/b", "s3:b", "*/[x]"])
def test_what_is_no_place_is_refused(where):
    with pytest.raises(ConfigError, match=r"does not exist|cannot be|No module"):
        taken(where)


# --- labels ---------------------------------------------------------------------------------------------------------


def test_labels_may_be_names(tmp_path):
    x = np.where(Y[:, None, None] == 1, 0.8, 0.2) * np.ones((6, 4, 4))
    apart = unicodedata.normalize("NFD", "été")
    for held in (
        {"y": np.array(["été", "hiver"])[Y]},
        {"y": np.array([apart, "hiver"])[Y]},
        {"y": 1 - Y, "names": np.array(["hiver", "été"])},
        {"y": Y},
    ):
        found, y = taken(arrays(tmp_path, x=x, **held))
        assert torch.equal(y, (found[:, 0, 0, 0] > 0.5).long())


@pytest.mark.parametrize(
    ("held", "text"),
    [
        ({"y": np.array(["été", "automne"])[Y]}, "no classes of the task: automne"),
        ({"y": Y, "names": np.array(["été"])}, "does not number the 1 names"),
        ({"y": Y - 1, "names": np.array(["été", "hiver"])}, "does not number"),
        ({"y": Y * 0.5}, "are float64 .* expected whole numbers or names"),
        ({"y": np.where(Y, np.nan, 0)}, "are float64"),
        ({"y": Y.astype(bool)}, "are bool"),
        ({"y": np.eye(2, dtype=int)[Y]}, r"of shape \(6, 2\)"),
        ({"y": Y - 1}, "run from -1 to 0"),
        ({"y": Y.astype(np.uint64) * np.uint64(2**63)}, "to 9223372036854775808"),
    ],
)
def test_labels_without_a_meaning_are_refused(tmp_path, held, text):
    with pytest.raises(ConfigError, match=text):
        taken(arrays(tmp_path, x=BYTES, **held))


def test_numbers_are_ambiguous_where_classes_are_called_by_other_numbers(tmp_path):
    form = Form((1, 4, 4), ("1", "2", "3"), (0.5,), (0.25,))
    with pytest.raises(ConfigError, match="classes are called 1, 2, 3: give the names"):
        taken(arrays(tmp_path, x=BYTES, y=Y + 1), form)
    with pytest.raises(ConfigError, match="no classes of the task: 0"):
        taken(str(pictures(tmp_path / "p", ("0", "1"))), form)
    assert sorted(set(taken(str(pictures(tmp_path / "q", ("1", "3"))), form)[1].tolist())) == [0, 2]


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stray",
    ["été/._1.png", "._été", ".thumbs/x.png", "__MACOSX/été/._0.png", "__MACOSX/._x.png", "été/Thumbs.db", "desktop.ini",
     "@eaDir/0.png", "hiver/.DS_Store", "._data.parquet", "data/._train-0.parquet"],
)  # fmt: skip
def test_strays_are_passed_over_in_silence(tmp_path, stray, caplog):
    folder = pictures(tmp_path / "p")
    (folder / stray).parent.mkdir(parents=True, exist_ok=True)
    (folder / stray).write_bytes(b"\0\5\26\7")
    (folder / "empty").mkdir()
    with caplog.at_level(logging.WARNING, "fedbonsai"):
        assert len(taken(str(folder))[0]) == 6
    assert "passed over" not in caplog.text


def test_what_people_put_there_is_passed_over_aloud(tmp_path, caplog):
    folder = pictures(tmp_path / "p")
    for name in ("notes.txt", "été/3.heic", "hiver/more/0.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING, "fedbonsai"):
        assert len(taken(str(folder))[0]) == 6
    assert all(name in caplog.text for name in ("notes.txt", "3.heic", "more"))


def test_a_damaged_picture_among_good_ones_is_named(tmp_path):
    folder = pictures(tmp_path / "p [1]")
    (folder / "hiver" / "1.png").write_bytes(b"GIF? no, text")
    with pytest.raises(ConfigError, match=r"hiver/1\.png\) cannot be read"):
        taken(str(folder))


def test_a_device_reads_pictures_upright_from_folders_of_any_name(tmp_path):
    stored = Image.new("L", (4, 4), 0)
    stored.paste(250, (0, 0, 4, 2))  # bright above as stored
    exif = Image.Exif()
    exif[0x0112] = 3  # held upside down
    for name in ("[x]", "a::b", "m:f.npz"):
        folder = tmp_path / name / "été"
        folder.mkdir(parents=True)
        stored.save(folder / "a.png", exif=exif)
        found, _ = taken(str(tmp_path / name))
        assert float(found[0, 0, :2].max()) < 0.1
        assert float(found[0, 0, 2:].min()) > 0.9
