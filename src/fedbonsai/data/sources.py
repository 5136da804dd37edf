"""Where data come from: scikit-learn's digits, the Hugging Face hub, files, or Python; and what is made of their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import getsource
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data import given
from fedbonsai.data.arrays import NOBODY, Arrays, fingerprint, keep, kept
from fedbonsai.data.cache import file_of, version
from fedbonsai.data.classes import few
from fedbonsai.data.columns import input_columns, label_columns, matched, names_classes, required
from fedbonsai.data.config import HUB, SETS, DataConfig
from fedbonsai.data.extras import extra, quiet
from fedbonsai.data.folders import CLIENT, TESTS, local, marked, splits
from fedbonsai.data.holdout import divided
from fedbonsai.data.mapped import is_mapped
from fedbonsai.data.reading import Reading, reading_of
from fedbonsai.data.several import Several
from fedbonsai.data.shards import Shard, first, of_hub
from fedbonsai.data.tables import Table, declared, table
from fedbonsai.data.transforms import Part, Transform, parse
from fedbonsai.errors import ConfigError
from fedbonsai.telling import doing

READING = 3  # raise it when the same files are read otherwise than before: what was kept is then read anew
SETTINGS = (
    "x", "inputs", "y", "targets", "client", "shape", "series", "transforms", "impute", "drop_missing_targets", "holdout",
)  # fmt: skip


def read(config: DataConfig) -> Arrays:
    """The samples that a configuration names, from the cache where they were read before.

    A data set without a test split gives every tenth training sample, by a fixed draw, as one. What came from the hub
    is kept by name: remove the file in the cache to fetch it again.

    Raises:
        ConfigError: they cannot be found, fetched or understood.
        Missing: the packages of the ``sim`` extra are not installed.
    """
    settings = (*(getattr(config, name) for name in SETTINGS), *_code(config))
    if config.path.startswith(given.PREFIX):
        return _samples(given.recalled(config.path), config)
    folder = (
        Path(__file__).parent / "sets" / config.name if not config.path and config.name in SETS else Path(config.path)
    )
    files = bool(config.path) or config.name in SETS
    if files:
        place = file_of("samples", "files", READING, _marks(folder), settings)
    elif config.name == "digits":
        if own := [name for name in SETTINGS if getattr(config, name) != getattr(DataConfig(), name)]:
            raise ConfigError(
                f"data.{own[0]} = {getattr(config, own[0])!r}: the digits are pictures and say nothing of their writers; choose "
                "other data"
            )
        place = file_of("samples", "digits", READING, version("scikit-learn"))
    else:
        place = file_of("samples", "hub", READING, HUB.get(config.name, config.name), settings)
    if (arrays := kept(place)) is not None:
        return arrays
    if files:
        with doing(f"reading {config.path or config.name}"):
            arrays = _samples(local(folder), config)
    elif config.name == "digits":
        arrays = digits()
    else:
        with quiet(), doing(f"fetching {config.name}"):
            arrays = _samples(_hub(config), config)
    if is_mapped(arrays.x):  # what lies in files as it is wanted needs no copy of it
        return arrays
    keep(arrays, place)
    return kept(place) or arrays  # mapped where it is large, so that the division makes no second copy in memory


def _code(config: DataConfig) -> list[str]:
    """Text of the transforms that are not ours, as a part of a key: they read otherwise when it changes."""
    given = [config.transforms, *(one.transforms for one in config.inputs.values())]
    kinds = [type(each) for some in given for each in parse(some)]
    return [_text(kind) for kind in kinds if not kind.__module__.startswith("fedbonsai.")]


def _text(kind: type[Transform]) -> str:
    try:
        return getsource(kind)
    except OSError:  # typed in, or made by exec
        return kind.__call__.__code__.co_code.hex()


def _marks(path: Path) -> list[tuple[str, int, int]]:
    """Files of a path with their sizes and times: those of splits where names say so, else all."""
    try:
        return [mark for part in splits(path).values() for file in part for mark in marked(file)] or marked(path)
    except OSError:  # a name that is too long
        return []


def digits() -> Arrays:
    """scikit-learn's 1,797 digits, 8x8 pixels of 0 to 16: 1,400 to train and 397 to test, always the same ones."""
    datasets, selection = extra("sklearn.datasets"), extra("sklearn.model_selection")
    bunch = datasets.load_digits()
    x, y = bunch.images.astype(np.uint8)[..., None], bunch.target.astype(np.int64)
    train, test = selection.train_test_split(np.arange(len(y)), train_size=1400, stratify=y, random_state=0)
    names = tuple(str(name) for name in range(10))
    return Arrays(x[train], y[train], x[test], y[test], names, NOBODY, fingerprint(x[train], y[train]), top=16)


