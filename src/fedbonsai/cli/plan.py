"""``fedbonsai plan``: which recipe, network, density and codec for these data, devices and limits."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from fedbonsai.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb; all others are settings of every run, or limits (``--limit.bytes 5MB``)."""
    parser.add_argument("--hours", default="", help="time that all of it takes, such as 0.5 or 20min (default: 1)")
    parser.add_argument("--trials", type=int, default=0, help="settings that train at most, in place of --hours")
    parser.add_argument("--rounds", type=int, default=30, help="rounds of a run at most (default: 30)")
    parser.add_argument(
        "--target", type=float, default=0.0, help="value of the measure that is to be reached at the least cost"
    )
    parser.add_argument("--lower", default="", help="costs to lower beside the measure: bytes, seconds, joules")
    parser.add_argument("--recipes", default="", help="recipes that are tried, with commas (default: a choice)")
    parser.add_argument("--networks", default="", help="networks that are tried, with commas (default: those that fit)")
    parser.add_argument("--finalists", type=int, default=3, help="settings that run again (default: 3)")
    parser.add_argument("--seeds", type=int, default=3, help="other seeds of the finalists at most (default: 3)")
    parser.add_argument("--name", default="plan", help="folder of the plan (default: plan)")
    parser.add_argument("--runs", type=Path, default=Path("."), help="folder of the plan's folder (default: here)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Plan."""
    from fedbonsai.fleets.allocator import keep_memory
    from fedbonsai.planning.plan import Effort, carry_out, hours, question
    from fedbonsai.runs.config import check_name
    from fedbonsai.runs.recipes import overrides_of

    for name, least in (("trials", 0), ("finalists", 1), ("seeds", 0), ("workers", 1)):
        if (value := getattr(args, name)) < least:
            raise ConfigError(f"--{name} {value}: expected at least {least}")
    check_name("--name", args.name)
    if not args.name:
        raise ConfigError("--name is empty: expected the name of the plan's folder")
    given, limits = parted(overrides_of(rest))
    time = hours(args.hours) if args.hours else float("inf") if args.trials else hours(1)
    effort = Effort(time, args.trials, args.seeds, args.finalists, args.workers)
    keep_memory()
    asked = question(
        given,
        limits,
        target=args.target,
        lower=_words(args.lower),
        recipes=_words(args.recipes),
        networks=_words(args.networks),
        rounds=args.rounds,
    )
    for note in asked.notes:
        print(note)
    home: Path = args.runs / args.name
    try:
        answer = carry_out(asked, home, effort, lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        best = f"the best so far is in {home / 'best.toml'}; " if (home / "best.toml").exists() else ""
        print(f"\ninterrupted; {best}the same command goes on from there", file=sys.stderr)
        return 130
    print(answer.markdown())
    print(f"run it: fedbonsai run {home / 'best.toml'}\npage: {home / 'plan.html'}")
    return 0


def parted(given: dict[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """Settings of all runs, and limits by name."""
    limits = {name.removeprefix("limit."): value for name, value in given.items() if name.startswith("limit.")}
    return {name: value for name, value in given.items() if not name.startswith("limit.")}, limits


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for part in text.split(",") if (word := part.strip()))
