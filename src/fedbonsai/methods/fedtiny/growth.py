"""When layers of a pruned network are adjusted, which ones, and how many of their weights are regrown.

FedTiny (Huang et al., ICDCS 2023, arXiv 2212.01977; specs/fedtiny §2.1 to §2.3), after RigL (Evci et al., ICML 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from fedbonsai.tree import Tree


@dataclass(frozen=True)
class Growth:
    """When layers are adjusted, which ones, and by how much."""

    interval: int = 10
    """Rounds between two adjustments (Delta R)."""
    stop: int = 100
    """Last round that may adjust (R_stop); at it the share is 0."""
    share: float = 0.3
    """Share of a layer's active weights that is regrown at the start (alpha); it falls to 0 as a cosine."""
    rounding: Literal["floor", "ceil"] = "floor"
    """Of the number of weights that are regrown."""
    units: Literal["block", "layer", "entire"] = "block"
    """What is adjusted at a time: a group of layers, one layer, or all."""
    blocks: int = 5
    """Groups of layers (B), split by number of tensors; at most one for each layer."""
    direction: Literal["backward", "forward"] = "backward"
    """From the output to the input, or the other way."""
    batch: int = 64
    """Samples of the one batch on which a device takes the gradient."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        for name in ("interval", "stop", "blocks", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least 1")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share = {self.share}: expected a number in [0, 1]")

    def due(self, r: int) -> bool:
        """Whether round ``r``, counted from 1, adjusts."""
        return r % self.interval == 0 and 0 < r <= self.stop

    def fraction(self, r: int) -> float:
        """specs/fedtiny (6) without the count: alpha / 2 (1 + cos(pi r / R_stop)).

        >>> [round(Growth().fraction(r), 4) for r in (10, 50, 100)]
        [0.2927, 0.15, 0.0]
        """
        return self.share / 2 * (1 + math.cos(math.pi * r / self.stop))

    def groups(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """The units of layers in network order, from the input on; the first ones are longer where they cannot be equal."""
        if self.units == "entire":
            return [tuple(names)]
        count = len(names) if self.units == "layer" else min(self.blocks, len(names))
        cuts = [len(names) // count * k + min(k, len(names) % count) for k in range(count + 1)]
        return [tuple(names[begin:end]) for begin, end in pairwise(cuts)]

    def unit(self, r: int, names: Sequence[str]) -> tuple[str, ...]:
        """The layers whose turn it is in an adjusting round."""
        groups = self.groups(names)
        turn = (r // self.interval - 1) % len(groups)
        return groups[turn] if self.direction == "forward" else groups[-1 - turn]

    def counts(self, r: int, masks: Tree) -> dict[str, int]:
        """How many weights each layer of the unit regrows in round ``r``; layers that regrow none are left out."""
        if not self.due(r):
            return {}
        found: dict[str, int] = {}
        for name in self.unit(r, list(masks)):
            active = int(masks[name].sum())
            wanted = self.fraction(r) * active
            whole = math.floor(wanted) if self.rounding == "floor" else math.ceil(wanted)
            found[name] = min(whole, masks[name].numel() - active)
        return {name: count for name, count in found.items() if count}
