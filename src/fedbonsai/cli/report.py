"""``fedbonsai report``: tables in the terminal, and one page, or another kind of file, of one run or several."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedbonsai.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "run", nargs="+", type=Path, help="folders of runs; seeds of one configuration are put together"
    )
    parser.add_argument(
        "--target", type=float, default=0.0, help="value of the measure that decides to which costs are told"
    )
    parser.add_argument("--baseline", default="", help="run that costs are held against (default: the first)")
    parser.add_argument(
        "--out",
        type=Path,
        action="append",
        default=[],
        help="file to write: .html, .png, .svg, .csv or .md; repeatable",
    )


def main(args: argparse.Namespace, rest: list[str]) -> None:
    """Report."""
    from fedbonsai.reports.files import kind_of, write
    from fedbonsai.reports.series import baseline, goal_of, together
    from fedbonsai.reports.terminal import show
    from fedbonsai.runs.run import load

    if rest:
        raise ConfigError(f"report does not take {' '.join(rest)}")
    series = together([load(path) for path in args.run])
    reference = baseline(series, args.baseline)
    goal = goal_of(reference, args.target)
    targets: list[Path] = args.out or [args.run[0] / "report.html", args.run[0] / "report.png"]
    for target in targets:
        kind_of(target)  # before minutes are spent on the first
    show(series, reference, goal)
    for target in targets:
        write(target, series, reference, goal, ", ".join(each.label for each in series))
        print(f"report: {target}")
