"""Runs side by side: tables, and accuracy against rounds, bytes and, with a clock, simulated time and energy."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbonsai.errors import ConfigError, Missing
from fedbonsai.runs.progress import energy, size, span
from fedbonsai.runs.run import Run

if TYPE_CHECKING:
    from rich.table import Table


def table(runs: Sequence[Run], target: float = 0.0) -> None:
    """Print accuracy and bytes of each run, what it cost until a target accuracy, and its bytes by message class.

    Args:
        runs: evaluated at least once.
        target: test accuracy; 0 is the best that every one of the runs reaches.

    Raises:
        ConfigError: a run has no evaluated round yet.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if os.isatty(1) else 120)
    main = Table("run", "rounds", "accuracy", "best", "up", "down", "total", "skipped rounds")
    kinds = Table("run", "direction", "message class", "bytes", "share")
    for run in runs:
        accuracies = [row["accuracy"] for row in run.metrics if "accuracy" in row]
        if not accuracies:
            raise ConfigError(f"{run.path} has no evaluated round yet")
        moved = run.bytes
        main.add_row(
            run.path.name,
            str(len(run.metrics)),
            f"{accuracies[-1]:.4f}",
            f"{max(accuracies):.4f}",
            size(moved["up"]),
            size(moved["down"]),
            size(sum(moved.values())),
            str(sum(bool(row["skipped"]) for row in run.metrics)),
        )
        sums: dict[tuple[str, str], int] = {}
        for row in run.ledger():
            key = (row["direction"], row["kind"])
            sums[key] = sums.get(key, 0) + row["bytes"]
        for (way, kind), count in sorted(sums.items(), key=lambda item: -item[1]):
            kinds.add_row(run.path.name, way, kind, size(count), f"{100 * count / sum(sums.values()):.1f} %")
    console.print(main)
    if any(timed(run) for run in runs):
        console.print(_costs(runs))
    goal = target or min(max(row["accuracy"] for row in run.metrics if "accuracy" in row) for run in runs)
    if target or len(runs) > 1:
        console.print(_until(runs, goal))
    console.print(kinds)


def timed(run: Run) -> bool:
    """Whether the run had a virtual clock."""
    return bool(run.metrics) and "simulated_seconds" in run.metrics[-1]


def _costs(runs: Sequence[Run]) -> Table:
    from rich.table import Table

    found = Table("run", "devices", "link", "time", "a round", "energy", "operations", "peak memory", "lost answers")
    for run in filter(timed, runs):
        rows, clock = run.metrics, run.config.clock
        peak = max(row["peak_memory"] for row in rows)
        found.add_row(
            run.path.name,
            clock.devices,
            clock.link or "the devices' own",
            span(run.seconds),
            f"{sum(row['round_seconds'] for row in rows) / len(rows):.3g} s",
            energy(run.joules),
            f"{rows[-1]['total_macs']:.3g} MAC",
            size(peak),
            str(sum(row["lost_answers"] for row in rows)),
        )
    return found


def _until(runs: Sequence[Run], goal: float) -> Table:
    from rich.table import Table

    found = Table("run", "rounds", "bytes", "time", "energy", title=f"until {100 * goal:.2f} % test accuracy")
    for run in runs:
        row = reached(run, goal)
        if row is None:
            found.add_row(run.path.name, *["not reached"] * (4 if timed(run) else 2))
            continue
        cells = [str(row["round"] + 1), size(row["total_bytes_up"] + row["total_bytes_down"])]
        if timed(run):
            cells += [span(row["simulated_seconds"]), energy(row["total_joules"])]
        found.add_row(run.path.name, *cells)
    return found


def reached(run: Run, goal: float) -> Mapping[str, Any] | None:
    """The first evaluated round with this test accuracy."""
    return next((row for row in run.metrics if row.get("accuracy", -1.0) >= goal), None)


AXES: dict[str, tuple[str, Callable[[Mapping[str, Any]], float], bool]] = {  # title: label, value of a row, logarithmic
    "rounds": ("round", lambda row: row["round"] + 1, False),
    "bytes": (
        "megabytes moved, both directions",
        lambda row: (row["total_bytes_up"] + row["total_bytes_down"]) / 1e6,
        True,
    ),
    "simulated time": ("simulated seconds", lambda row: row["simulated_seconds"], True),
    "energy": ("joules of all devices", lambda row: row["total_joules"], True),
}


def plot(runs: Sequence[Run], target: Path) -> None:
    """Write a PNG; lines differ by marker as well as by colour.

    Raises:
        Missing: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise Missing("plots need matplotlib: pip install 'fedbonsai[sim]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = list(AXES) if any(timed(run) for run in runs) else ["rounds", "bytes"]
    lines = len(shown) // 2
    figure, grid = pyplot.subplots(
        lines, 2, figsize=(11, 4.2 * lines), sharey=True, layout="constrained", squeeze=False
    )
    for axes, name in zip(grid.flat, shown, strict=True):
        label, value, logarithmic = AXES[name]
        for number, run in enumerate(runs):
            rows = [row for row in run.metrics if "accuracy" in row]
            if name in ("simulated time", "energy") and not timed(run):
                continue
            axes.plot(
                [value(row) for row in rows],
                [100 * row["accuracy"] for row in rows],
                label=run.path.name,
                color=f"C{number % 10}",
                marker="osD^vPX*"[number % 8],
                markevery=max(1, len(rows) // 10),
                markersize=4,
            )
        axes.set(xlabel=label, ylabel="test accuracy (%)", title=f"accuracy against {name}")
        axes.set_xscale("log" if logarithmic else "linear")
        axes.grid(alpha=0.3)
    grid[0, 0].legend(loc="lower right", fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    pyplot.close(figure)
