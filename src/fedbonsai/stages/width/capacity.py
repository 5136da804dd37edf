"""How large a part of the network each device gets: dealt out by shares, given by device, or what its profile bears."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, cast

from fedbonsai.choice import Choice, choice
from fedbonsai.core import Device
from fedbonsai.devices.clock import compute_seconds
from fedbonsai.devices.drawn import dealt, shared_out
from fedbonsai.devices.memory import process_bytes
from fedbonsai.devices.profile import profile
from fedbonsai.errors import ConfigError
from fedbonsai.settings import POSITIVE, SHARE, out_of_range, raise_all, when
from fedbonsai.work import Episode

Step = Callable[[float], Episode]  # a local step of the part of a ratio


class Capacity(Choice):
    """Which ratio each device has: the share of the network, in the sense of the method, that it trains."""

    def ratios(self, ids: Sequence[str], seed: int, step: Step) -> dict[str, float]:
        """Ratios in (0, 1] by device.

        Args:
            ids: of all devices.
            seed: of the run.
            step: what a local step with a ratio is, for choices that look at costs.

        Raises:
            ConfigError: a device has none.
        """
        raise NotImplementedError


@choice("shares")
class Shares(Capacity):
    """Ratios with the shares of the devices that have them; who has which is drawn by the seed."""

    of: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Ratios."""
    shares: tuple[float, ...] = ()
    """Of the devices, which sum to 1; empty: as many devices of each ratio."""

    def __post_init__(self) -> None:
        """Refuse what are no ratios or no shares."""
        fits = not self.shares or (
            len(self.shares) == len(self.of)
            and all(0 < share <= 1 for share in self.shares)
            and abs(sum(self.shares) - 1) <= 1e-6
        )
        raise_all(
            _no_ratios("of", self.of)
            + when(
                (
                    not fits,
                    f"shares = {list(self.shares)}: expected {len(self.of)} shares above 0 that sum to 1, or none",
                )
            )
        )

    def ratios(self, ids: Sequence[str], seed: int, step: Step) -> dict[str, float]:
        """As dealt out."""
        shares = self.shares or (1 / len(self.of),) * len(self.of)
        return dealt(self.of, shares, ids, seed, "capacity")


@choice("clients")
class Clients(Capacity):
    """A ratio for each device by its id."""

    of: dict[str, Any] = field(default_factory=dict[str, Any])
    """Ratios by id."""
    others: float = 1.0
    """Ratio of devices that are not named."""

    def __post_init__(self) -> None:
        """Refuse what are no ratios."""
        raise_all(_no_ratios("of", self.of) + out_of_range(self, others=SHARE))

    def ratios(self, ids: Sequence[str], seed: int, step: Step) -> dict[str, float]:
        """As given.

        Raises:
            ConfigError: for a device that there is not.
        """
        if unknown := sorted(self.of.keys() - set(ids)):
            raise ConfigError(f"method.capacity.of names devices {unknown[:5]}; there are {list(ids)[:5]} and so on")
        return {id: float(self.of.get(id, self.others)) for id in ids}


@choice("profile")
class ByProfile(Capacity):
    """The largest of some ratios with which a device keeps up and which fits into its memory, by its profile."""

    of: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Ratios."""
    devices: str = ""
    """Profiles as in `clock.devices`, shared out as the clock does it; empty: those of the clock."""
    slack: float = 1.0
    """Seconds that a step may take, by those of the fastest profile with the largest ratio."""

    def __post_init__(self) -> None:
        """Refuse what are no ratios."""
        raise_all(_no_ratios("of", self.of) + out_of_range(self, slack=POSITIVE))

    def ratios(self, ids: Sequence[str], seed: int, step: Step) -> dict[str, float]:
        """By seconds of a step and by memory; a device that keeps up with none has the smallest.

        Raises:
            ConfigError: no profile, or a device whose memory holds no step.
        """
        if faults := unplaced(self):
            raise ConfigError(faults[0])
        kinds = shared_out(self.devices, ids, seed)
        sheets = {name: profile(name) for name in dict.fromkeys(kinds.values())}
        steps = {ratio: (step(ratio),) for ratio in sorted(set(self.of), reverse=True)}
        pace = self.slack * min(compute_seconds(sheet, steps[max(steps)]) for sheet in sheets.values())
        found: dict[str, float] = {}
        for name, sheet in sheets.items():
            fits = [ratio for ratio, work in steps.items() if process_bytes(sheet, work) <= sheet.memory.value]
            if not fits:
                raise ConfigError(
                    f"device profile {name!r} has {sheet.memory.value / 1e6:.0f} MB, and a step with ratio {min(steps)} "
                    f"needs {process_bytes(sheet, steps[min(steps)]) / 1e6:.0f}: add a smaller ratio to method.capacity.of"
                )
            quick = [ratio for ratio in fits if compute_seconds(sheet, steps[ratio]) <= pace]
            found[name] = max(quick, default=min(fits))
        return {id: found[kind] for id, kind in kinds.items()}


def ratio_of(ratios: Mapping[str, float], device: Device) -> float:
    """The device's ratio; one that was not there at the beginning has the smallest."""
    return ratios.get(device.id, min(ratios.values()))


def unplaced(capacity: object) -> list[str]:
    """A fault where a capacity is by profile and nobody says which."""
    if not isinstance(capacity, ByProfile) or capacity.devices:
        return []
    return [
        "method.capacity 'profile' knows no devices: set clock.devices or method.capacity.devices, such as "
        "'raspberry-pi-4 0.5, jetson-nano 0.5'"
    ]


def _no_ratios(name: str, given: Sequence[float] | Mapping[str, object]) -> list[str]:
    """A fault where these are no ratios."""
    values = list(given.values()) if isinstance(given, Mapping) else list(given)
    if all(isinstance(value, int | float) and 0 < cast(float, value) <= 1 for value in values) and (
        values or isinstance(given, Mapping)
    ):
        return []
    return [f"{name} = {given if isinstance(given, Mapping) else values}: expected ratios in (0, 1]"]
