"""``fedbonsai watch``: a training in the terminal as it goes on, from another one."""

from __future__ import annotations

import argparse
import time
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbonsai.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

DAY = 86_400.0
BLOCKS = " ▁▂▃▄▅▆▇█"
SHOWN = ("loss", "train_loss", "density", "simulated_seconds", "total_joules")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("run", type=Path, help="folder of a run, finished or not")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="between two looks (default: 1)")
    parser.add_argument("--once", action="store_true", help="show it as it is now, and end")


def main(args: argparse.Namespace, rest: list[str]) -> None:
    """Watch until the run ends."""
    from rich.console import Console
    from rich.live import Live

    from fedbonsai.runs.run import load

    if rest:
        raise ConfigError(f"watch does not take {' '.join(rest)}")
    if not 0 < args.every <= DAY:
        raise ConfigError(f"--every {args.every:g}: expected seconds above 0 and at most {DAY:g}")
    if args.once:
        Console().print(view(load(args.run)))
        return
    with Live(view(load(args.run)), refresh_per_second=4) as live:
        while running(args.run):
            time.sleep(args.every)
            live.update(view(load(args.run)))
        live.update(view(load(args.run)))


def running(folder: Path) -> bool:
    """Whether the run has not ended, as far as its folder says."""
    from fedbonsai.runs.folder import Folder

    return Folder(folder).facts()["status"] == "running"


def view(run: Any) -> RenderableType:
    """Where a run stands: figures of its last round and how its measure got there."""
    from rich.markup import escape
    from rich.panel import Panel
    from rich.table import Table

    from fedbonsai.runs.progress import size
    from fedbonsai.runs.trouble import of_run

    rows, measure = run.metrics, run.measure
    scores = [row[measure.name] for row in rows if measure.name in row]
    grid = Table.grid(padding=(0, 2))
    grid.add_row("status", str(run.info["status"]))
    if run.info["status"] == "failed":
        grid.add_row("reason", escape(str(run.info.get("reason", ""))))
    grid.add_row("round", f"{len(rows)} of {run.config.rounds}")
    if scores:
        best = measure.plain(measure.best(scores))
        grid.add_row(measure.words, f"{measure.plain(scores[-1])} (best {best})  {sparkline(scores)}")
    if rows:
        grid.add_row("moved", f"{size(run.bytes['up'])} up, {size(run.bytes['down'])} down")
        last = rows[-1]
        others = [name for name in run.config.objective.measures if name != measure.name]
        for name in (f"personal_{measure.name}", f"valid_{measure.name}", *others, *SHOWN):
            if name in last:
                grid.add_row(name.replace("_", " "), f"{last[name]:.4g}")
        for said in of_run(rows):
            grid.add_row("clients", escape(said))
        grid.add_row("a round takes", f"{sum(row['seconds'] for row in rows[-5:]) / len(rows[-5:]):.2f} s here")
    return Panel(grid, title=escape(str(run.path)), expand=False)


def sparkline(values: list[float], width: int = 40) -> str:
    """Values as blocks, at most ``width`` of them, from the lowest to the highest; what has no meaning is a gap."""
    step = max(1, -(-len(values) // width))
    taken = values[::-step][::-1]
    known = [value for value in taken if isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(BLOCKS) - 2) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[1 + round(scale * (value - low)) if isfinite(value) else 0] for value in taken)
