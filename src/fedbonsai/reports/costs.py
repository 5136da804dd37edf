"""What each series reached and what it cost, as a table: for the page, for the terminal and for files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from fedbonsai.reports.series import AXES, Axis, Series

SHOWN = {"rounds": "rounds", "bytes": "MB", "seconds": "simulated s", "energy": "J", "work": "device MMACs"}


@dataclass(frozen=True)
class Table:
    """A table of text: one heading for each cell of a row."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As Markdown."""
        lines = [f"| {' | '.join(self.head)} |", "|" + "---|" * len(self.head)]
        return "\n".join([f"## {self.title}", "", *lines, *(f"| {' | '.join(row)} |" for row in self.rows)]) + "\n"

    def csv(self) -> str:
        """As comma-separated values."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.head, *self.rows])
        return text.getvalue()


def measured(series: Sequence[Series]) -> list[Axis]:
    """Axes on which at least one series has figures."""
    return [axis for axis in AXES if any(each.curve(axis) for each in series)]


def outcomes(series: Sequence[Series]) -> Table:
    """Accuracy and total costs of every series over its whole run."""
    axes = measured(series)
    head = ["run", "seeds", "accuracy, %", *(SHOWN[axis.name] for axis in axes), "weights kept, %"]
    rows: list[list[str]] = []
    for each in series:
        mean, deviation = each.final()
        accuracy = f"{100 * mean:.2f}" + (f" ± {100 * deviation:.2f}" if len(each.runs) > 1 else "")
        ends = [points[-1][0] if (points := each.curve(axis)) else None for axis in axes]
        kept = each.column("density")
        share = f"{100 * kept[-1][1]:.1f}" if kept else ""
        rows.append([each.label, str(len(each.runs)), accuracy, *(number(end) for end in ends), share])
    return Table("Outcome", head, rows)


def to_goal(series: Sequence[Series], reference: Series, goal: float) -> Table:
    """Costs until the accuracy first reaches a goal, and how many times less than the reference's they are."""
    axes = measured(series)
    head = ["run", *(heading for axis in axes for heading in (SHOWN[axis.name], "ratio"))]
    rows: list[list[str]] = []
    for each in series:
        cells = [each.label]
        for axis in axes:
            ours, theirs = each.to(goal, axis), reference.to(goal, axis)
            cells += [
                number(ours) if ours is not None else "not reached",
                f"{theirs / ours:.2f}" if ours and theirs else "",
            ]
        rows.append(cells)
    text = f"Costs to {100 * goal:.1f} % test accuracy; ratio: those of {reference.label} by these"
    return Table(text, head, rows)


def number(value: float | None) -> str:
    """Four digits are enough."""
    return "" if value is None else f"{value:.4g}" if value < 1000 else f"{value:,.0f}"
