"""``fedbonsai validate``: every fault of a recipe at once, before anything is loaded."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("recipe", help="name of a recipe, or a .toml file")
    parser.add_argument("--preset", default="", help="a preset of the recipe, such as published")


def main(args: argparse.Namespace, rest: list[str]) -> None:
    """Check."""
    from fedbonsai.runs.recipes import load, overrides_of
    from fedbonsai.runs.setup import options_of

    config = load(args.recipe, args.preset, overrides_of(rest))
    options_of(config)
    print(f"{args.recipe} is valid")
