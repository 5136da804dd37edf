"""How much of each layer is left, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedbonsai.runs.run import Run


@dataclass(frozen=True)
class Layers:
    """``kept[layer][k]`` is the share of the layer's weights that was not zero after ``rounds[k]`` (counted from 1)."""

    rounds: Sequence[int]
    names: Sequence[str]
    kept: Sequence[Sequence[float]]


def layers(run: Run) -> Layers:
    """Of a run whose method prunes; empty for a dense one."""
    rows = [row for row in run.metrics if "layers" in row]
    names = list(rows[-1]["layers"]) if rows else []
    rounds = [int(row["round"]) + 1 for row in rows]
    return Layers(rounds, names, [[float(row["layers"].get(name, 1.0)) for row in rows] for name in names])
