"""What a device is, in one file that `fedbonsai join` writes: its id, its data, its memory, and how it computes."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedbonsai.arch import bring
from fedbonsai.data.config import DataConfig
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower.memory import Store
from fedbonsai.fleets.flower.names import check_name
from fedbonsai.fleets.flower.samples import Own, Part
from fedbonsai.fleets.flower.worker import Source, Worker
from fedbonsai.identity import Identity, Unenrolled, read_identity
from fedbonsai.text import text_of


@dataclass(frozen=True)
class DeviceConfig:
    """A device; either ``data`` or ``part`` says where its samples are."""

    name: str
    """Its id, the same over its whole life and different from all others."""
    folder: str
    """Its memory and its socket; only its owner may read it."""
    data: str = ""
    """Its own data."""
    valid: float = 0.1
    """Fraction of its own data that is kept apart for decisions."""
    part: int = -1
    """For trials: which part of ``trial`` it is."""
    trial: dict[str, Any] = field(default_factory=dict[str, Any])
    """For trials: settings of the data that all devices share."""
    seed: int = 0
    """For trials: seed of the run."""
    device: str = "cpu"
    """Torch device."""
    threads: int = 1
    """Threads of torch."""
    imports: tuple[str, ...] = ()
    """Modules to import first: methods and networks of one's own."""
    key: str = ""
    """Its private key."""
    roster: str = ""
    """Public keys of all devices, as who runs the federation gave them to it; none: it takes part in no secure sum."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        check_name(self.name)
        faults = [
            text
            for bad, text in (
                (bool(self.data) == (self.part >= 0), "give --data with this device's own data, or --part for a trial"),
                (not 0 <= self.valid < 1, f"valid = {self.valid}: expected a fraction in [0, 1)"),
                (self.threads < 1, f"threads = {self.threads}: expected at least 1"),
            )
            if bad
        ]
        if faults:
            raise ConfigError("; ".join(faults))

    def source(self) -> Source:
        """Its data."""
        if self.part >= 0:
            return Part(DataConfig.of(self.trial), self.seed, self.part)
        return Own(self.data, self.valid, self.name)

    def identity(self) -> Identity:
        """Who it is to other devices.

        Raises:
            ConfigError: key or roster cannot be read, or do not belong together.
        """
        if not self.roster:
            return Unenrolled()
        return read_identity(Path(self.key), Path(self.roster), Path(self.folder) / "spent", self.name)

    def worker(self) -> Worker:
        """Who does its work in this process.

        Raises:
            ConfigError: a module cannot be imported, or the memory cannot be written.
        """
        torch.set_num_threads(self.threads)
        for name in self.imports:
            bring(name)
        return Worker(self.name, self.source(), Store(Path(self.folder) / "memory"), self.device, self.identity())


def read_device(path: Path) -> DeviceConfig:
    """A device from its file.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    try:
        text = text_of(path)
    except ConfigError as error:
        raise ConfigError(f"device file {error}; write it anew: fedbonsai join") from None
    try:
        table = tomllib.loads(text)
        table["imports"] = tuple(table.get("imports", ()))
        return DeviceConfig(**table)
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise ConfigError(f"device file {path} cannot be read: {error}; write it anew: fedbonsai join") from None


def table_of(device: DeviceConfig) -> dict[str, Any]:
    """The content of its file; what is None is left out, since TOML has no word for it."""
    table = asdict(device)
    table["trial"] = {name: value for name, value in table["trial"].items() if value is not None}
    return table
