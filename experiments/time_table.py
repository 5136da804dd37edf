"""The table of the experiment ``buffered``: simulated seconds to an accuracy, by how long rounds wait."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Results = Sequence[Mapping[str, Any]]

GOALS = (0.85, 0.90)
HEADING = [
    "Simulated seconds until the test accuracy first reaches a goal (evaluated every four rounds), 12,000 pictures of MNIST on",
    "100 devices, a fifth of which is ten times slower in a round; mean over the seeds that reached it, and range.",
    "*waiting* asks ten devices and waits for all, *first-ten* asks fifteen and drops the last five, *fedbuff* has thirty at",
    "work and ends a round with ten answers. Experiment `buffered`.",
    "",
    "| run | goal, % | seeds that reached it | rounds | seconds | MB, both | kJ | answers' mean age, rounds |",
    "|---|---|---|---|---|---|---|---|",
]


def times(plan: Iterable[str], found: Results) -> list[str]:
    """The text and a line for each row and goal.

    Args:
        plan: names of the rows, in order.
        found: all results.
    """
    lines = [line(name, goal, of) for name in plan for goal in GOALS if (of := [r for r in found if r["name"] == name])]
    return [*HEADING, *lines] if lines else []


def line(name: str, goal: float, results: Results) -> str:
    """One row's way to one goal."""
    hits = [hit for result in results if (hit := first(result, goal)) is not None]
    cells = [name, f"{100 * goal:.0f}", f"{len(hits)} of {len(results)}"]
    cells += [
        span([hit[key] for hit in hits], digits) for key, digits in (("round", 0), ("seconds", 1), ("mb", 2), ("kj", 2))
    ]
    ages = [age for result in results for age in result["method metrics"].get("stale_mean", [])]
    cells.append(f"{statistics.mean(ages):.1f}" if ages else "0")
    return f"| {' | '.join(cells)} |"


def first(result: Mapping[str, Any], goal: float) -> dict[str, float] | None:
    """When a run first has an accuracy; None where it never has."""
    metrics = result["method metrics"]
    for place, (round, accuracy, up, down) in enumerate(result["curve"]):
        if accuracy >= goal:
            seconds, joules = metrics["simulated_seconds"][place], metrics["total_joules"][place]
            return {"round": round, "seconds": seconds, "mb": (up + down) / 1e6, "kj": joules / 1e3}
    return None


def span(values: Sequence[float], digits: int) -> str:
    """Mean, and range where there are several."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"