def _hub(config: DataConfig) -> dict[str, list[Shard]]:
    repository, _, variant = HUB.get(config.name, config.name).partition(":")
    if Path(repository).exists():
        raise ConfigError(
            f"data.name = {config.name!r}: {repository} lies here too, and the datasets library would read that instead "
            "of the hub; give a folder as data.path, or start elsewhere"
        )
    try:
        fetched = extra("datasets").load_dataset(repository, variant or None)
    except Exception as error:  # no network, no such data set, a gate, a wrong variant: all end here
        raise ConfigError(
            f"data set {repository!r} could not be fetched from the Hugging Face hub: {first(error)}; "
            "without a network, set data.path to a folder that holds its train-*.parquet and test-*.parquet"
        ) from error
    return {name: [of_hub(split, f"split {name!r} of {repository}")] for name, split in fetched.items()}


def _samples(found: Mapping[str, Sequence[Shard]], config: DataConfig) -> Arrays:
    """Samples of the columns that are wanted."""
    if "train" not in found:
        raise ConfigError(f"data set {config.name!r} has no split 'train'; it has {sorted(found)}")
    train = filled(found["train"])
    other = next((filled(found[name]) for name in TESTS if name in found), None)
    several = {name: _begun(train, one) for name, one in config.each_input().items()}
    reading = Several(several, {}) if several else _begun(train, config)
    scored = config.series.scored if config.series.length else ""
    keys = dict.fromkeys((*reading.wanted, *(config.holdout.order if config.holdout else ()), scored))
    names = [name for name in keys if name]
    classes = declared(train, reading.y)
    # labels of which nothing more is said are classes; what is wrong with one is told with its file
    said = config.y or config.drop_missing_targets or config.targets == "numbers"
    bare = [name for name in reading.y if not said and names_classes(train[0].kinds[name])]
    rows, tested = table(train, names, classes, "training", bare), None
    if other is not None:
        spared = (
            "" if config.holdout or config.series.length else reading.client
        )  # only what is divided must say whose it is
        there = [name for name in names if name != spared or all(name in shard.kinds for shard in other)]
        tested = table(other, there, classes, "test", bare)
    rows, tested = divided(rows, tested, config, reading.client)
    reading, part = reading.again(names=classes.get("".join(reading.y[:1]), ())).learned(rows)
    test = reading(tested, scored=_scored(tested, scored) if scored else None)
    if np.shape(part.x)[1:] != np.shape(test.x)[1:]:
        raise ConfigError(
            f"training samples are {list(np.shape(part.x)[1:])} and test samples {list(np.shape(test.x)[1:])}; bring them to "
            "one shape first, such as data.transforms = [{resize = 32}]"
        )
    return _arrays(*_as_meant(reading, part, test, config), config)


def _scored(rows: Table, name: str) -> NDArray[np.bool_]:
    values = rows.columns[name]
    if not isinstance(values, np.ndarray) or not np.isin(values, (0, 1)).all():
        raise ConfigError(
            f"data.series.scored = {name!r} is {rows.kinds[name].words}; expected true or false in every row"
        )
    return values.astype(bool)


