"""What a run may cost one device, and by how much it is missed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from math import inf

from fedbonsai.errors import ConfigError
from fedbonsai.planning.quantities import Kind, quantity, said

KINDS: dict[str, Kind] = {
    "bytes": "bytes",
    "seconds": "seconds",
    "joules": "joules",
    "round_seconds": "seconds",
    "peak_memory": "bytes",
    "model_bytes": "bytes",
    "latency": "seconds",
}
GROWING = ("bytes", "seconds", "joules")  # with every round, so that fewer rounds keep them


@dataclass(frozen=True)
class Limits:
    """Upper ends; infinite where there is none."""

    bytes: float = inf
    """Bytes that the device that moves most moves, both ways, over the run."""
    seconds: float = inf
    """Simulated seconds from the beginning of the run to its end."""
    joules: float = inf
    """Joules of the device that spends most, over the run."""
    round_seconds: float = inf
    """Simulated seconds of the longest round."""
    peak_memory: float = inf
    """Bytes of the training process on a device; the memory of each device is a limit anyway."""
    model_bytes: float = inf
    """Bytes of the final model as `fedbonsai export --to compact` writes it."""
    latency: float = inf
    """Seconds for one input on the slowest of the devices, by its profile."""

    @staticmethod
    def of(given: Mapping[str, object]) -> Limits:
        """From names and quantities such as ``{"bytes": "5MB"}``.

        Raises:
            ConfigError: names every fault.
        """
        faults: list[str] = []
        found: dict[str, float] = {}
        for name, value in given.items():
            if name not in KINDS:
                near = get_close_matches(name, KINDS, 1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                faults.append(f"limit.{name} is not known{hint} Known: {', '.join(KINDS)}")
                continue
            try:
                found[name] = quantity(value, KINDS[name], f"limit.{name}")
            except ConfigError as error:
                faults.append(str(error))
        if faults:
            raise ConfigError("\n".join(faults))
        return Limits(**found)

    @property
    def set(self) -> dict[str, float]:
        """Those that there are."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) < inf}

    @property
    def timed(self) -> list[str]:
        """Names of those that only devices, whose seconds and joules a clock counts, can give."""
        return [name for name in self.set if name not in ("bytes", "model_bytes")]

    def missed(self, costs: Mapping[str, float]) -> dict[str, float]:
        """How many times the limit costs are, for each that is exceeded.

        >>> Limits(bytes=10, joules=5).missed({"bytes": 25, "joules": 5})
        {'bytes': 2.5}
        """
        return {name: costs[name] / limit for name, limit in self.set.items() if name in costs and costs[name] > limit}


def words(name: str, value: float) -> str:
    """A limit or a cost with its name."""
    return f"{name.replace('_', ' ')} {said(value, KINDS[name])}"
