"""Runs side by side: a table, and accuracy against rounds and against bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fedbonsai.errors import ConfigError, Missing
from fedbonsai.runs.progress import size
from fedbonsai.runs.run import Run


def table(runs: Sequence[Run]) -> None:
    """Print accuracy and bytes of each run, and its bytes by message class."""
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
    console.print(kinds)


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

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for number, run in enumerate(runs):
        rows = [row for row in run.metrics if "accuracy" in row]
        accuracies = [100 * row["accuracy"] for row in rows]
        style = {"marker": "osD^vPX*"[number % 8], "markevery": max(1, len(rows) // 10), "markersize": 4}
        left.plot([row["round"] + 1 for row in rows], accuracies, label=run.path.name, **style)
        right.plot([(row["total_bytes_up"] + row["total_bytes_down"]) / 1e6 for row in rows], accuracies, **style)
    left.set(xlabel="round", ylabel="test accuracy (%)", title="accuracy against rounds")
    right.set(xlabel="megabytes moved, both directions", title="accuracy against bytes", xscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(loc="lower right", fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    pyplot.close(figure)
