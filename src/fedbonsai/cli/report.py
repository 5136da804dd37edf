"""``fedbonsai report``: a table in the terminal, and a PNG of accuracy against rounds and against bytes."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedbonsai.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("run", nargs="+", type=Path, help="folders of runs")
    parser.add_argument(
        "--png", type=Path, default=None, help="where the plot goes (default: report.png in the first run)"
    )


def main(args: argparse.Namespace, rest: list[str]) -> None:
    """Report."""
    from fedbonsai.runs.report import plot, table
    from fedbonsai.runs.run import load

    if rest:
        raise ConfigError(f"report does not take {' '.join(rest)}")
    runs = [load(path) for path in args.run]
    table(runs)
    target: Path = args.png or args.run[0] / "report.png"
    plot(runs, target)
    print(f"plot: {target}")
