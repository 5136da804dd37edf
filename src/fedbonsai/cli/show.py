"""``fedbonsai show``: a recipe with every setting spelled out."""

from __future__ import annotations

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("recipe", help="name of a recipe, or a .toml file")
    parser.add_argument("--preset", default="", help="a preset of the recipe, such as published")
    parser.add_argument("--raw", action="store_true", help="the file as it is written")


def main(args: argparse.Namespace, rest: list[str]) -> None:
    """Print."""
    import tomli_w

    from fedbonsai.runs.recipes import load, overrides_of, text
    from fedbonsai.runs.structure import unstructure

    if args.raw:
        print(text(args.recipe), end="")
    else:
        print(tomli_w.dumps(unstructure(load(args.recipe, args.preset, overrides_of(rest)))), end="")
