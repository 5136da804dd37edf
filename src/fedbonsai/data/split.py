"""Which sample belongs to whom: drawn by flwr-datasets' partitioners from a seed, and saved with a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedbonsai.data import cache
from fedbonsai.data.arrays import Arrays, Labels
from fedbonsai.data.cache import file_of, version
from fedbonsai.data.config import BY_LABEL, DataConfig
from fedbonsai.data.extras import extra, quiet
from fedbonsai.data.series import ordered
from fedbonsai.errors import ConfigError
from fedbonsai.text import text_of
from fedbonsai.tree import seed_of

FORMAT = "fedbonsai-split/1"  # of the file, and of what a request draws: raise it when either changes
DRAWS = 5  # Dirichlet: seeds that are tried, each of which the partitioner tries up to 11 times

Rows = tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """Rows of the training set: those that each client trains on, those that it decides on, and the server's.

    ``samples`` and ``fingerprint`` are those of the training set that it divides; ``parameters`` say how it was drawn.
    """

    ids: tuple[str, ...]
    train: tuple[Rows, ...]
    valid: tuple[Rows, ...]
    server: Rows
    samples: int
    fingerprint: str
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def hash(self) -> str:
        """SHA-256 of everything that is in it."""
        return hashlib.sha256(json.dumps(self._body(), sort_keys=True).encode()).hexdigest()

    def text(self) -> str:
        """It as JSON."""
        return json.dumps({"format": FORMAT, "sha256": self.hash, **self._body()}) + "\n"

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(self.text(), encoding="utf-8")

    @staticmethod
    def load(path: str | Path, samples: Arrays | None = None) -> Split:
        """Read what `save` wrote.

        Args:
            path: of the file.
            samples: if given: the data that it must belong to (`check`).

        Raises:
            ConfigError: not such a file, altered since, or of other data.
        """
        try:
            held = json.loads(text_of(Path(path)))
            if held["format"] != FORMAT:
                raise ConfigError(f"split {str(path)!r} has format {held['format']!r}, expected {FORMAT!r}")
            split = Split(
                ids=tuple(map(str, held["ids"])),
                train=tuple(tuple(map(int, rows)) for rows in held["train"]),
                valid=tuple(tuple(map(int, rows)) for rows in held["valid"]),
                server=tuple(map(int, held["server"])),
                samples=int(held["samples"]),
                fingerprint=str(held["fingerprint"]),
                parameters=cast("dict[str, Any]", dict(held["parameters"])),
            )
            mark = held["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"split {str(path)!r} cannot be read: {error!r}; expected a file that Split.save wrote"
            ) from error
        if mark != split.hash:
            raise ConfigError(
                f"split {str(path)!r} was altered: its hash is {split.hash[:12]}…, the file says {str(mark)[:12]}…; "
                "take the original, or draw and save a new one"
            )
        if samples is not None:
            split.check(samples)
        return split

    def check(self, samples: Arrays) -> None:
        """Refuse data that this split was not drawn from.

        Raises:
            ConfigError: other samples, rows that do not exist, or a row given twice.
        """
        if self.samples != len(samples.y) or self.fingerprint != samples.fingerprint:
            raise ConfigError(
                f"the split divides {self.samples} samples of data {self.fingerprint[:12]}…, "
                f"these are {len(samples.y)} of {samples.fingerprint[:12]}…; use the data it was drawn from, or draw anew"
            )
        if "" in self.ids or len(set(self.ids)) < len(self.ids):
            twice = sorted({id for id in self.ids if not id or self.ids.count(id) > 1})
            raise ConfigError(f"the split has clients without a name, or of one name ({twice[:5]}); draw a new one")
        if len(self.ids) != len(self.train) or len(self.ids) != len(self.valid):
            raise ConfigError("the split has other numbers of ids, training parts and validation parts; draw a new one")
        try:
            rows = self.order()
        except OverflowError:  # a row beyond 64 bits
            rows = np.array([-1])
        if rows.size and (rows.min() < 0 or rows.max() >= self.samples or len(np.unique(rows)) != len(rows)):
            raise ConfigError(f"the split gives a row twice or one outside 0 to {self.samples - 1}; draw a new one")

    def order(self) -> NDArray[np.int64]:
        """All rows, client by client, each one's training part before its validation part; the server's last."""
        pairs = zip(self.train, self.valid, strict=True)
        return np.fromiter(chain(*(part for pair in pairs for part in pair), self.server), np.int64)

    def _body(self) -> dict[str, Any]:
        return {
            "ids": self.ids,
            "train": self.train,
            "valid": self.valid,
            "server": self.server,
            "samples": self.samples,
            "fingerprint": self.fingerprint,
            "parameters": dict(self.parameters),
        }


def draw(samples: Arrays, config: DataConfig, seed: int) -> Split:
    """Divide a training set among clients.

    Samples are put in random order first, then limited, then the server's are taken, and the rest is partitioned.

    Args:
        samples: what is divided.
        config: how.
        seed: of the run, unless the configuration has its own.

    Raises:
        ConfigError: the request cannot be met.
    """
    config = settled(config, samples)
    clients = config.clients or 0
    seed = seed if config.seed is None else config.seed
    total = len(samples.y)
    usable = config.limit or total
    if usable > total:
        raise ConfigError(f"data.limit = {config.limit}: the training set has {total} samples; lower it, or 0 for all")
    if config.server + clients * config.minimum > usable:
        raise ConfigError(
            f"{clients} clients of at least {config.minimum} samples and {config.server} for the server need "
            f"{config.server + clients * config.minimum}, there are {usable}; "
            "lower data.clients, data.minimum or data.server"
        )
    shards = clients * config.shards_per_client
    if config.partition == "shards" and shards > usable - config.server:
        raise ConfigError(
            f"{clients} clients of {config.shards_per_client} shards need {shards} shards of at least a sample, "
            f"there are {usable - config.server}; lower data.clients or data.shards_per_client"
        )
    rows = _random(seed, "order").permutation(total)[:usable].astype(np.int64)
    server, rest = rows[: config.server], rows[config.server :]
    owners = samples.owners[rest] if config.partition == "natural" else np.empty(0, np.str_)
    parameters = {"name": config.name, "seed": seed} | _parameters(config)
    key = FORMAT, samples.fingerprint, sorted(parameters.items()), owners.tolist(), version("flwr-datasets")
    ids, parts = _kept(rest, samples.y[rest], owners, config, seed, file_of("split", *key))
    least = min(range(len(parts)), key=lambda client: len(parts[client]))
    if len(parts[least]) < config.minimum:
        raise ConfigError(
            f"client {ids[least]} would have {len(parts[least])} samples of the {config.minimum} that each must have "
            f"({config.partition}); lower data.clients or data.minimum, or choose another partition"
        )
    train: list[Rows] = []
    valid: list[Rows] = []
    for name, part in zip(ids, parts, strict=True):
        apart = _validation(len(part), config.valid)
        drawn = _random(seed, f"valid/{name}").permutation(part)
        train.append(tuple(drawn[apart:].tolist()))
        valid.append(tuple(drawn[:apart].tolist()))
    return Split(
        ids=tuple(ids),
        train=tuple(train),
        valid=tuple(valid),
        server=tuple(server.tolist()),
        samples=total,
        fingerprint=samples.fingerprint,
        parameters=parameters,
    )


def settled(config: DataConfig, samples: Arrays) -> DataConfig:
    """The configuration with the partition and number of clients that it left to the data.

    Raises:
        ConfigError: samples have no classes or no owners, and the partition is by them.
    """
    owned = bool(samples.owners.size)
    partition = config.partition or ("natural" if owned else "dirichlet")
    if partition == "natural" and not owned:
        raise ConfigError("data.partition = 'natural': set data.client to the column that says whose each sample is")
    if partition in BY_LABEL and (samples.kind == "tokens" or samples.y.ndim > 1 or samples.y.dtype.kind == "f"):
        what = "tokens" if samples.kind == "tokens" else "numbers" if samples.y.ndim == 1 else "several for each sample"
        raise ConfigError(
            f"data.partition = {partition!r} divides by classes, and the targets are {what}: set data.partition = 'iid', or "
            "data.client to the column that says whose each sample is"
        )
    clients = config.clients if config.clients is not None else 0 if partition == "natural" else 10
    return replace(config, partition=partition, clients=clients)


def _kept(
    rows: NDArray[np.int64], y: Labels, owners: NDArray[np.str_], config: DataConfig, seed: int, place: Path
) -> tuple[list[str], list[NDArray[np.int64]]]:
    """What `_partition` gives, from the cache where it was drawn before: the partitioners take seconds to import."""
    held = cache.held(place, ("ids", "counts", "rows"))
    if held is not None:
        rows, ends = np.asarray(held["rows"]), np.cumsum(held["counts"]).tolist()  # each look at a mapped one is slow
        return held["ids"].tolist(), [rows[begin:end] for begin, end in pairwise([0, *ends])]
    ids, parts = _partition(rows, y, owners, config, seed)
    counts = np.array([len(part) for part in parts])
    cache.keep(place, {"ids": np.array(ids), "counts": counts, "rows": np.concatenate(parts)})
    return ids, parts


def _validation(count: int, fraction: float) -> int:
    """Samples kept apart: the fraction, but at least one of two or more, and never all of them."""
    return min(count - 1, max(1, round(fraction * count))) if fraction > 0 and count >= 2 else 0


def _parameters(config: DataConfig) -> dict[str, Any]:
    own = {
        "iid": (),
        "dirichlet": ("alpha",),
        "pathological": ("classes_per_client",),
        "shards": ("shards_per_client",),
        "natural": ("by",),
    }[config.partition]
    return {
        name: config.client if name == "by" else getattr(config, name)
        for name in ("partition", *own, "clients", "minimum", "valid", "server", "limit")
    }


def _random(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(seed_of(seed, f"data/{purpose}", -1, 0))


def _partition(
    rows: NDArray[np.int64], y: Labels, owners: NDArray[np.str_], config: DataConfig, seed: int
) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Client ids and the rows of each, by flwr-datasets on a data set of row numbers and labels alone."""
    if config.partition == "natural":
        keep = _eligible(owners, config, seed)
        rows, owners = rows[keep], owners[keep]
        return np.unique(owners).tolist(), [rows[part] for part in ordered(owners, [])]
    if (
        config.partition == "iid"
    ):  # a cut, since the order is random already: IidPartitioner takes a millisecond a client for it
        return _numbered(np.array_split(rows, config.clients or 0))
    with quiet():
        labels = y if config.partition in BY_LABEL else np.zeros(len(y), np.int64)
        table = extra("datasets").Dataset.from_dict({"row": rows, "label": labels})
        tries = DRAWS if config.partition == "dirichlet" else 1
        fault: ValueError | None = None
        for number in range(tries):
            maker = _partitioner(config, seed_of(seed, "data/partition", -1, number))
            maker.dataset = table
            try:
                parts = [np.asarray(maker.load_partition(i)[:]["row"], np.int64) for i in range(maker.num_partitions)]
                break
            except ValueError as error:
                fault = error
        else:
            raise _refused(config, fault) from fault
    return _numbered(parts)


