"""``fedbonsai sweep``: recipes by settings by seeds, and what the seeds say together."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedbonsai.errors import ConfigError, Missing, exit_code

if TYPE_CHECKING:
    from fedbonsai.sweeps.results import Sweep
    from fedbonsai.sweeps.sweep import Ready


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb; all others are settings of every run."""
    parser.add_argument("file", type=Path, metavar="PLAN.toml", help="the plan: see docs/sweeps.md")
    parser.add_argument("--name", default="", help="folder below --runs (default: the plan's name)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the sweep's folder")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time (default: all cores)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="variants, or names of runs in the plan")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="SEED", help="only these, or more")
    parser.add_argument("--hours", type=float, default=0.0, help="begin no run that would not end within so many")
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("FEDBONSAI_DATA") or None,
        help="folder in which data sets are looked for by their names (default: FEDBONSAI_DATA)",
    )
    parser.add_argument("--plan", action="store_true", help="only tell what would run")


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Sweep."""
    from fedbonsai.runs import recipes
    from fedbonsai.sweeps.estimated import expected, told
    from fedbonsai.sweeps.plan import read
    from fedbonsai.sweeps.sweep import carry, ready, refuse_if_taken

    if args.workers < 1:
        raise ConfigError(f"--workers {args.workers}: expected at least 1")
    if not 0 <= args.hours < float("inf"):
        raise ConfigError(f"--hours {args.hours:g}: expected hours above 0, or 0 for no bound")
    settings = recipes.overrides_of(rest)
    what = ready(read(args.file), args.runs, args.name, settings, args.only, args.seeds, args.data)
    if not args.plan:
        refuse_if_taken(what.home)
    if what.trials is not None:
        print("trials first, by which each variant chooses settings that its runs below then have:")
        _tell(what.trials)
        print(f"{len(what.trials.left)} of {len(what.trials.jobs)} trials to do", flush=True)
    _tell(what)
    print(f"{len(what.left)} of {len(what.jobs)} runs to do, {args.workers} at a time, in {what.home}", flush=True)
    left = expected(what.jobs)
    if all_left := left | (expected(what.trials.jobs) if what.trials is not None else {}):
        print(told(all_left, args.workers, what.home), flush=True)
    if args.plan:
        return 0
    try:
        found, failed = carry(what, args.workers, left, args.hours, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print("\ninterrupted; what was finished is kept. The same command goes on from there", file=sys.stderr)
        return 130
    _report(found)
    if failed:
        for name, error in failed.items():
            print(f"fedbonsai: {name} failed: {error}", file=sys.stderr)
        print(f"fedbonsai: {len(failed)} runs failed: {', '.join(failed)}; the others are kept", file=sys.stderr)
    return min(map(exit_code, failed.values()), default=0)  # a fault of ours before all else


def _tell(what: Ready) -> None:
    """A line for each variant: its rounds, and where its seeds stand."""
    from fedbonsai.sweeps.estimated import variant

    for name in dict.fromkeys(map(variant, what.jobs)):
        mine = [job for job in what.jobs if variant(job) == name]
        stand = [
            f"{word} {', '.join(seeds)}"
            for word in ("finished", "begun", "new")
            if (seeds := [str(job.seed) for job in mine if job.status == word])
        ]
        print(f"{name:40} {mine[0].config.rounds:5} rounds   seeds {'; '.join(stand)}")


def _report(sweep: Sweep) -> None:
    """Print and write the tables, and the page."""
    from fedbonsai.runs.folder import write
    from fedbonsai.sweeps.page import markdown, page

    if not sweep.groups:
        return
    text = markdown(sweep)
    write(sweep.path / "sweep.md", text.encode(errors="replace"))
    print(text)
    try:
        write(sweep.path / "sweep.html", page(sweep).encode(errors="replace"))
    except Missing as error:
        print(f"no page: {error}", file=sys.stderr)
    else:
        print(f"page: {sweep.path / 'sweep.html'}")
    print(f"rows: {sweep.path / 'sweep.csv'} and rounds.csv, and both as .parquet")
