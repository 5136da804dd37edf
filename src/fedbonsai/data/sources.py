"""Where images come from: scikit-learn's digits, the Hugging Face hub, or a local folder of Parquet files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data.cache import file_of, version
from fedbonsai.data.classes import joined, translated
from fedbonsai.data.columns import declared, decode, image_column, label_column, labels, owners, required
from fedbonsai.data.config import HUB, DataConfig
from fedbonsai.data.extras import extra, quiet
from fedbonsai.data.images import Bytes, Images, Labels, fingerprint, keep, kept
from fedbonsai.data.shards import Shard, first, of_file, of_hub
from fedbonsai.errors import ConfigError
from fedbonsai.telling import doing

TESTS = ("test", "validation", "valid")  # names of a split that serves as the test set, the best first
STRAY = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
READING = 2  # raise it when the same files are read otherwise than before: what was kept is then read anew


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
        place = file_of("images", "files", READING, marks, config.by)
    else:
        place = file_of("images", "hub", READING, HUB.get(config.name, config.name), config.by)
    if (images := kept(place)) is not None:
        return images
    if config.name == "digits" and not config.path:
        images = digits()
    else:
        with quiet(), doing(f"{'reading' if files else 'fetching'} {config.path or config.name}"):
            images = _decoded(_local(files) if files else _hub(config), config)
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
        ConfigError: no such folder, no training files in it, or not all parts of a split.
    """
    try:
        for place in (folder, folder / "data"):
            found = {
                split: sorted([*place.glob(f"{split}-*.parquet"), *place.glob(f"{split}.parquet")])
                for split in ("train", *TESTS)
            }
            if found["train"]:
                return {split: _complete(files) for split, files in found.items() if files}
        others = sorted(file.name for file in folder.iterdir() if file.suffix == ".parquet" and not stray(file))
        state = "holds no train-*.parquet" + (f" (but {', '.join(others[:5])})" if others else "")
    except (FileNotFoundError, NotADirectoryError):
        state = "is not a folder"
    except OSError as error:
        state = f"cannot be read: {error.strerror}"
    raise ConfigError(
        f"data.path = {str(folder)!r} {state}; expected train-*.parquet and test-*.parquet, or a folder data/ of them"
    )


def unread(folder: Path) -> list[str]:
    """Names of Parquet files that lie beside those of a data set and are none of it."""
    found = parquet(folder)
    wanted = {*found["train"], *next((found[name] for name in TESTS if name in found), ())}
    beside = found["train"][0].parent.iterdir()
    return sorted(file.name for file in beside if file.suffix == ".parquet" and file not in wanted and not stray(file))


def _complete(files: list[Path]) -> list[Path]:
    """The files of a split, unless their names (``-00001-of-00003``) tell that parts are missing or of another writing."""
    parts = [match for file in files if (match := re.search(r"-(\d+)-of-(\d+)\.parquet$", file.name))]
    wanted = {int(match[2]) for match in parts}
    if parts and wanted != {len(parts)}:
        raise ConfigError(
            f"{files[0].parent} holds {len(parts)} files {', '.join(file.name for file in files[:5])} of "
            f"{' or '.join(map(str, sorted(wanted)))}: copy all parts of one writing there and take others away"
        )
    return files


def stray(path: Path) -> bool:
    """Whether systems, not people, put it there: hidden files and folders, and what archives and discs leave behind."""
    return path.name.startswith(".") or path.name.lower() in STRAY


def _local(files: Mapping[str, list[Path]]) -> dict[str, list[Shard]]:
    return {split: [of_file(file) for file in part] for split, part in files.items()}


def _hub(config: DataConfig) -> dict[str, list[Shard]]:
    repository, _, variant = HUB.get(config.name, config.name).partition(":")
    if Path(repository).exists():
        raise ConfigError(
            f"data.name = {config.name!r}: {repository} lies here too, and the datasets library would read that instead "
            "of the hub; give a folder as data.path, or start elsewhere"
        )
    try:
        splits = extra("datasets").load_dataset(repository, variant or None)
    except Exception as error:  # no network, no such data set, a gate, a wrong variant: all end here
        raise ConfigError(
            f"data set {repository!r} could not be fetched from the Hugging Face hub: {first(error)}; "
            "without a network, set data.path to a folder that holds its train-*.parquet and test-*.parquet"
        ) from error
    return {name: [of_hub(split, f"split {name!r} of {repository}")] for name, split in splits.items()}


def _decoded(splits: Mapping[str, Sequence[Shard]], config: DataConfig) -> Images:
    if "train" not in splits:
        raise ConfigError(f"data set {config.name!r} has no split 'train'; it has {sorted(splits)}")
    train = _filled(splits["train"])
    image, label = image_column(train[0]), label_column(train[0])
    for shard in train:
        required(shard, (image, label))
        required(shard, (config.by,), "data.by = ")
    names = joined(declared(shard, label) for shard in train)
    owner: NDArray[np.str_] = np.empty(0, np.str_)
    if config.by:
        owner = np.concatenate([owners(part.rows([config.by])[config.by], config.by, part.what) for part in train])
    x, y = _samples(train, image, label, names, "training")
    other = next((splits[name] for name in TESTS if name in splits), None)
    if other is None:
        test = np.zeros(len(y), bool)
        test[np.random.default_rng(0).permutation(len(y))[: max(1, len(y) // 10)]] = True
        test_x, test_y, x, y, owner = x[test], y[test], x[~test], y[~test], owner[~test] if owner.size else owner
    else:
        for shard in (other := _filled(other)):
            required(shard, (image, label))
        test_x, test_y = _samples(other, image, label, names, "test")
    if x.shape[1:] != test_x.shape[1:]:
        raise ConfigError(
            f"training images are {x.shape[1:]} and test images {test_x.shape[1:]} (height, width, channels); "
            "convert them to one shape first"
        )
    return Images(x, y, test_x, test_y, names, owner, fingerprint(x, y))


def _filled(shards: Sequence[Shard]) -> list[Shard]:
    """Those that hold rows: of an empty file not even the types can be trusted."""
    found = [shard for shard in shards if shard.count]
    if not found:
        raise ConfigError(
            f"{', '.join(shard.what for shard in shards)}: no rows; expected at least one in one of the files"
        )
    return found


def _samples(shards: Sequence[Shard], image: str, label: str, names: Sequence[str], what: str) -> tuple[Bytes, Labels]:
    """Images and labels of one split, the labels as numbers of the common names."""
    pictures: list[Any] = []
    y: list[Labels] = []
    for shard in shards:
        rows, own = shard.rows([image, label]), declared(shard, label)
        y.append(translated(labels(rows[label], len(own), shard.what), own, names, shard.what))
        pictures += rows[image]
    with doing(f"decoding {what} images", len(pictures)) as told:
        return decode(pictures, what, told), np.concatenate(y)
