"""The table of seconds to an accuracy, from the results of `measure`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any


def reached(run: Mapping[str, Any], goal: float) -> tuple[float, float] | None:
    """Processor seconds and megabytes at the first round that meets a goal."""
    for _, seconds, _, accuracy, up, down in run["rounds"]:
        if accuracy >= goal:
            return seconds, (up + down) / 1e6
    return None


def table(runs: list[dict[str, Any]], goals: list[float]) -> str:
    """Markdown: means over the seeds; a goal that a seed did not meet is said."""
    lines = [
        "| run | seeds | last five, % | seconds, all rounds | "
        + " | ".join(f"seconds to {100 * goal:g} % | MB" for goal in goals)
        + " |"
    ]
    lines.append("|---" * (4 + 2 * len(goals)) + "|")
    for name in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == name]
        ends = [100 * statistics.mean(row[3] for row in run["rounds"][-5:]) for run in mine]
        whole = [run["rounds"][-1][1] for run in mine]
        line = [name, str(len(mine)), _spread(ends), _spread(whole)]
        for goal in goals:
            met = [found for run in mine if (found := reached(run, goal)) is not None]
            missed = len(mine) - len(met)
            if not met:
                line += ["never", ""]
                continue
            note = f" ({missed} never)" if missed else ""
            line += [_spread([s for s, _ in met]) + note, f"{statistics.mean(m for _, m in met):.1f}"]
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    around = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{around}"
