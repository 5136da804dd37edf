"""What a simulated run's time and devices are, and what a run may spend: settings of TOML and of the command line."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fedbonsai.settings import (
    COUNT,
    NOT_NEGATIVE,
    PART,
    PROBABILITY,
    SECONDS,
    SHARE,
    Range,
    out_of_range,
    raise_all,
)


@dataclass(frozen=True)
class ClockConfig:
    """A virtual clock: which devices and links the clients are said to have, and how long the server waits."""

    devices: str = ""
    """Device profile by name or path, or several with shares: `raspberry-pi-4 0.7, jetson-nano 0.3`. Empty: no clock."""
    link: str = ""
    """Link by name or path, or several with shares; empty is the one that each device profile names."""
    deadline: float = 0.0
    """If positive: seconds that the server waits, in a round, for the answers to one question; later ones are dropped."""
    first: int = 0
    """If positive: in a round the server goes on with this many answers, the earliest; later ones are dropped."""
    availability: float = 1.0
    """Share of each simulated day in which a device can be reached; the hours are drawn for each device."""
    dropout: float = 0.0
    """Probability that a device gives up in the middle of a task."""
    stragglers: float = 0.0
    """Probability that a device computes slowly in a round."""
    slowdown: float = 5.0
    """How many times slower a straggler computes."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant, and settings without a clock that they could concern."""
        faults = out_of_range(
            self,
            deadline=SECONDS,
            first=NOT_NEGATIVE,
            availability=SHARE,
            dropout=Range("a probability in [0, 1)", PART.holds),
            stragglers=PROBABILITY,
            slowdown=Range("a factor >= 1", COUNT.holds),
        )
        idle = [entry.name for entry in fields(self) if getattr(self, entry.name) != entry.default]
        if idle and not self.devices:
            faults.append(f"devices is empty, so there is no clock that {', '.join(idle)} could concern")
        raise_all(faults)


@dataclass(frozen=True)
class BudgetConfig:
    """What a run may spend; it ends after the round in which a budget is used up. 0 is no limit."""

    bytes: int = 0
    """Bytes of all devices, both directions."""
    seconds: float = 0.0
    """Simulated seconds of the whole run."""
    joules: float = 0.0
    """Joules of all devices."""
    device_bytes: int = 0
    """Bytes of the device that moved most."""
    device_seconds: float = 0.0
    """Simulated seconds in which the busiest device received, computed or sent."""
    device_joules: float = 0.0
    """Joules of the device that spent most."""
    epsilon: float = 0.0
    """Epsilon of differential privacy, at `method.privacy.delta`: the run ends before the round that would exceed it."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        raise_all(out_of_range(self, **dict.fromkeys(vars(self), NOT_NEGATIVE)))

    @property
    def timed(self) -> list[str]:
        """Names of the budgets that only a clock can keep."""
        return [name for name, value in vars(self).items() if value and not name.endswith(("bytes", "epsilon"))]
