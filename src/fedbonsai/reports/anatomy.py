"""How much of a model and of each layer is left, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedbonsai.errors import ConfigError
from fedbonsai.reports.series import Series
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


def remaining(series: Series) -> list[tuple[int, float]]:
    """Parameters that are not pruned, as (round from 1, mean over the seeds).

    A run that does not count them has those of its final model in every round; empty if it has not ended.
    """
    counted = series.column("parameters")
    if counted:
        return counted
    try:
        weights = series.runs[0].model.weights
    except ConfigError:
        return []
    size = sum(value.numel() for name, value in weights.items() if value.is_floating_point() and "running_" not in name)
    rounds = [int(row["round"]) + 1 for row in series.runs[0].metrics]
    return [(rounds[0], float(size)), (rounds[-1], float(size))]
