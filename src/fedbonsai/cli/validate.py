"""``fedbonsai validate``: every fault of a recipe, and whether data, network and method go together, before any training."""

from __future__ import annotations

import argparse
import sys


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("recipe", help="name of a recipe, or a .toml file")
    parser.add_argument("--preset", default="", help="a preset of the recipe, such as published")


def main(args: argparse.Namespace, rest: list[str]) -> None:
    """Check."""
    from fedbonsai.runs.check import check
    from fedbonsai.runs.recipes import load, overrides_of

    for text in check(load(args.recipe, args.preset, overrides_of(rest))):
        print(f"warning: {text}", file=sys.stderr)
    print(f"{args.recipe} is valid")
