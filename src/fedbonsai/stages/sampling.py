"""Who takes part in a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from fedbonsai.core import Device
from fedbonsai.errors import ConfigError
from fedbonsai.settings import COUNT, NOT_NEGATIVE, out_of_range, raise_all, when
from fedbonsai.tree import generator, seed_of


@dataclass(frozen=True)
class Sticky:
    """Sticky sampling: most of a cohort comes from a small group that changes slowly, so that it missed few rounds.

    GlueFL (He et al., MLSys 2023, arXiv 2212.01523): of K devices, C are drawn from a group of S and K - C from the other
    N - S, which then replace as many of the group that were not asked. So that the mean stays that of all devices, updates
    count S / C times and (N - S) / (K - C) times; in the first round all come from the group and count alike.
    """

    group: int = 0
    """Devices of the group (S), at least a cohort; 0: each cohort is drawn from all devices."""
    fresh: int = 1
    """Devices of a cohort from outside of the group (K - C)."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        idle = not self.group and self.fresh != 1
        raise_all(
            out_of_range(self, group=NOT_NEGATIVE, fresh=COUNT)
            + when((idle, f"fresh = {self.fresh} has no effect without a group: give one, or leave it out"))
        )

    def faults(self, count: int) -> list[str]:
        """Reasons why no cohort of ``count`` can be drawn so."""
        if not self.group or self.fresh < count <= self.group:
            return []
        return [
            f"sticky.group = {self.group}, sticky.fresh = {self.fresh}: expected fresh < cohort <= group, cohort is {count}"
        ]

    def few(self, devices: int) -> str:
        """Why there are too few of ``devices`` outside of the group; empty where there are enough."""
        if not self.group or devices >= self.group + self.fresh:
            return ""
        return (
            f"method.sticky.group = {self.group} and fresh = {self.fresh}: there are {devices} devices; "
            "make the group smaller, or leave sticky out"
        )

    def draw(self, devices: Sequence[Device], count: int, group: Sequence[str], seed: int, t: int) -> Drawn:
        """The cohort of round ``t``, in the fleet's order.

        Args:
            devices: all devices.
            count: of the cohort.
            group: as the last round left it; empty at first. Who is no longer there is replaced by anybody.
            seed: of the run.
            t: round.

        Raises:
            ConfigError: outside of the group there are too few.
        """
        if few := self.few(len(devices)):
            raise ConfigError(few)
        order = torch.randperm(len(devices), generator=generator(seed_of(seed, "cohort", t, 0))).tolist()
        shuffled, members = [devices[index].id for index in order], set(group)
        inside = [id for id in shuffled if id in members]
        outside = [id for id in shuffled if id not in members]
        missing = self.group - len(inside)
        inside, outside = inside + outside[:missing], outside[missing:]
        if not group:
            asked, fresh = inside[:count], list[str]()
        else:
            asked, fresh = inside[: count - self.fresh], outside[: self.fresh]
        factors = dict.fromkeys(asked, self.group / len(asked)) | dict.fromkeys(fresh, len(outside) / self.fresh)
        kept = inside[: self.group - len(fresh)]  # those that were asked come first
        return Drawn([device for device in devices if device.id in factors], factors, tuple(sorted(kept + fresh)))


@dataclass(frozen=True)
class Drawn:
    """A cohort, by how much the updates of each device count more than by samples, and the sticky group after it."""

    devices: list[Device]
    factors: dict[str, float] = field(default_factory=dict[str, float])
    group: tuple[str, ...] = ()


def cohort(devices: Sequence[Device], count: int, seed: int, t: int) -> list[Device]:
    """Devices of round ``t``: ``count`` of them without replacement, by seed, in the fleet's order.

    Args:
        devices: all devices.
        count: how many; 0 means all.
        seed: of the run.
        t: round.

    Raises:
        ConfigError: more are wanted than there are, or less than none.
    """
    if count < 0:
        raise ConfigError(f"method.cohort = {count}: expected a number >= 0, where 0 asks all devices")
    if count > len(devices):
        raise ConfigError(
            f"method.cohort = {count}: there are {len(devices)} devices; ask for at most that many, or 0 for all"
        )
    if count in (0, len(devices)):
        return list(devices)
    drawn = torch.randperm(len(devices), generator=generator(seed_of(seed, "cohort", t, 0)))[:count]
    return [devices[int(index)] for index in drawn.sort().values]
