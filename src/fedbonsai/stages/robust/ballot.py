"""A round's updates under a robust mean: all are held until the last came, then the rule decides.

The server holds as many models as devices answered, in full precision, and while it decides three times one tensor of each in
float64; the plain mean takes the memory of one model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedbonsai import tree
from fedbonsai.core import Device, Fleet, Silence
from fedbonsai.errors import Unanswered
from fedbonsai.stages.robust.rule import MeanRule
from fedbonsai.stages.robust.votes import Votes
from fedbonsai.tree import Tree, Weights

STATISTICS = ("running_mean", "running_var")  # of BatchNorm


@dataclass(frozen=True)
class Elected:
    """What a rule made of a round.

    Attributes:
        weights: the new ones, in the order of those before.
        change: what was added to them, of floating tensors.
        shares: by device, how much it had a part in what is learned.
        refused: by device, why its change does not count.
    """

    weights: Weights
    change: Weights
    shares: Mapping[str, float]
    refused: Mapping[Device, Silence]


class Ballot:
    """Changes of a round, held until all came.

    Running statistics vote apart from what is learned, since lengths of the two have nothing to do with each other.

    Args:
        rule: that decides.
        start: weights from which devices trained.
    """

    def __init__(self, rule: MeanRule, start: Tree) -> None:
        self._rule, self._start = rule, start
        self._devices: list[Device] = []
        self._changes: list[Tree] = []
        self._held: list[Tree] = []

    def __len__(self) -> int:
        return len(self._devices)

    def add(self, device: Device, change: Tree, held: Tree | None = None) -> None:
        """Take a device's change of the floating tensors.

        Args:
            device: whose it is.
            change: by name, in the shapes of the whole.
            held: bool by name, where the server sent this device a coordinate; a name that is not there: all of it. What a
                device could have sent and did not, as beside a top-k, is a vote for no change.
        """
        self._devices.append(device)
        self._changes.append(change)
        self._held.append(held or {})

    def close(self, fleet: Fleet) -> Elected:
        """Let the rule decide; whose change it refuses is rejected.

        Raises:
            Unanswered: too few devices answered for the rule.
        """
        votes = Votes(self._changes, self._held)
        learned = [name for name in votes.names if not name.endswith(STATISTICS)]
        measured = [name for name in votes.names if name.endswith(STATISTICS)]
        gone = self._rule.refused(votes.of(learned or measured))
        for place, why in gone.items():
            fleet.reject(self._devices[place], why)
        left = [device for place, device in enumerate(self._devices) if place not in gone]
        if fault := self._rule.fault(len(left)):
            raise Unanswered(f"{fault} ({len(left)} answers could be used)")
        votes, change, shares = votes.but(list(gone)), Weights(), list[float]()
        for names in (measured, learned):
            if names:
                decided = self._rule.decide(votes.of(names))
                change, shares = {**change, **decided.change}, list(decided.shares)
        change = {name: change[name] for name in votes.names}
        weights = tree.add(self._start, change)
        variances = {name: value.clamp(min=0) for name, value in weights.items() if name.endswith(STATISTICS[1])}
        return Elected(
            {**weights, **variances},
            change,
            dict(zip((device.id for device in left), shares, strict=True)),
            {self._devices[place]: Silence(self._devices[place], why) for place, why in gone.items()},
        )
