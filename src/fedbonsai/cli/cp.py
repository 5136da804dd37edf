"""``fedbonsai cp``: a recipe as a file of your own."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedbonsai.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("recipe", help="name of a recipe")
    parser.add_argument("file", type=Path, help="where to; never overwritten")


def main(args: argparse.Namespace, rest: list[str]) -> None:
    """Copy."""
    from fedbonsai.disk import writing
    from fedbonsai.runs.recipes import text

    if rest:
        raise ConfigError(f"cp takes a recipe and a file, got also {' '.join(rest)}")
    file: Path = args.file.with_suffix(".toml") if not args.file.suffix else args.file
    content = text(args.recipe)
    if file.exists():
        raise ConfigError(f"{file} exists; choose another name or delete it")
    with writing(file), file.open("x", encoding="utf-8") as out:
        out.write(content)
    print(f"wrote {file}; run it with: fedbonsai run {file}")
