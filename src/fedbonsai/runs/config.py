"""What a run is made of; every field is a setting of TOML and of the command line."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from fedbonsai.data.config import DataConfig
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.attacks import Attack, SignFlip
from fedbonsai.fleets.buffer import Buffer
from fedbonsai.fleets.guard import GuardConfig
from fedbonsai.objectives import Classification, Objective
from fedbonsai.runs import private
from fedbonsai.runs.buffered import unbuffered
from fedbonsai.runs.limits import BudgetConfig, ClockConfig
from fedbonsai.settings import (
    COUNT,
    NOT_NEGATIVE,
    PROBABILITY,
    Range,
    out_of_range,
    raise_all,
)
from fedbonsai.stages.robust import MeanRule
from fedbonsai.stages.sampling import Sticky
from fedbonsai.stages.width.capacity import ByProfile, unplaced
from fedbonsai.training.optimizers import SGD, Optimizer

BEARABLE = Range("at least 1 and at most 1024", lambda value: 1 <= value <= 1024)  # torch dies of very many threads
LONGEST = 200  # bytes of a run's name: folders' names may have 255


def check_name(what: str, name: str) -> None:
    """See that a name is one of a folder directly below ``runs/``.

    Raises:
        ConfigError: it leads elsewhere, or is none.
    """
    bad = [
        text
        for wrong, text in (
            ("/" in name or "\\" in name, "no slash: --runs says where the folder is made"),
            (name in (".", ".."), "not . or .., which are folders already"),
            (name.startswith("-"), "no - at its beginning, which programs take for an option"),
            (
                any(not char.isprintable() for char in name) or name != name.strip(),
                "no control characters or outer spaces",
            ),
            (len(name.encode(errors="replace")) > LONGEST, f"at most {LONGEST} bytes"),
        )
        if wrong
    ]
    if bad:
        raise ConfigError(f"{what} = {name[:80]!r}: expected the name of a folder, with {' and '.join(bad)}")


def too_many(method: object, clients: int) -> list[str]:
    """A line where a method asks more clients in a round than there are."""
    cohort, sticky = getattr(method, "cohort", 0), getattr(method, "sticky", None)
    if isinstance(sticky, Sticky) and (few := sticky.few(clients)):
        return [few]
    if not isinstance(cohort, int) or cohort <= clients:
        return unfit_mean(method, cohort if isinstance(cohort, int) and cohort else clients)
    return [f"method.cohort = {cohort}: there are {clients} devices; ask for at most that many, or 0 for all"]


def unfit_mean(method: object, devices: int) -> list[str]:
    """A line where the mean of a method's updates has no meaning for so many devices in a round."""
    rule = getattr(method, "mean", None)
    fault = rule.fault(devices) if isinstance(rule, MeanRule) else ""
    return [f"method.{fault}"] if fault else []


@dataclass(frozen=True)
class ModelConfig:
    """Which network is trained."""

    name: str = "cnn-bn"
    """Name of a network (`fedbonsai ls models`), or `package.module:callable` of one's own."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Keyword arguments of its builder; channels, size and classes come from the data."""
    weights: str = ""
    """File of weights to begin with: safetensors, or a state dict of torch; empty: they are drawn."""
    trainable: tuple[str, ...] = ()
    """Patterns of names of the parameters that are trained and travel, such as `classifier.*`; empty: all."""