def _begun(train: Sequence[Shard], config: DataConfig) -> Reading:
    """Which columns are read, and how, before anything is learned of them."""
    shard = train[0]
    by_folder = any(each.by_client for each in train)  # of a column in files one must say that it names clients
    client = config.client or (CLIENT if by_folder else "")
    series = (config.series.by, *config.series.order, config.series.scored) if config.series.length else ()
    for each in train:
        required(each, (client,), "data.client = ")
        required(each, series, "data.series: ")
        required(each, config.holdout.order, "data.holdout.order = ")
    made = any(each.makes_targets for each in parse(config.transforms))
    y = matched(shard, config.y, (), "data.y") if config.y and not made else ()
    x = input_columns(shard, config.x, [*y, client, *series])
    if not y and not made:
        y = label_columns(shard)
        x = tuple(name for name in x if name not in y or name in config.x)
    later = config.series.length and config.series.horizon  # what was measured before may tell what comes
    if both := [name for name in x if name in y and not later]:
        raise ConfigError(f"{few(both)}: both an input and a target; leave it out of data.x or data.y")
    for each in train:
        required(each, (*x, *y))
    return reading_of(Table(shard.what, shard.kinds, {}), config, x, y, client)


def filled(shards: Sequence[Shard]) -> list[Shard]:
    """Those that hold rows: of an empty file not even the types can be trusted.

    Raises:
        ConfigError: none does.
    """
    found = [shard for shard in shards if shard.count]
    if not found:
        raise ConfigError(
            f"{', '.join(shard.what for shard in shards)}: no rows; expected at least one in one of the files"
        )
    return found


def _as_meant(
    reading: Reading | Several, part: Part, test: Part, config: DataConfig
) -> tuple[Reading | Several, Part, Part]:
    """Whole numbers as classes or as quantities, which only both sets together tell."""
    y = part.y
    both = np.union1d(y, test.y)
    gaps = int(both[0]) < 0 or int(both[-1]) >= len(both)
    known = y.ndim > 1 or reading.names or part.names
    if both.dtype.kind == "f" or (gaps and config.y and not config.targets and not known):
        meant = reading.again(targets="numbers")
        return meant, replace(part, y=y.astype(np.float32)), replace(test, y=test.y.astype(np.float32))
    if known:
        return reading, part, test
    for each in (part, test):
        if int(each.y.min()) < 0:
            raise ConfigError(
                f"{each.what}: labels run from {int(each.y.min())} to {int(each.y.max())}, expected 0 to the number of classes - "
                "1; use a labelled split, or set data.targets = 'numbers'"
            )
    return reading.again(targets="classes"), part, test


def _arrays(reading: Reading | Several, part: Part, test: Part, config: DataConfig) -> Arrays:
    if isinstance(reading, Several):
        return _kept(reading.text(), part, test, config, "several")
    x = np.asarray(part.x)
    pictures = reading.role == "picture" and x.dtype == np.uint8 and x.ndim == 4
    # devices have words of their own for pictures as they are: see fleets/flower/samples.py
    plain = pictures and not (reading.transforms or config.x or config.y)
    notes: list[str] = []
    if part.units and not any(each.short == "standardise" for each in reading.transforms):
        scale = f"are multiplied with {', '.join(f'{unit:g}' for unit in part.units[:6])}{' ...' if len(part.units) > 6 else ''}"
        shape = "" if config.shape else f"have the shape {list(x.shape[1:])} and "
        notes.append(f"inputs {shape}{scale}, as the files' metadata say")
    if clip := next((each for each in reading.transforms if each.short == "clip"), None):
        notes.append(f"training targets are {clip}, those of the test set are as they are")
    kind = "pictures" if pictures else "tokens" if part.vocabulary else "numbers"
    return _kept("" if plain else reading.text(), part, test, config, kind, tuple(notes))


def _kept(reading: str, part: Part, test: Part, config: DataConfig, kind: str, notes: tuple[str, ...] = ()) -> Arrays:
    x, test_x = np.asarray(part.x), np.asarray(test.x)
    return Arrays(
        x,
        part.y,
        test_x,
        test.y,
        part.names,
        part.owners,
        fingerprint(x, part.y),
        kind=kind,
        test_owners=test.owners,
        held_out="later" if config.holdout.later else "",
        units=np.asarray(part.units, np.float64),
        reading=reading,
        vocabulary=part.vocabulary,
        notes=notes,
    )
