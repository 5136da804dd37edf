"""The tables of a report in the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fedbonsai.reports.costs import classes, clocked, outcomes, to_goal
from fedbonsai.reports.series import Series, cautions


def show(series: Sequence[Series], reference: Series, goal: float) -> None:
    """Print what each series reached, what its clock says, what the goal cost, bytes by message class, and what to note."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console(width=None if os.isatty(1) else 130)
    for content in (outcomes(series), clocked(series), to_goal(series, reference, goal), classes(series)):
        if not content.rows:
            continue
        head = [Column(content.head[0]), *(Column(cell, justify="right") for cell in content.head[1:])]
        table = Table(*head, title=escape(content.title), title_justify="left")
        for row in content.rows:
            table.add_row(*(escape(cell) for cell in row))
        console.print(table)
    for text in cautions(series):
        console.print(escape(text))
    for each in series:
        notes = each.runs[0].info.get("notes", {})
        if notes:
            console.print(escape(f"{each.label}: " + "; ".join(f"{name}: {value}" for name, value in notes.items())))
