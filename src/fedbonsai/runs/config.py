"""What a run is made of; every field is a setting of TOML and of the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from fedbonsai.data.config import DataConfig


@dataclass(frozen=True)
class ModelConfig:
    """Which network is trained."""

    name: str = "cnn-bn"
    """Name of a network (`fedbonsai ls models`)."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of its builder; channels, size and classes come from the data."""


@dataclass(frozen=True)
class FleetConfig:
    """Where the clients run."""

    kind: Literal["local", "pool"] = "local"
    """`local`: this process. `pool`: worker processes of one thread each."""
    workers: int = 2
    """Processes of a pool."""
    wire: bool = True
    """Encode every message, so that bytes are counted; only `local` can leave it out."""
    flaky: float = 0.0
    """Probability that a device is silent in an ask."""
    device: str = "cpu"
    """Torch device of the training, such as `cuda`."""
    record: bool = False
    """Write all answers into the run's folder, to replay the run without its clients."""
    threads: int = 1
    """Threads of torch in this process; results are byte-equal only between equal counts."""


@dataclass(frozen=True)
class RunConfig:
    """A run."""

    method: object
    """The method and its hyper-parameters."""
    rounds: int = 30
    """Rounds of federated training."""
    seed: int = 0
    """Seed of everything that is drawn."""
    name: str = ""
    """Folder under `runs/`; made from the configuration's name, the data and the seed when empty."""
    evaluate_every: int = 1
    """Rounds between evaluations on the test set; the last round is always evaluated."""
    target: float = 0.0
    """If positive: stop when the accuracy on the clients' validation parts reaches it."""
    retries: int = 2
    """How often a round that too few devices answered is tried again before it is skipped."""
    imports: tuple[str, ...] = ()
    """Python modules to import first: methods, networks and data of your own."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data and how it is split."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Network."""
    fleet: FleetConfig = field(default_factory=FleetConfig)
    """Where clients run."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        faults = [
            f"{name} = {getattr(self, name)}: expected {want}"
            for name, want, fine in (
                ("rounds", "at least 1", self.rounds >= 1),
                ("evaluate_every", "at least 1", self.evaluate_every >= 1),
                ("target", "an accuracy in [0, 1]", 0 <= self.target <= 1),
                ("retries", "a number >= 0", self.retries >= 0),
            )
            if not fine
        ]
        if faults:
            raise ValueError("; ".join(faults))
