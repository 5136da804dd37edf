"""Images from Parquet files, in the shapes that occur, and the cache of decoded ones."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from fedbonsai.data import DataConfig, load
from fedbonsai.data.cache import file_of
from fedbonsai.data.sources import digits, read
from fedbonsai.errors import ConfigError, Missing

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(pixels: Any, kind: str = "PNG") -> dict[str, Any]:
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


def parquet(folder: Path, train: dict[str, Any], test: dict[str, Any] | None = None, typed: bool = True) -> DataConfig:
    """Write files in the hub's layout, with its column types or (``typed`` false) as plain structs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in (("train", train), ("test", test)):
        if columns is None:
            continue
        made = datasets.Dataset.from_dict(columns)
        if typed:
            for column in ("image", "img"):
                if column in columns:
                    made = made.cast_column(column, datasets.Image(decode=False))
        made.to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))
    return DataConfig(name="own", path=str(folder), clients=2, partition="iid", minimum=2)


def grey(count: int, size: int = 6, height: int | None = None) -> list[Any]:
    return list(RANDOM.integers(0, 256, (count, height or size, size), dtype=np.uint8))


def columns(pixels: list[Any], kind: str = "PNG", image: str = "image", label: str = "label") -> dict[str, Any]:
    return {image: [encoded(p, kind) for p in pixels], label: [(7 * i) % 3 for i in range(len(pixels))]}


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("below", ["", "data"])
def test_grey_png(tmp_path: Path, typed: bool, below: str) -> None:
    pixels = grey(12)
    parquet(tmp_path / "set" / below, columns(pixels), columns(pixels[:4]), typed)
    images = read(DataConfig(name="own", path=str(tmp_path / "set")))
    assert np.array_equal(images.x[..., 0], np.stack(pixels))
    assert images.x.shape == (12, 6, 6, 1)
    assert images.test_x.shape == (4, 6, 6, 1)
    assert images.y.tolist() == [0, 1, 2] * 4
    assert images.names == ()


def test_colour_jpeg_and_class_names(tmp_path: Path) -> None:
    pixels = [np.full((8, 8, 3), (value, 20, 200), np.uint8) for value in range(0, 200, 20)]
    held = datasets.Dataset.from_dict(columns(pixels, "JPEG", "img", "fine_label"))
    held = held.cast_column("fine_label", datasets.ClassLabel(names=["cat", "dog", "eel"]))
    held = held.cast_column("img", datasets.Image(decode=False))
    for name in ("train", "test"):
        held.to_parquet(str(tmp_path / f"{name}-00000-of-00001.parquet"))
    config = DataConfig(name="own", path=str(tmp_path), clients=2, partition="iid", minimum=2)
    federation = load(config, 0)
    assert federation.samples.shape == (3, 8, 8)
    assert federation.classes == 3
    assert federation.class_names == ("cat", "dog", "eel")
    images = read(config)
    assert np.abs(images.x.astype(int) - np.stack(pixels)).max() < 12  # JPEG is lossy


def test_one_image_in_colour_makes_all_of_them_so(tmp_path: Path) -> None:
    pixels = [*grey(3), *[np.dstack([p, p, p]) for p in grey(2)]]
    palette = Image.fromarray(pixels[0]).convert("P")
    file = BytesIO()
    palette.save(file, "PNG")
    held = columns(pixels)
    held["image"][1] = {"bytes": file.getvalue(), "path": None}
    images = read(parquet(tmp_path, held, columns(pixels)))
    assert images.x.shape == (5, 6, 6, 3)
    assert np.array_equal(images.x[0, ..., 0], pixels[0])


def test_labels_in_any_order(tmp_path: Path) -> None:
    held = columns(grey(30))
    held["label"] = sorted(held["label"], reverse=True)
    federation = load(parquet(tmp_path, held, columns(grey(4))), 0)
    assert federation.classes == 3
    assert all(len(set(part.y.tolist())) == 3 for part in federation.train)


def test_without_test_split_a_tenth_is_taken(tmp_path: Path) -> None:
    config = parquet(tmp_path, columns(grey(30)) | {"writer": ["a"] * 30})
    images = read(DataConfig(name="own", path=config.path, by="writer"))
    assert (len(images.y), len(images.test_y), len(images.owners)) == (27, 3, 27)