def _numbered(parts: list[NDArray[np.int64]]) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Parts with the ids of their clients."""
    return [f"{i:0{max(3, len(str(len(parts) - 1)))}}" for i in range(len(parts))], parts


def _partitioner(config: DataConfig, seed: int) -> Any:
    kinds = extra("flwr_datasets.partitioner")
    if config.partition == "dirichlet":
        return kinds.DirichletPartitioner(
            config.clients, "label", float(config.alpha), config.minimum, self_balancing=False, shuffle=True, seed=seed
        )
    if config.partition == "pathological":
        # the first class in turn, the others at random: with as many clients as classes every class is used
        return kinds.PathologicalPartitioner(
            config.clients, "label", config.classes_per_client, "first-deterministic", shuffle=True, seed=seed
        )
    return kinds.ShardPartitioner(config.clients, "label", config.shards_per_client, shuffle=True, seed=seed)


def _refused(config: DataConfig, fault: ValueError | None) -> ConfigError:
    if config.partition == "dirichlet":
        return ConfigError(
            f"no Dirichlet division with alpha = {config.alpha} gave each of {config.clients} clients "
            f"{config.minimum} samples; raise data.alpha, or lower data.clients or data.minimum"
        )
    return ConfigError(
        f"{config.clients} clients cannot be made ({config.partition}): {fault}; "
        "lower data.clients, data.classes_per_client or data.shards_per_client"
    )


def _eligible(owners: NDArray[np.str_], config: DataConfig, seed: int) -> NDArray[np.bool_]:
    """Samples of the natural ids that become clients: of those with enough samples, as many as asked for, at random."""
    names, counts = np.unique(owners, return_counts=True)
    enough = names[counts >= config.minimum]
    clients = config.clients or 0
    if len(enough) < max(1, clients):
        raise ConfigError(
            f"{len(enough)} of {len(names)} values of {config.client or 'the clients'!r} have at least {config.minimum} samples, "
            f"{max(1, clients)} clients are asked for; lower data.clients or data.minimum"
        )
    if clients:
        enough = _random(seed, "owners").permutation(enough)[:clients]
    return np.isin(owners, enough)
