"""The way down in one round, of a model in parts: what goes to whom, and from where clients start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedbonsai.core import Device, Silence, forgetful
from fedbonsai.stages.broadcast import Broadcast, Downlink, Sent, grouped
from fedbonsai.tree import Tree, Weights, seed_of


@dataclass
class Descent:
    """One round's.

    Attributes:
        downlink: codecs.
        held: what clients hold, by part.
        common: what goes to a client that holds nothing, by part.
        start: weights from which clients train, of all parts.
    """

    downlink: Downlink
    held: dict[str, Broadcast]
    common: dict[str, Sent]
    start: Weights

    @staticmethod
    def of(held: Mapping[str, Broadcast], parts: Mapping[str, Tree], downlink: Downlink, seed: int, t: int) -> Descent:
        """Advance each part by one round.

        Args:
            held: what clients hold, by part, before the round.
            parts: weights by the name of their part.
            downlink: codecs.
            seed: of the run.
            t: round.
        """
        down = Descent(downlink, {}, {}, {})
        for number, (name, weights) in enumerate(parts.items()):
            before, draw = held.get(name, Broadcast()), seed_of(seed, "down", t, number)
            down.held[name], down.common[name], start = before.advance(weights, downlink, draw)
            down.start |= start
        return down

    def to(self, part: str, devices: list[Device]) -> dict[Device, Sent]:
        """One message for each device."""
        return grouped(self.held[part], devices, self.common[part])

    def note(self, part: str, ids: Iterable[str], silent: Mapping[Device, Silence]) -> None:
        """These devices answered, those that forgot get the whole next time."""
        if self.downlink.delta:
            self.held[part] = self.held[part].heard(ids).forgotten(forgetful(silent))

    @property
    def kept(self) -> dict[str, Broadcast]:
        """What the next round begins with; nothing unless changes are sent."""
        return self.held if self.downlink.delta else {}

    @property
    def exact(self) -> bool:
        """Whether clients start from the very weights."""
        return not self.downlink.delta and not self.downlink.chain.stages