def test_natural_ids(tmp_path: Path) -> None:
    held = columns(grey(30)) | {"writer": [f"w{i % 3}" for i in range(30)]}
    parquet(tmp_path, held, columns(grey(4)))
    federation = load(DataConfig(name="own", path=str(tmp_path), partition="natural", by="writer", clients=3), 0)
    assert federation.ids == ("w0", "w1", "w2")
    with pytest.raises(ConfigError, match=r"data\.client = 'author': no such column in .*; columns: image .*writer"):
        read(DataConfig(name="own", path=str(tmp_path), partition="natural", by="author"))


def test_faults_of_columns(tmp_path: Path) -> None:
    pixels = grey(6)
    good = columns(pixels)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"image": good["image"], "other": good["image"], "label": good["label"]}, "2 columns of images.*other"),
        ({"label": good["label"]}, "0 columns of images"),
        ({"image": good["image"], "kind": good["label"]}, "0 columns of classes.*kind"),
        ({"image": good["image"], "label": [0.5] * 6}, "0 columns of classes"),
        ({"image": good["image"], "label": [-1] * 6}, "run from -1 to -1"),
        (good | {"image": [*good["image"][:5], {"bytes": b"no", "path": None}]}, "image 5 cannot be read"),
        (columns([*grey(3), *grey(3, 7)]), "image 3 is 7x7 pixels, those before 6x6"),
        (columns([p.astype(np.uint16) for p in pixels]), "more than 8 bits"),
    ]  # fmt: skip
    for number, (held, text) in enumerate(cases):
        config = parquet(tmp_path / str(number), held, held, typed=False)
        with pytest.raises(ConfigError, match=text):
            read(config)


def test_train_and_test_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bring them to one shape"):
        read(parquet(tmp_path, columns(grey(6)), columns(grey(3, 7))))


def test_faults_of_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        read(DataConfig(path=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match=r"holds no train-\*\.parquet"):
        read(DataConfig(path=str(tmp_path)))
    (tmp_path / "train-0.parquet").write_bytes(b"not parquet")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(DataConfig(path=str(tmp_path)))


def test_without_a_network_the_error_names_data_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ConfigError, match=r"'ylecun/mnist' could not be fetched .*Couldn't reach.*set data\.path"):
        read(DataConfig(name="mnist"))


def test_hub_names_and_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []
    held = datasets.Dataset.from_dict(columns(grey(6)))

    def fetched(name: str, variant: str | None) -> dict[str, Any]:
        asked.append((name, variant))
        return {"train": held, "test": held}

    monkeypatch.setattr(datasets, "load_dataset", fetched)
    for name in ("svhn", "mnist", "own/set:small", "svhn"):
        assert len(read(DataConfig(name=name)).y) == 6
    # the last one came from the cache
    assert asked == [("ufldl-stanford/svhn", "cropped_digits"), ("ylecun/mnist", None), ("own/set", "small")]


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(Missing, match=r"pip install 'fedbonsai\[sim\]'"):
        digits()


@pytest.mark.slow
def test_cache_is_used_rebuilt_when_damaged_and_keyed_by_files(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parquet(tmp_path / "set", columns(grey(12)), columns(grey(4)))
    fresh = read(config)
    (file,) = cache.iterdir()
    monkeypatch.setattr(datasets, "load_dataset", None)  # not needed the second time
    again = read(config)
    assert np.array_equal(again.x, fresh.x)
    assert (again.names, again.fingerprint, again.top) == (fresh.names, fresh.fingerprint, 255)
    monkeypatch.undo()
    monkeypatch.setenv("FEDBONSAI_CACHE", str(cache))
    whole = file.read_bytes()
    for damaged in (b"", b"no", whole[: len(whole) // 2], whole[:300] + bytes(40) + whole[340:]):
        file.write_bytes(damaged)
        assert np.array_equal(read(config).x, fresh.x)
        assert file.stat().st_size == len(whole)
    assert list(cache.iterdir()) == [file]
    parquet(tmp_path / "set", columns(grey(9)), columns(grey(4)))
    assert len(read(config).y) == 9


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path / "file"))
    config = parquet(tmp_path / "set", columns(grey(12)), columns(grey(4)))
    assert len(read(config).y) == 12
    assert file_of("x").parent == tmp_path / "file"


def test_digits_have_no_writers() -> None:
    with pytest.raises(ConfigError, match="nothing of their writers"):
        read(DataConfig(partition="natural", by="writer"))
