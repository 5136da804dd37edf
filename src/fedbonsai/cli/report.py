"""``fedbonsai report``: tables in the terminal, and a PNG of accuracy against rounds, bytes, time and energy."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedbonsai.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("run", nargs="+", type=Path, help="folders of runs")
    parser.add_argument(
        "--target", type=float, default=0.0, help="test accuracy to which costs are compared (default: what all reach)"
    )
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
    if not 0 <= args.target <= 1:
        raise ConfigError(f"--target {args.target}: expected an accuracy in [0, 1]")
    table(runs, args.target)
    target: Path = args.png or args.run[0] / "report.png"
    plot(runs, target)
    print(f"plot: {target}")
