"""Where images come from: scikit-learn's digits, the Hugging Face hub, or a local folder of Parquet files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.cache import file_of, version
from fedbonsai.data.columns import decode, image_column, label_column, labels, owners
from fedbonsai.data.config import HUB, DataConfig
from fedbonsai.data.extras import extra, quiet
from fedbonsai.data.images import Images, fingerprint, keep, kept
from fedbonsai.errors import ConfigError
from fedbonsai.telling import doing

TESTS = ("test", "validation", "valid")  # names of a split that serves as the test set, the best first


def read(config: DataConfig) -> Images:
    """The images that a configuration names, from the cache where they were decoded before.

    A data set without a test split gives every tenth training sample, by a fixed draw, as one. What came from the hub
    is kept by name: remove the file in the cache to fetch it again.

    Raises:
        ConfigError: they cannot be found, fetched or understood.
        Missing: the packages of the ``sim`` extra are not installed.
    """
    files: Mapping[str, list[Path]] = {}
    if config.name == "digits" and not config.path:
        if config.by:
            raise ConfigError(f"data.by = {config.by!r}: the digits say nothing of their writers; choose other data")
        place = file_of("images", "digits", version("scikit-learn"))
    elif config.path:
        files = parquet(Path(config.path))
        marks = [
            (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)
            for part in files.values()
            for file in part
        ]
        place = file_of("images", "files", marks, config.by)
    else:
        place = file_of("images", "hub", HUB.get(config.name, config.name), config.by)
    if (images := kept(place)) is not None:
        return images
    if config.name == "digits" and not config.path:
        images = digits()
    else:
        with quiet(), doing(f"{'reading' if files else 'fetching'} {config.path or config.name}"):
            images = _local(files, config) if files else _hub(config)
    keep(images, place)
    return images


def digits() -> Images:
    """scikit-learn's 1,797 digits, 8x8 pixels of 0 to 16: 1,400 to train and 397 to test, always the same ones."""
    datasets, selection = extra("sklearn.datasets"), extra("sklearn.model_selection")
    bunch = datasets.load_digits()
    x, y = bunch.images.astype(np.uint8)[..., None], bunch.target.astype(np.int64)
    train, test = selection.train_test_split(np.arange(len(y)), train_size=1400, stratify=y, random_state=0)
    names = tuple(str(name) for name in range(10))
    nobody: NDArray[np.str_] = np.empty(0, np.str_)
    return Images(x[train], y[train], x[test], y[test], names, nobody, fingerprint(x[train], y[train]), top=16)


def parquet(folder: Path) -> dict[str, list[Path]]:
    """Parquet files by split, in a folder or in its ``data`` folder.

    Raises:
        ConfigError: no such folder, or no training files in it.
    """
    for place in (folder, folder / "data"):
        found = {
            split: sorted([*place.glob(f"{split}-*.parquet"), *place.glob(f"{split}.parquet")])
            for split in ("train", *TESTS)
        }
        if found["train"]:
            return {split: files for split, files in found.items() if files}
    state = "holds no train-*.parquet" if folder.is_dir() else "is not a folder"
    raise ConfigError(
        f"data.path = {str(folder)!r} {state}; expected train-*.parquet and test-*.parquet, or a folder data/ of them"
    )


def _local(files: Mapping[str, list[Path]], config: DataConfig) -> Images:
    datasets = extra("datasets")
    # the Arrow copy that the library makes is not wanted: what is kept is the decoded images
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        names = {split: [str(file) for file in part] for split, part in files.items()}
        try:
            splits = datasets.load_dataset("parquet", data_files=names, cache_dir=scratch)
        except Exception as error:  # whatever the library says of a damaged or odd file
            raise ConfigError(f"data.path = {config.path!r} cannot be read: {_first(error)}") from error
        return _decoded(splits, config)


def _hub(config: DataConfig) -> Images:
    repository, _, variant = HUB.get(config.name, config.name).partition(":")
    try:
        splits = extra("datasets").load_dataset(repository, variant or None)
    except Exception as error:  # no network, no such data set, a gate, a wrong variant: all end here
        raise ConfigError(
            f"data set {repository!r} could not be fetched from the Hugging Face hub: {_first(error)}; "
            "without a network, set data.path to a folder that holds its train-*.parquet and test-*.parquet"
        ) from error
    return _decoded(splits, config)


def _decoded(splits: Mapping[str, Any], config: DataConfig) -> Images:
    if "train" not in splits:
        raise ConfigError(f"data set {config.name!r} has no split 'train'; it has {sorted(splits)}")
    train = splits["train"]
    image, label = image_column(train.features), label_column(train.features)
    names: list[str] | None = getattr(train.features[label], "names", None)
    x, y = _samples(train, image, label, names, "training")
    owner = owners(train, config.by)
    other = next((splits[name] for name in TESTS if name in splits), None)
    if other is None:
        test = np.zeros(len(y), bool)
        test[np.random.default_rng(0).permutation(len(y))[: max(1, len(y) // 10)]] = True
        test_x, test_y, x, y, owner = x[test], y[test], x[~test], y[~test], owner[~test] if owner.size else owner
    else:
        missing = {image, label} - set(other.features)
        if missing:
            raise ConfigError(
                f"the test split of {config.name!r} lacks {sorted(missing)}, which the training split has"
            )
        test_x, test_y = _samples(other, image, label, names, "test")
    if x.shape[1:] != test_x.shape[1:]:
        raise ConfigError(
            f"training images are {x.shape[1:]} and test images {test_x.shape[1:]} (height, width, channels); "
            "convert them to one shape first"
        )
    classes = names or [str(number) for number in range(max(int(y.max(initial=0)), int(test_y.max(initial=0))) + 1)]
    return Images(x, y, test_x, test_y, tuple(classes), owner, fingerprint(x, y))


def _samples(dataset: Any, image: str, label: str, names: list[str] | None, what: str) -> tuple[Any, Any]:
    """Images and labels of one split, as stored (`columns.decode`, `columns.labels`)."""
    table = dataset.with_format("arrow")[:]  # still encoded: the library's own decoding is several times slower
    y = labels(table[label].to_pylist(), len(names) if names else None, what)
    column = table[image].to_pylist()
    with doing(f"decoding {what} images", len(column)) as told:
        return decode(column, what, told), y


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no text'}"
