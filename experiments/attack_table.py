"""The tables of ``bench/results/attacks.json``: what liars do to each mean."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "bench" / "results" / "attacks.json"
Cell = tuple[str, str, float]  # mean, attack and share of liars


def attacks() -> list[str]:
    """A table for each task, by attack and share of liars; behind a stroke how often the backdoor opens."""
    if not FILE.exists():
        return ["Not measured yet: `python -m bench.attacks`, then `python -m experiments.table --write`."]
    result = json.loads(FILE.read_text(encoding="utf-8"))
    runs: Sequence[Mapping[str, Any]] = result["runs"]
    machine = f"{result['machine']['processor']}, {result['machine']['cores']} cores"
    lines = [f"Commit {result['commit']}, {machine}; {result['devices']} devices, one seed; `python -m bench.attacks`."]
    for task in dict.fromkeys(run["task"] for run in runs):
        lines += ["", *_of(task, {(r["mean"], r["attack"], r["share"]): r for r in runs if r["task"] == task})]
    return lines


def _of(task: str, runs: Mapping[Cell, Mapping[str, Any]]) -> list[str]:
    means = list(dict.fromkeys(mean for mean, _, _ in runs))
    rows = list(dict.fromkeys((attack, share) for _, attack, share in runs))
    order = list(dict.fromkeys(attack for attack, _ in rows))
    lines = [f"| {task}: attack | liars | {' | '.join(means)} |", f"|---|---|{'---|' * len(means)}"]
    for attack, share in sorted(rows, key=lambda row: (order.index(row[0]), row[1])):
        cells = [_cell(runs.get((mean, attack, share))) for mean in means]
        lines.append(f"| {attack} | {f'{share:.0%}' if share else ''} | {' | '.join(cells)} |")
    return lines


def _cell(run: Mapping[str, Any] | None) -> str:
    if run is None:
        return ""
    opened = f" / {100 * run['success']:.0f}" if "success" in run else ""
    return f"{100 * run['accuracy']:.1f}{opened}{' †' if 'ended' in run else ''}"
