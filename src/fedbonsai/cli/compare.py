"""``fedbonsai compare``: several recipes on the same data, and one report of them."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedbonsai.errors import ConfigError, exit_code

if TYPE_CHECKING:
    from fedbonsai.runs.jobs import Job


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb; all others are settings of every run."""
    parser.add_argument(
        "recipes", nargs="+", help="recipes, such as fedavg or fl-pqsu:published; the first is the baseline"
    )
    parser.add_argument("--data", default="", help="data for all of them (default: each recipe's own)")
    parser.add_argument("--seeds", type=int, default=1, help="seeds for each recipe (default: 1)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of the seeds (default: 0)")
    parser.add_argument(
        "--target", type=float, default=0.0, help="value of the measure that decides to which costs are told"
    )
    parser.add_argument("--name", default="comparison", help="folder below --runs (default: comparison)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the comparison's folder")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time (default: all cores)")
    parser.add_argument("--plan", action="store_true", help="only tell what would run")


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Compare."""
    from fedbonsai.disk import writing
    from fedbonsai.runs import recipes
    from fedbonsai.runs.compare import plan
    from fedbonsai.runs.config import check_name
    from fedbonsai.runs.jobs import carry_out
    from fedbonsai.runs.shown import span
    from fedbonsai.sweeps.estimated import expected, told

    if args.workers < 1:
        raise ConfigError(f"--workers {args.workers}: expected at least 1")
    check_name("--name", args.name)
    if not args.name:
        raise ConfigError("--name is empty: expected the name of the comparison's folder below --runs")
    home: Path = args.runs / args.name
    overrides = dict(recipes.overrides_of(rest)) | ({"data.name": args.data} if args.data else {})
    jobs = plan(args.recipes, args.seeds, home, overrides, args.first_seed)
    if args.target and (wanted := jobs[0].config.objective.measure.refusal(args.target)):
        raise ConfigError(f"--target {args.target:g}: expected {wanted}")
    left = [job for job in jobs if job.status != "finished"]
    for job in jobs:
        print(f"{job.name:40} {job.config.rounds:5} rounds   {job.status}")
    print(f"{len(left)} of {len(jobs)} runs to do, {args.workers} at a time, in {home}", flush=True)
    if left and not args.plan:
        with writing(home):
            home.mkdir(parents=True, exist_ok=True)
    if left:
        print(told(expected(jobs), args.workers, home), flush=True)
    if args.plan:
        return 0
    start, failed = time.perf_counter(), dict[str, Exception]()
    try:
        for done, (job, result) in enumerate(carry_out(left, args.workers), 1):
            passed = time.perf_counter() - start
            rest_of_it = f", about {span(passed / done * (len(left) - done))} left" if done < len(left) else ""
            if isinstance(result, Exception):
                failed[job.name] = result
            line = f"failed: {result}" if isinstance(result, Exception) else result
            print(f"{done} of {len(left)} done: {job.name}: {line}{rest_of_it}", flush=True)
    except KeyboardInterrupt:
        print("\ninterrupted; what was finished is kept. The same command goes on from there", file=sys.stderr)
        return 130
    _report(home, [job for job in jobs if job.name not in failed], args.target, failed)
    if failed:
        for name, error in failed.items():
            print(f"fedbonsai: {name} failed: {error}", file=sys.stderr)
        print(f"fedbonsai: {len(failed)} runs failed: {', '.join(failed)}; the others are kept", file=sys.stderr)
    return min(map(exit_code, failed.values()), default=0)  # a fault of ours before all else


def _report(home: Path, done: Sequence[Job], target: float, failed: Mapping[str, Exception]) -> None:
    """Write and print the report of the runs that ended well; it names the others."""
    from fedbonsai.reports.files import write
    from fedbonsai.reports.series import goal_of, together
    from fedbonsai.runs.run import load

    if not done:
        return
    series = together([load(job.folder) for job in done])
    goal, title = goal_of(series[0], target), ", ".join(each.label for each in series)
    without = [f"{name} failed and is left out: {error}" for name, error in failed.items()]
    for kind in ("html", "md", "csv", "png"):
        write(home / f"report.{kind}", series, series[0], goal, title, without)
    print((home / "report.md").read_text(encoding="utf-8"))
    print(f"report: {home / 'report.html'}")
