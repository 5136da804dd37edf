"""What each series reached and what it cost, as tables: for the page, for the terminal and for files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedbonsai.reports.anatomy import remaining
from fedbonsai.reports.series import AXES, Axis, Series, goal_of

SHOWN = {
    **{"rounds": "rounds", "bytes": "MB", "seconds": "simulated s", "energy": "J", "epsilon": "epsilon"},
    "work": "device MMACs",
}


@dataclass(frozen=True)
class Table:
    """A table of text: one heading for each cell of a row."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As Markdown."""
        head, *rows = ([cell.replace("|", "\\|") for cell in row] for row in (self.head, *self.rows))
        lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]
        return "\n".join([f"## {self.title}", "", *lines]) + "\n"

    def csv(self) -> str:
        """As comma-separated values."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.head, *self.rows])
        return text.getvalue()


def measured(series: Sequence[Series]) -> list[Axis]:
    """Axes on which at least one series has figures."""
    return [axis for axis in AXES if any(each.curve(axis) for each in series)]


def outcomes(series: Sequence[Series]) -> Table:
    """What it reached, and total costs, of every series over its whole run."""
    axes, first = measured(series), series[0]
    test = [first.measure.headed("on the test set")] if first.own else []
    head = [
        "run",
        "seeds",
        first.measure.headed(first.judged),
        *test,
        *(SHOWN[axis.name] for axis in axes),
        "parameters left",
    ]
    rows: list[list[str]] = []
    for each in series:
        judged = [spread(each)] + ([] if not test else [""] if each.personal else [spread(replace(each, own=False))])
        ends = [points[-1][0] if (points := each.curve(axis)) else None for axis in axes]
        left = remaining(each)
        size = f"{left[-1][1]:,.0f}" if left else ""
        rows.append([each.label, str(len(each.runs)), *judged, *(number(end) for end in ends), size])
    return Table(f"Outcome; {first.measure.words} is the mean of the last five evaluated rounds", head, rows)


def spread(series: Series) -> str:
    """What a series ends with, in the unit of its measure, and the deviation over the seeds where there are several."""
    mean, deviation = map(series.measure.cell, series.final())
    return mean + (f" ± {deviation}" if len(series.runs) > 1 else "")


def to_goal(series: Sequence[Series], reference: Series, goal: float) -> Table:
    """Costs until the measure first reaches a goal, and how many times less than the reference's they are."""
    axes = measured(series)
    head = ["run", *(heading for axis in axes for heading in (SHOWN[axis.name], "ratio"))]
    rows: list[list[str]] = []
    for each in series:
        cells = [each.label]
        for axis in axes:
            ours, theirs = each.to(goal, axis), reference.to(goal, axis)
            missing = "not reached" if each.curve(axis) else ""
            cells += [number(ours) or missing, f"{theirs / ours:.2f}" if ours and theirs else ""]
        rows.append(cells)
    measure = reference.measure
    less = "1 point" if measure.most == 1 else "2 %"
    since = f" ({less} worse than {reference.label} ends with)" if goal == goal_of(reference) else ""
    value = (
        f"{measure.text(goal, 1)} {reference.judged}"
        if measure.unit == "%"
        else f"{reference.judged} {measure.text(goal)}"
    )
    return Table(f"Costs to {value}{since}; ratio: those of {reference.label} by these", head, rows)


def clocked(series: Sequence[Series]) -> Table:
    """What the virtual clock says, of the series that have one; means over the seeds."""
    rows: list[list[str]] = []
    for each in series:
        runs = [run for run in each.runs if run.metrics and "simulated_seconds" in run.metrics[-1]]
        if not runs:
            continue
        clock, count = runs[0].config.clock, len(runs)
        lasts = [run.metrics[-1] for run in runs]
        lost = sum(row["lost_answers"] for run in runs for row in run.metrics) / count
        cells = [
            sum(row["simulated_seconds"] for row in lasts) / count,
            sum(row["round_seconds"] for run in runs for row in run.metrics) / sum(len(run.metrics) for run in runs),
            sum(row["total_joules"] for row in lasts) / count,
            sum(row["total_macs"] for row in lasts) / count / 1e6,
            max(row["peak_memory"] for run in runs for row in run.metrics) / 1e6,
            lost,
        ]
        rows.append([each.label, clock.devices, clock.link or "the devices' own", *(number(cell) for cell in cells)])
    head = ["run", "devices", "link", "seconds", "a round, s", "J", "device MMACs", "peak memory, MB", "lost answers"]
    return Table("Simulated devices", head, rows)


def classes(series: Sequence[Series]) -> Table:
    """Bytes by direction and message class, the largest first; means over the seeds."""
    rows: list[list[str]] = []
    for each in series:
        sums = each.kinds()
        total = sum(sums.values()) or 1.0
        for (way, kind), count in sorted(sums.items(), key=lambda item: -item[1]):
            rows.append([each.label, way, kind, number(count / 1e6), f"{100 * count / total:.1f}"])
    return Table("What travelled", ["run", "direction", "message class", "MB", "share, %"], rows)


def number(value: float | None) -> str:
    """Four digits are enough."""
    return "" if value is None else f"{value:.4g}" if value < 1000 else f"{value:,.0f}"
