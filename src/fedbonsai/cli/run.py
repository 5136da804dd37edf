"""``fedbonsai run``: train."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedbonsai.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb; all others are settings of the recipe."""
    parser.add_argument("recipe", nargs="?", default="", help="name of a recipe, or a .toml file")
    parser.add_argument("--preset", default="", help="a preset of the recipe, such as published (default: modern)")
    parser.add_argument("--resume", type=Path, default=None, metavar="RUN", help="continue the run in this folder")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder under which the run's folder is made")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the outcome")
    parser.add_argument("--log", action="append", default=[], help="also write to tensorboard or mlflow; repeatable")
    parser.add_argument("-h", "--help", action="store_true", help="this help; after a recipe: all of its settings")


def main(args: argparse.Namespace, rest: list[str]) -> int:
    """Run."""
    if args.help or not (args.recipe or args.resume):
        _help(args.recipe, args.preset)
        return 0 if args.help else 2
    from fedbonsai.fleets.allocator import keep_memory
    from fedbonsai.runs import recipes
    from fedbonsai.runs.progress import energy, line, progress, simulated
    from fedbonsai.runs.run import execute, name_of, stored
    from fedbonsai.runs.shown import shown
    from fedbonsai.runs.submit import submit
    from fedbonsai.runs.trouble import of_run
    from fedbonsai.runs.writers import writer

    if args.resume:
        if args.recipe or rest:
            raise ConfigError("--resume continues a run as it was begun; leave out the recipe and its settings")
        config, folder = stored(args.resume), args.resume
    else:
        config = recipes.load(args.recipe, args.preset, recipes.overrides_of(rest))
        folder = args.runs / name_of(args.recipe, config)
    keep_memory()

    def tell(row: Mapping[str, Any]) -> None:
        print(line(config, row, row["seconds"] * (config.rounds - row["round"] - 1)), flush=True)

    try:
        with shown(not args.quiet) as screen:
            if config.fleet.kind == "flower":
                if args.log:
                    raise ConfigError("--log is written where the run is driven; leave it out with --fleet flower")
                run = submit(config, folder, bool(args.resume), None if args.quiet else tell)
            else:
                watching = [writer(name, folder) for name in args.log]
                watching += [] if args.quiet else [progress(screen)]
                run = execute(config, folder, bool(args.resume), watching)
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; what was finished is kept. Continue with: fedbonsai run --resume {folder}", file=sys.stderr
        )
        return 130
    moved = {way: size / 1e6 for way, size in run.bytes.items()}
    rounds = f"{len(run.metrics)} round{'s' * (len(run.metrics) != 1)}"
    reached = f"{run.measure.words} {run.measure.plain(run.score)}"
    print(f"{reached} on the test set after {rounds} ({run.info['reason']})")
    print(f"{moved['up']:.2f} MB up, {moved['down']:.2f} MB down; everything is in {folder}")
    if run.epsilon == run.epsilon:
        print(f"epsilon {run.epsilon:.4g} at delta {run.config.method.privacy.delta:g} (docs/privacy.md)")  # type: ignore[attr-defined]
    if config.clock.devices:
        print(
            f"{simulated(run.seconds)} of simulated time, {energy(run.joules)} of all devices ({config.clock.devices})"
        )
    for said in of_run(run.metrics):
        print(said)
    print(f"plots: fedbonsai report {folder}")
    return 0


def _help(recipe: str, preset: str) -> None:
    print(
        "usage: fedbonsai run RECIPE [--preset P] [--runs FOLDER] [--quiet] [--log L] [--devices D] [--link L] [--fleet F]"
        " [--SETTING VALUE ...]"
    )
    print("       fedbonsai run --resume RUN\n")
    print("--devices, --link and --fleet are short for --clock.devices, --clock.link and --fleet.kind\n")
    if not recipe:
        print("recipes: fedbonsai ls recipes\nsettings of a recipe: fedbonsai run RECIPE --help")
        return
    from fedbonsai.runs.config import RunConfig
    from fedbonsai.runs.recipes import load, table
    from fedbonsai.runs.structure import settings, type_name

    load(recipe, preset)  # refuses what is no recipe
    merged = table(recipe, preset)
    print(f"settings of {recipe} (value in this recipe):")
    for setting in settings(RunConfig, merged["method"]["name"], chosen=merged):
        here: object = merged
        for part in setting.path.split("."):
            here = here.get(part) if isinstance(here, dict) else None
        value = setting.default if here is None else here
        print(f"  --{setting.path} {type_name(setting.kind)} ({value!r})\n        {setting.help}")
