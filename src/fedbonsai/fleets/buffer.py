"""Buffered rounds: devices work on while a round ends, and a round ends with the first answers of whatever round they are.

FedBuff (Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022, arXiv 2106.06639): so
many devices train at any time (its concurrency), the server steps as soon as K changes have come (its buffer), and a
change that was begun tau rounds ago counts ``(1 + tau) ** -a``. A method sees nothing of it but a fleet whose devices are
those that are to be asked now, and answers that say how much they count.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import torch

from fedbonsai.core import Device, Scope
from fedbonsai.errors import ConfigError
from fedbonsai.settings import NOT_NEGATIVE, out_of_range, raise_all, when
from fedbonsai.tree import generator, seed_of


@dataclass(frozen=True)
class Buffer:
    """When a round ends, where it does not wait for those that it asked."""

    size: int = 0
    """Answers with which a round ends (FedBuff's K); 0: a round waits for those that it asked."""
    concurrency: int = 0
    """Devices that work at any time; 0: all."""
    staleness: float = 0.5
    """An answer to the request of tau rounds ago counts (1 + tau) to the power of minus this; 0: as a fresh one."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        idle = [entry.name for entry in fields(self) if getattr(self, entry.name) != entry.default]
        raise_all(
            out_of_range(self, size=NOT_NEGATIVE, concurrency=NOT_NEGATIVE, staleness=NOT_NEGATIVE)
            + when(
                (
                    bool(idle) and not self.size,
                    f"size = 0, so rounds wait for those that they asked and {', '.join(idle)} concern nothing: set size",
                ),
                (
                    0 < self.concurrency < self.size,
                    f"size = {self.size}, concurrency = {self.concurrency}: a round cannot end with more answers than devices "
                    "work; expected size <= concurrency",
                ),
            )
        )

    def fits(self, devices: int) -> None:
        """See that there are enough devices.

        Raises:
            ConfigError: there are fewer than shall work, or than a round's answers.
        """
        for name, count in (("concurrency", self.concurrency), ("size", self.size)):
            if count > devices:
                raise ConfigError(f"buffer.{name} = {count}: there are {devices} devices; give at most that many")

    def weight(self, stale: int) -> float:
        """How much an answer to the request of so many rounds ago counts; a fresh one counts 1."""
        return (1.0 + stale) ** -self.staleness

    def vacancies(
        self, devices: Sequence[Device], working: Collection[str], away: Collection[str], scope: Scope
    ) -> tuple[Device, ...]:
        """Who is to be asked in a round, drawn by seed, in the fleet's order.

        Args:
            devices: all of them.
            working: ids of those that were asked before and have not answered.
            away: ids of those that cannot be reached.
            scope: of the round.
        """
        free = [device for device in devices if device.id not in working and device.id not in away]
        wanted = max(0, (self.concurrency or len(devices)) - len(working))
        order = torch.randperm(len(free), generator=generator(seed_of(scope.seed, "buffer", scope.round, 0)))
        return tuple(free[int(place)] for place in order[:wanted].sort().values)
