"""From a configuration to the things that run: method, model, clients, fleet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedbonsai import data
from fedbonsai.core import Client, Fleet, Method, Samples
from fedbonsai.data.federation import Federation
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.pool import PoolFleet
from fedbonsai.fleets.wrappers import Flaky, Metered, Recorded
from fedbonsai.model import Arch, Model
from fedbonsai.runs.config import FleetConfig, RunConfig
from fedbonsai.tree import seed_of


@dataclass
class Scene:
    """Everything that a loop needs."""

    method: Method[Any]
    model: Model
    federation: Federation
    server: Client
    fleet: Fleet
    ledger: Ledger


def clients(federation: Federation, device: str = "cpu") -> list[Client]:
    """The federation's clients, in order."""
    return [
        Client(id, 0, train, valid, device, federation.augment)
        for id, train, valid in zip(federation.ids, federation.train, federation.valid, strict=True)
    ]


def federation(config: RunConfig, split: Path | None = None) -> Federation:
    """Load and split the data; ``split`` overrides where the split comes from."""
    wanted = config.data if split is None else replace(config.data, split=str(split))
    return data.load(wanted, config.seed if config.data.seed is None else config.data.seed)


def initial_model(config: RunConfig, data: Federation) -> Model:
    """The network with its initial weights; channels, size and classes come from the data.

    Raises:
        ConfigError: no such network, or it does not fit the data.
    """
    takes = options_of(config)
    options = {name: value for name, value in data.options.items() if name in takes} | config.model.options
    made = Model.init(Arch(config.model.name, options), seed_of(config.seed, "model", -1, 0))
    with torch.inference_mode():
        shape = (2, data.channels, data.size, data.size)
        try:
            scores = made.build().eval()(torch.zeros(shape))
        except RuntimeError as error:
            raise ConfigError(f"model {config.model.name!r} cannot take images of shape {shape[1:]}: {error}") from None
    if scores.shape != (2, data.classes):
        raise ConfigError(
            f"model {config.model.name!r} gives {tuple(scores.shape[1:])} scores, the data has {data.classes} classes"
        )
    return made


def options_of(config: RunConfig) -> set[str]:
    """Keyword arguments that the configured network takes.

    Raises:
        ConfigError: no such network, or options that it does not take.
    """
    return Arch(config.model.name, config.model.options).takes()


def fleet_of(config: FleetConfig, people: list[Client], ledger: Ledger, answers: Path | None = None) -> Fleet:
    """The fleet that a configuration names.

    Raises:
        ConfigError: settings that exclude each other.
    """
    if config.kind == "pool" and not config.wire:
        raise ConfigError("fleet.wire = false: worker processes always use the wire; use fleet.kind = 'local'")
    if config.device != "cpu":
        try:
            torch.empty(0, device=config.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"fleet.device = {config.device!r} is not there: {str(error).splitlines()[0]}") from None
    fleet: Fleet = LocalFleet(people, config.wire) if config.kind == "local" else PoolFleet(people, config.workers)
    fleet = Metered(fleet, ledger)
    if config.flaky:
        fleet = Flaky(fleet, config.flaky)
    if config.record and answers is not None:
        fleet = Recorded(fleet, answers)
    return fleet


def scene(config: RunConfig, split: Path | None = None, answers: Path | None = None) -> Scene:
    """Build everything."""
    torch.set_num_threads(config.fleet.threads)
    held = federation(config, split)
    start = initial_model(config, held)
    ledger = Ledger()
    fleet = fleet_of(config.fleet, clients(held, config.fleet.device), ledger, answers)
    empty = Samples(held.x[:0], held.y[:0])
    server = Client("server", config.seed, held.server if len(held.server) else empty, empty, config.fleet.device)
    return Scene(config.method, start, held, server, fleet, ledger)  # type: ignore[arg-type]
