"""What data a run uses and how it is divided: a plain dataclass whose field texts are the command line's help."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from keyword import iskeyword
from math import inf
from pathlib import Path
from typing import Any, Literal, cast, get_args

from fedbonsai.errors import ConfigError

Partition = Literal["", "iid", "dirichlet", "pathological", "shards", "natural"]
BY_LABEL = ("dirichlet", "pathological", "shards")  # partitions that need classes

HUB = {  # short name: data set of the Hugging Face hub, with its configuration behind a colon where it has several
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "femnist": "flwrlabs/femnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "svhn": "ufldl-stanford/svhn:cropped_digits",
}
SETS = ("motion",)  # that travel with the package, in data/sets
HUB_NAME = r"\w[\w.-]*/\w[\w.-]*(:[^:/]+)?"  # owner/name[:config]; folders and addresses are none


@dataclass(frozen=True)
class SeriesConfig:
    """Rows gathered to windows: of one engine or station at a time, in order, never across two of them."""

    length: int = 0
    """Rows of a window; 0: each row is a sample."""
    by: str = ""
    """Column whose values part the series of a client, such as a recording's number; none: all rows of a client are one."""
    order: tuple[str, ...] = ()
    """Columns by which the rows of a series are sorted, such as `cycle` or `year,month,day,hour`; none: as they come."""
    stride: int = 1
    """Rows from one window to the next."""
    horizon: int = 0
    """The target is that of so many rows after the last of the window."""
    scored: str = ""
    """Column that is true where a window of the test set ends; none: at every row, as `stride` says."""
    short: Literal["pad", "refuse", "drop"] = "pad"
    """Series shorter than a window: the first row repeated before them, an error, or left out."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        _refuse(
            [
                _fault(self, "length", "at least 0", self.length >= 0),
                _fault(self, "stride", "at least 1", self.stride >= 1),
                _fault(self, "horizon", "at least 0", self.horizon >= 0),
            ]
        )


@dataclass(frozen=True)
class HoldoutConfig:
    """Test samples taken out of the data: other clients, or later ones of the same. Test files are joined to the rest first."""

    clients: int = 0
    """So many clients, drawn once for all runs, are for the test alone."""
    names: tuple[str, ...] = ()
    """These clients are for the test alone."""
    later: float = 0.0
    """Last fraction of each client's samples that is for the test."""
    order: tuple[str, ...] = ()
    """Columns that say what is later; none: those of data.series.order, or the order of the files."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        _refuse(
            [
                _fault(self, "clients", "at least 0", self.clients >= 0),
                _fault(self, "later", "a fraction in [0, 1)", 0 <= self.later < 1),
                _fault(
                    self,
                    "later",
                    "only one of clients, names and later",
                    bool(self.clients) + bool(self.names) + bool(self.later) <= 1,
                ),
            ]
        )

    def __bool__(self) -> bool:
        return bool(self.clients or self.names or self.later)


@dataclass(frozen=True)
class InputConfig:
    """One of several inputs of a network, read as a single one is."""

    x: tuple[str, ...] = ()
    """Its columns, as in data.x; none: the column of its own name."""
    shape: tuple[int, ...] = ()
    """As data.shape."""
    transforms: tuple[Any, ...] = ()
    """As data.transforms."""

    def __post_init__(self) -> None:
        """One name alone is a list of one."""
        if isinstance(given := cast("str | tuple[str, ...]", self.x), str):
            object.__setattr__(self, "x", (given,))


@dataclass(frozen=True)
class DataConfig:
    """The data of a run. All faults are reported together, as one ``ValueError``."""

    name: str = "digits"
    """Data set: digits, motion (both are installed), mnist, fashion-mnist, femnist, cifar10, cifar100, svhn, or
    owner/name[:config] of the hub. With a
    path, what reports call the data; none: as the folder."""
    path: str = ""
    """Own data to read instead of the hub: a Parquet, CSV or .npz file, a folder of them (train-*, test-*), a folder with one
    folder of pictures or recordings for each class, or a folder with a folder or file for each client."""
    x: tuple[str, ...] = ()
    """Columns of the inputs, `*` for several; none: the only one of pictures or sounds, or one called x or text."""
    inputs: Mapping[str, InputConfig] = field(default_factory=dict[str, InputConfig])
    """Several inputs by the names of the network's arguments, each with `x`, `shape` and `transforms` of its own, instead of
    the three here."""
    y: tuple[str, ...] = ()
    """Columns of the targets; none: the only one of classes, or one called label, labels, fine_label or y."""
    targets: Literal["", "classes", "numbers"] = ""
    """What whole numbers in `y` are; none: classes, unless `y` is given and they are not 0 to n - 1 without gaps."""
    client: str = ""
    """Column that says whose sample it is."""
    shape: tuple[int, ...] = ()
    """Shape of one input that is stored as a list; none: as the file's metadata say, or one axis."""
    series: SeriesConfig = field(default_factory=SeriesConfig)
    """Rows gathered to windows."""
    transforms: tuple[Any, ...] = ()
    """What is done with samples before they are stored, in this order: resize, window, logmel, standardise, onehot, chars,
    clip, picture, reshape, tokens."""
    impute: Literal["", "mean", "median", "zero", "last"] = ""
    """What missing inputs become; none: they are refused."""
    drop_missing_targets: bool = False
    """Leave samples out whose target is missing; otherwise they are refused."""
    holdout: HoldoutConfig = field(default_factory=HoldoutConfig)
    """Test samples taken out of the data, instead of the test files."""
    clients: int | None = None
    """Number of clients; none: all where a column or folder says whose samples are, else 10; 0 with natural ids: all."""
    partition: Partition = ""
    """How samples are divided among clients; none: natural where data.client is given or folders are clients', else dirichlet."""
    alpha: float = 0.5
    """Dirichlet concentration: the smaller, the fewer classes a client sees."""
    classes_per_client: int = 2
    """Classes that each client has (pathological)."""
    shards_per_client: int = 2
    """Label-sorted shards that each client gets (shards)."""
    by: str = ""
    """Old name of `client`."""
    minimum: int = 10
    """Samples that each client must have, its validation part included."""
    valid: float = 0.1
    """Fraction of each client's samples kept apart for decisions."""
    server: int = 0
    """Samples set aside for the server."""
    limit: int = 0
    """Use only this many training samples, drawn at random; 0 uses all."""
    split: str = ""
    """Saved split to use instead of drawing one; it also says how many clients there are."""
    augment: bool = False
    """Random crop and flip of training images."""
    seed: int | None = None
    """Seed of the division; none: the run's seed."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant, and call own data by their folder where they have no name."""
        if not self.path and self.name in SETS and not self.client:
            object.__setattr__(self, "client", "client")
        if self.path and self.name in ("", "digits"):  # digits are never read from files: the name of a recipe or none
            object.__setattr__(self, "name", Path(self.path).resolve().name or "data")
        for name in ("x", "y"):  # one name alone is a list of one
            if isinstance(given := getattr(self, name), str):
                object.__setattr__(self, name, (given,))
        if self.by and not self.client:
            object.__setattr__(self, "client", self.by)
        natural = self.partition == "natural" or bool(self.client and not self.partition)
        kinds = [name for name in get_args(Partition) if name]
        faults = [
            _fault(self, "partition", f"one of {', '.join(kinds)}", self.partition in get_args(Partition)),
            _fault(
                self,
                "clients",
                f"at least {0 if natural else 1}",
                self.clients is None or self.clients >= (0 if natural else 1),
            ),
            _fault(self, "alpha", "a number > 0", 0 < self.alpha < inf),
            _fault(self, "classes_per_client", "at least 1", self.classes_per_client >= 1),
            _fault(self, "shards_per_client", "at least 1", self.shards_per_client >= 1),
            _fault(self, "by", "the same as client, whose old name it is", self.by in ("", self.client)),
            _fault(self, "shape", "sizes of at least 1", all(size >= 1 for size in self.shape)),
            _fault(self, "minimum", "at least 1", self.minimum >= 1),
            _fault(self, "valid", "a fraction in [0, 1)", 0 <= self.valid < 1),
            _fault(self, "server", "at least 0", self.server >= 0),
            _fault(self, "limit", "at least 0 (0 uses all samples)", self.limit >= 0),
            _fault(self, "seed", "at least 0, or none", self.seed is None or self.seed >= 0),
            *_transforms("transforms", self.transforms),
            *self._inputs(),
        ]
        object.__setattr__(self, "by", "")
        known = ["digits", *SETS, *HUB]
        if not self.path and self.name not in known and not re.fullmatch(HUB_NAME, self.name):
            near = get_close_matches(self.name, known, 1)
            faults.insert(
                0,
                f"name = {self.name!r}: expected {f'{near[0]!r}? Known are ' if near else 'one of '}"
                f"{', '.join(known)}; or owner/name of the hub, or a folder in path",
            )
        _refuse(faults)

    def _inputs(self) -> list[str]:
        """Faults of named inputs."""
        faults = [
            _fault(
                self, name, "nothing beside inputs: each input has its own", not (self.inputs and getattr(self, name))
            )
            for name in ("x", "shape", "transforms", "augment")
        ]
        if wrong := [name for name in self.inputs if not name.isidentifier() or iskeyword(name)]:
            faults.append(f"inputs: {', '.join(wrong)}: expected names of arguments of the network's forward")
        for name, one in self.inputs.items():
            faults += _transforms(f"inputs.{name}.transforms", one.transforms)
        return faults

    def each_input(self) -> dict[str, DataConfig]:
        """The data of each named input alone."""
        return {
            name: replace(self, inputs={}, x=one.x or (name,), shape=one.shape, transforms=one.transforms)
            for name, one in self.inputs.items()
        }

    @staticmethod
    def of(table: Mapping[str, Any]) -> DataConfig:
        """From a table of plain values, as TOML gives it."""
        kinds = {"series": SeriesConfig, "holdout": HoldoutConfig}
        made: dict[str, Any] = {name: kinds[name](**_tuples(table[name])) for name in kinds if name in table}
        made["inputs"] = {name: InputConfig(**_tuples(one)) for name, one in table.get("inputs", {}).items()}
        return DataConfig(**_tuples(table) | made)


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}


def _transforms(path: str, given: tuple[Any, ...]) -> list[str]:
    """Faults of transforms; what registers them is imported only where there are any."""
    if not given:
        return []
    from fedbonsai.data.transforms import parse

    try:
        parse(given)
    except ConfigError as error:
        return [f"{path}: {error}"]
    return []


def _fault(owner: object, name: str, want: str, fine: bool) -> str:
    return "" if fine else f"{name} = {getattr(owner, name)!r}: expected {want}"


def _refuse(faults: list[str]) -> None:
    if found := [fault for fault in faults if fault]:
        raise ValueError("; ".join(found))
