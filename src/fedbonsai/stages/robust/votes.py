"""Changes of a round's devices side by side: what a robust mean looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedbonsai.tree import Tree, Weights, norm


@dataclass(frozen=True)
class Votes:
    """A change of the same tensors from each device, one vote each: what devices claim of their samples cannot be checked.

    Attributes:
        changes: by device, of floating tensors, all of the same names and shapes.
        held: by device and name, bool, where the device was sent a coordinate and so votes; a name that is not there: all of it.
    """

    changes: Sequence[Tree]
    held: Sequence[Tree]

    def __len__(self) -> int:
        return len(self.changes)

    @property
    def names(self) -> list[str]:
        """Of the tensors."""
        return list(self.changes[0])

    def but(self, gone: Sequence[int]) -> Votes:
        """The votes without those at these places."""
        left = [place for place in range(len(self)) if place not in gone]
        return Votes([self.changes[place] for place in left], [self.held[place] for place in left])

    def of(self, names: Sequence[str]) -> Votes:
        """The votes on these tensors alone."""
        return Votes([{name: change[name] for name in names} for change in self.changes], self.held)

    def stacked(self, name: str) -> tuple[Tensor, Tensor]:
        """Values of a tensor in float64 and whether they count, both [devices, values]; what does not count is 0."""
        values = torch.stack([change[name].double().flatten() for change in self.changes])
        if not any(name in held for held in self.held):
            return values, torch.ones(1, 1, dtype=torch.bool).expand(values.shape)
        whole = torch.ones(values.shape[1], dtype=torch.bool)
        counts = torch.stack([held[name].flatten() if name in held else whole for held in self.held])
        return torch.where(counts, values, 0.0), counts

    def norms(self) -> list[float]:
        """Euclidean norm of each device's change."""
        return [norm(self._held(place)) for place in range(len(self))]

    def mean(self, shares: Sequence[float]) -> Weights:
        """The weighted mean of each coordinate over those who vote on it; 0 where they have no share."""
        found: Weights = {}
        parts = torch.tensor(shares, dtype=torch.float64)[:, None]
        for name in self.names:
            values, counts = self.stacked(name)
            total = (parts * counts).sum(0)
            mean = (parts * values).sum(0) / total.clamp(min=1e-300)
            found[name] = self.shaped(name, torch.where(total > 0, mean, 0.0))
        return found

    def squares(self, points: Sequence[Tree] | None = None) -> Tensor:
        """Squared distances of each device's change to each point, float64 [devices, points].

        They are over the coordinates on which both vote, and scaled up to all coordinates; infinite where there are none.

        Args:
            points: of the same tensors, which vote everywhere; None: the devices' own changes.
        """
        count = len(self) if points is None else len(points)
        sums, common = torch.zeros(len(self), count, dtype=torch.float64), torch.zeros(len(self), count)
        whole = 0
        for name in self.names:
            values, counts = self.stacked(name)
            whole += values.shape[1]
            for place in range(count):
                other = values[place] if points is None else points[place][name].double().flatten()
                both = counts & counts[place] if points is None else counts
                sums[:, place] += torch.where(both, values - other, 0.0).square().sum(1)
                common[:, place] += both.sum(1)
        return torch.where(common > 0, sums * (whole / common.double().clamp(min=1)), torch.inf)

    def shaped(self, name: str, values: Tensor) -> Tensor:
        """Values in the shape and type of a tensor."""
        like = self.changes[0][name]
        return values.reshape(like.shape).to(like.dtype)

    def _held(self, place: int) -> Tree:
        held = self.held[place]
        return {name: v * held[name] if name in held else v for name, v in self.changes[place].items()}
