"""What data a run uses and how it is divided: a plain dataclass whose field texts are the command line's help."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Literal, get_args

Partition = Literal["iid", "dirichlet", "pathological", "shards", "natural"]

HUB = {  # short name: data set of the Hugging Face hub, with its configuration behind a colon where it has several
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "femnist": "flwrlabs/femnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "svhn": "ufldl-stanford/svhn:cropped_digits",
}
HUB_NAME = r"\w[\w.-]*/\w[\w.-]*(:[^:/]+)?"  # owner/name[:config]; folders and addresses are none


@dataclass(frozen=True)
class DataConfig:
    """The data of a run. All faults are reported together, as one ``ValueError``."""

    name: str = "digits"
    """Data set: digits, mnist, fashion-mnist, femnist, cifar10, cifar100, svhn, or owner/name[:config] of the hub. With a
    path, what reports call the data; none: as the folder."""
    path: str = ""
    """Local folder of Parquet files (train-*.parquet, test-*.parquet) to read instead of the hub."""
    clients: int = 10
    """Number of clients; 0 with natural ids: every id that has enough samples."""
    partition: Partition = "dirichlet"
    """How samples are divided among clients."""
    alpha: float = 0.5
    """Dirichlet concentration: the smaller, the fewer classes a client sees."""
    classes_per_client: int = 2
    """Classes that each client has (pathological)."""
    shards_per_client: int = 2
    """Label-sorted shards that each client gets (shards)."""
    by: str = ""
    """Column that says whose sample it is (natural)."""
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
        if self.path and self.name in ("", "digits"):  # digits are never read from files: the name of a recipe or none
            object.__setattr__(self, "name", Path(self.path).resolve().name or "data")
        natural = self.partition == "natural"
        faults = [
            f"{name} = {getattr(self, name)!r}: expected {want}"
            for name, want, fine in (
                ("partition", f"one of {', '.join(get_args(Partition))}", self.partition in get_args(Partition)),
                ("clients", f"at least {0 if natural else 1}", self.clients >= (0 if natural else 1)),
                ("alpha", "a number > 0", 0 < self.alpha < inf),
                ("classes_per_client", "at least 1", self.classes_per_client >= 1),
                ("shards_per_client", "at least 1", self.shards_per_client >= 1),
                ("by", "the column that says whose sample it is (partition is natural)", bool(self.by) or not natural),
                ("by", "nothing, unless partition is natural", natural or not self.by),
                ("minimum", "at least 1", self.minimum >= 1),
                ("valid", "a fraction in [0, 1)", 0 <= self.valid < 1),
                ("server", "at least 0", self.server >= 0),
                ("limit", "at least 0 (0 uses all samples)", self.limit >= 0),
                ("seed", "at least 0, or none", self.seed is None or self.seed >= 0),
            )
            if not fine
        ]
        known = ["digits", *HUB]
        if not self.path and self.name not in known and not re.fullmatch(HUB_NAME, self.name):
            near = get_close_matches(self.name, known, 1)
            faults.insert(
                0,
                f"name = {self.name!r}: expected {f'{near[0]!r}? Known are ' if near else 'one of '}"
                f"{', '.join(known)}; or owner/name of the hub, or a folder in path",
            )
        if faults:
            raise ValueError("; ".join(faults))
