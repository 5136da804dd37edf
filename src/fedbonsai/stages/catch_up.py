"""Merged catch-up: what a device missed as one exact change, coded once for each version that is asked for.

A sum of floats depends on its order, so a device that adds ten changes one by one and one that adds their sum would drift
apart. Here all that is sent are whole multiples of the step of `codec.grid`, and what they are added to are multiples of a
4096th of it, of which fp32 holds every one up to 4096 steps. So each sum is exact, in whatever order and in however many
pieces it came, and the change from any version to any other is the sum of those between: cancelled coordinates cost nothing.

Tensors that the chain sends as they are (statistics, those below ``min_numel``, 16-bit ones) do not lie on a grid: a
catch-up has their present values.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fedbonsai.stages.codec import Chain, Grid, Packed, Threshold
from fedbonsai.stages.codec.grid import MOST
from fedbonsai.stages.codec.pack import eligible
from fedbonsai.tree import Tree, Weights, add, subtract

FINE = 4096  # parts of a step that the first weights are rounded to, and steps that a weight may be from zero


class Merging:
    """The arithmetic of one downlink's grid.

    Args:
        chain: of the way down; its values are a grid.
        grid: of the chain.
    """

    def __init__(self, chain: Chain, grid: Grid) -> None:
        rest = (stage for stage in (chain.members.positions, chain.members.entropy) if stage is not None)
        self.step, self._chain = grid.step, chain
        self._sums = Chain((Threshold(0.0, min_numel=0), grid, *rest))

    @staticmethod
    def of(chain: Chain) -> Merging | None:
        """That of a chain; None where its values lie on no grid."""
        grid = chain.members.values
        return Merging(chain, grid) if isinstance(grid, Grid) else None

    def names(self, weights: Tree) -> list[str]:
        """Tensors that are moved along the grid; of the others the present values are sent."""
        sparsifier = self._chain.sparsifier
        return [
            name
            for name, value in weights.items()
            if value.dtype in (torch.float32, torch.float64) and eligible(name, value, sparsifier)
        ]

    def fine(self, weights: Tree) -> Weights:
        """The first weights, rounded so that sums are exact."""
        return dict(weights) | rounded({name: weights[name] for name in self.names(weights)}, self.step)

    def move(self, weights: Tree, replica: Tree, seed: int) -> tuple[Weights, Packed]:
        """The new replica, nearer to the weights, and what of the step to it lies on the grid."""
        names = self.names(replica)
        edge = (FINE - 1) * self.step
        goal = {name: value.clamp(-edge, edge) if name in names else value for name, value in weights.items()}
        found = self._chain.pack(subtract(goal, replica), seed).change(replica)
        # the chain may have sent a small tensor as it is, where that was shorter
        steps = {name: _multiples(found[name], self.step) if name in names else found[name] for name in found}
        return add(replica, steps), self.pack({name: steps[name] for name in names})

    def pack(self, steps: Tree) -> Packed:
        """Multiples of the step, exactly."""
        return self._sums.pack(steps, 0)

    def sum(self, changes: Iterable[Packed], replica: Tree) -> Packed | None:
        """One change for all of them; None where a value of it is too many steps for one."""
        like = {name: replica[name] for name in self.names(replica)}
        total = {name: torch.zeros_like(value, memory_format=torch.contiguous_format) for name, value in like.items()}
        for packed in changes:
            for name, sent in packed.sparse(like).items():
                total[name] = sent.added(total[name], 1)
        return self.pack(total) if all(_within(value, MOST * self.step) for value in total.values()) else None


def rounded(weights: Tree, step: float) -> Weights:
    """Floating tensors at the nearest multiples of a 4096th of ``step``, at most 4095 steps from zero."""
    unit, edge = step / FINE, (FINE - 1) * step
    return {name: value.clamp(-edge, edge).div(unit).round().mul(unit) for name, value in weights.items()}


def _multiples(change: Tensor, step: float) -> Tensor:
    return change.div(step).round().clamp(-MOST, MOST).mul(step)


def _within(value: Tensor, edge: float) -> bool:
    return not value.numel() or float(value.abs().max()) <= edge