@dataclass(frozen=True)
class FlowerConfig:
    """Devices that joined with `fedbonsai join`, where `fedbonsai serve` runs on this machine."""

    folder: str = "federation"
    """Folder of the federation."""
    devices: int = 2
    """Devices to wait for when the run begins."""
    at_least: int = 0
    """Devices that will do when the wait is over; 0: all that are waited for."""
    patience: float = 300.0
    """Seconds to wait for them."""
    deadline: float = 600.0
    """Seconds in which devices must answer; who is later counts as silent."""
    first: int = 0
    """If positive: do not wait for more answers than these, the earliest."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        ranges = {
            "devices": COUNT,
            "at_least": Range("0, or up to devices", lambda value: 0 <= value <= self.devices),
            "patience": Range("seconds >= 0", lambda value: value >= 0),  # also for ever
            "deadline": Range("seconds > 0", lambda value: value > 0),
            "first": NOT_NEGATIVE,
        }
        raise_all(out_of_range(self, **ranges))


@dataclass(frozen=True)
class LiarsConfig:
    """Devices that lie, to see what a method bears; those of a simulation alone."""

    share: float = 0.0
    """Share of the devices that lie, drawn by the seed; at least one where it is above 0."""
    attack: Attack = field(default_factory=SignFlip)
    """What they do."""

    def __post_init__(self) -> None:
        """Refuse what is no share, and a lie that nobody tells."""
        faults = out_of_range(self, share=PROBABILITY)
        if not self.share and self.attack != SignFlip():
            faults.append(f"share = 0: nobody does {self.attack.choice_name}; set it, such as 0.2, or leave attack out")
        raise_all(faults)


@dataclass(frozen=True)
class FleetConfig:
    """Where the clients run."""

    kind: Literal["local", "pool", "flower"] = "local"
    """`local`: this process. `pool`: worker processes of one thread each. `flower`: devices that joined a server."""
    workers: int = 2
    """Processes of a pool."""
    batch: int | Literal["auto"] = 1
    """Clients of a process that train as one computation; `auto`: as many as are fastest here, measured once."""
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
    guard: GuardConfig = field(default_factory=GuardConfig)
    """What is refused of devices' answers."""
    liars: LiarsConfig = field(default_factory=LiarsConfig)
    """Devices that lie."""
    flower: FlowerConfig = field(default_factory=FlowerConfig)
    """Real devices (`kind = "flower"`)."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        faults = out_of_range(self, workers=BEARABLE, threads=BEARABLE, flaky=PROBABILITY)
        if self.batch != "auto" and not 1 <= self.batch <= 1024:
            faults.append(f"batch = {self.batch}: expected 'auto', or at least 1 and at most 1024")
        if self.batch != 1 and self.kind == "flower":
            faults.append(f"batch = {self.batch}: devices train alone; leave it out, or set kind = 'local' or 'pool'")
        if self.liars.share and self.kind != "local":
            faults.append(f"liars.share = {self.liars.share:g}: only clients of this process lie; set kind = 'local'")
        if self.guard.bytes and not self.wire:
            faults.append(f"guard.bytes = {self.guard.bytes}: without the wire nothing has bytes; leave one out")
        if self.kind == "pool" and not self.wire:
            faults.append("wire = false: worker processes always use the wire; use kind = 'local'")
        raise_all(faults)


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
    """If not 0: stop when the measure that decides reaches it on the clients' validation parts, by their own models if any."""
    patience: int = 0
    """If not 0: stop when the measure on the clients' validation parts has got no better in so many rounds with an update."""
    retries: int = 2
    """How often a round that too few devices answered is tried again before it is skipped."""
    fruitless: int = 3
    """Rounds in a row without an update after which the run ends as failed; 0: never before its last round."""
    imports: tuple[str, ...] = ()
    """Python modules to import first, such as `my_nets` or `my_nets,my_data`: methods, networks and data of your own."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data and how it is split."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Network."""
    objective: Objective = field(default_factory=Classification)
    """What is learned, and by which measure models are judged."""
    fleet: FleetConfig = field(default_factory=FleetConfig)
    """Where clients run."""
    clock: ClockConfig = field(default_factory=ClockConfig)
    """Virtual clock."""
    buffer: Buffer = field(default_factory=Buffer)
    """Whether rounds end with the first answers while others work on (FedBuff)."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """What the run may spend."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        goal = self.objective.measure.refusal(self.target) if self.target else ""
        rounds = Range("a number of rounds >= 0", NOT_NEGATIVE.holds)
        faults = out_of_range(
            self,
            rounds=COUNT,
            evaluate_every=COUNT,
            target=Range(goal, lambda _: not goal),
            patience=rounds,
            retries=NOT_NEGATIVE,
            fruitless=NOT_NEGATIVE,
            seed=NOT_NEGATIVE,
        )
        if self.data.clients and not self.data.split and self.fleet.kind != "flower":
            faults += too_many(self.method, self.data.clients)
        if self.fleet.kind == "flower":
            faults += unfit_mean(self.method, getattr(self.method, "cohort", 0) or self.fleet.flower.devices)
        if self.budget.timed and not self.clock.devices:
            faults.append(f"budget.{self.budget.timed[0]} needs a clock: set clock.devices, such as raspberry-pi-4")
        if self.clock.devices and not self.fleet.wire:
            faults.append("clock.devices needs fleet.wire: a clock counts the seconds of real bytes")
        real = self.fleet.kind == "flower"
        first = self.fleet.flower.first if real else self.clock.first
        faults += unbuffered(self.method, self.buffer, real or bool(self.clock.devices), first)
        method = _placed(_scheduled(self.method, self.rounds), self.clock.devices)
        faults += unplaced(getattr(method, "capacity", None)) + private.faults(self)
        raise_all(faults)
        object.__setattr__(self, "method", method)


def asked_of(config: RunConfig, devices: int) -> int:
    """How many of so many devices are asked in a round, where the method says so."""
    return config.buffer.size or getattr(config.method, "cohort", 0) or devices


def _scheduled(method: object, rounds: int) -> object:
    """A method whose cosine schedules end with the run, where they do not say when."""
    open_ = {
        name: replace(how, rounds=rounds)  # pyright: ignore[reportArgumentType] - every optimiser is a dataclass
        for name, how in optimizers_of(method).items()
        if how.schedule == "cosine" and not how.rounds
    }
    return replace(method, **open_) if open_ else method  # pyright: ignore[reportArgumentType, reportUnknownVariableType]


def _placed(method: object, devices: str) -> object:
    """A method whose devices' capacity is by profile, with the profiles of the clock where it names none itself."""
    capacity = getattr(method, "capacity", None)
    if not isinstance(capacity, ByProfile) or capacity.devices or not devices:
        return method
    return replace(method, capacity=replace(capacity, devices=devices))  # pyright: ignore[reportArgumentType, reportUnknownVariableType]


def optimizers_of(method: object) -> dict[str, Optimizer]:
    """Optimisers among a method's settings, by name."""
    values = {entry.name: getattr(method, entry.name) for entry in fields(method)} if is_dataclass(method) else {}
    return {name: value for name, value in values.items() if isinstance(value, Optimizer)}


def local_training(method: object) -> Optimizer:
    """How clients train: the first of a method's optimisers; as by default where it has none."""
    return next(iter(optimizers_of(method).values()), SGD())
