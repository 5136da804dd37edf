"""``fedbonsai ls``: what there is to choose from."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedbonsai.errors import ConfigError

WHAT = ("recipes", "methods", "models", "objectives", "optimizers", "data", "devices", "links", "runs")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("what", nargs="?", default="recipes", help=" | ".join(WHAT))
    parser.add_argument("--runs", default="runs", help="folder of runs")


def main(args: argparse.Namespace, rest: list[str]) -> None:
    """List."""
    if rest or args.what not in WHAT:
        raise ConfigError(f"ls {' '.join([args.what, *rest])}: expected one of {', '.join(WHAT)}")
    rows = {
        "recipes": _recipes,
        "methods": _methods,
        "models": _models,
        "objectives": _objectives,
        "optimizers": _optimizers,
        "data": _data,
        "devices": _devices,
        "links": _links,
        "runs": _runs,
    }[args.what](args)
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        print(f"{name:<{width}}  {text}".rstrip())
    if not rows:
        print(f"none in {args.runs}/")


def _recipes(args: argparse.Namespace) -> list[tuple[str, str]]:
    from fedbonsai.runs.recipes import shipped, summary

    return [(name, summary(text)) for name, text in shipped().items()]


def _methods(args: argparse.Namespace) -> list[tuple[str, str]]:
    from fedbonsai.methods.registry import methods

    return [(name, first_line(cls)) for name, cls in sorted(methods().items())]


def _models(args: argparse.Namespace) -> list[tuple[str, str]]:
    from fedbonsai.arch import networks

    return [
        (name, f"({', '.join(inspect.signature(build).parameters)})  {first_line(build)}")
        for name, build in sorted(networks().items())
    ]


def _objectives(args: argparse.Namespace) -> list[tuple[str, str]]:
    from fedbonsai.objectives import Objective

    return [
        (name, f"({settings(cls)})  {first_line(cls)} Measures: {', '.join(cls.measures)}.")
        for name, cls in sorted(Objective.choices.items())
    ]


def _optimizers(args: argparse.Namespace) -> list[tuple[str, str]]:
    from fedbonsai.training.optimizers import Optimizer

    return [(name, f"({settings(cls)})  {first_line(cls)}") for name, cls in sorted(Optimizer.choices.items())]


def settings(cls: Any) -> str:
    """Names of a choice's settings."""
    return ", ".join(field.name for field in fields(cls))


def _data(args: argparse.Namespace) -> list[tuple[str, str]]:
    from fedbonsai.data.config import HUB

    return [
        ("digits", "1,797 images of 8x8 pixels that come with scikit-learn; no download"),
        (
            "motion",
            "five activities by the accelerometer and gyroscope of 14 people's phones, in the package; no download",
        ),
        *((name, f"{home} on the Hugging Face hub, or --data.path FOLDER") for name, home in HUB.items()),
        ("owner/name", "any dataset of the Hugging Face hub: pictures, or columns by --data.x and --data.y"),
        ("--data.path PATH", "own files: Parquet, CSV, .npz, folders of classes or clients; see docs/data.md"),
    ]


def _devices(args: argparse.Namespace) -> list[tuple[str, str]]:
    from fedbonsai.devices.figures import shipped
    from fedbonsai.devices.profile import profile

    return [(name, f"{profile(name).about}; link {profile(name).link}") for name in shipped("profiles")]


def _links(args: argparse.Namespace) -> list[tuple[str, str]]:
    from fedbonsai.devices.figures import shipped
    from fedbonsai.devices.link import link

    return [(name, link(name).about) for name in shipped("links")]


def _runs(args: argparse.Namespace) -> list[tuple[str, str]]:
    from fedbonsai.objectives import measure_named
    from fedbonsai.runs.folder import Folder

    found: list[tuple[str, str]] = []
    home = Path(args.runs)
    if home.exists() and not home.is_dir():
        raise ConfigError(f"--runs {home} is a file; expected the folder of the runs")
    for info in sorted([*home.glob("*/run.json"), *home.glob("*/*/run.json")]):  # those of comparisons lie deeper
        folder = Folder(info.parent)
        try:
            facts, rows = folder.facts(), folder.rows()
        except (ConfigError, ValueError) as error:
            found.append((str(info.parent), f"cannot be read: {error}"))
            continue
        measure = measure_named(facts.get("metric", "accuracy"))  # runs of earlier versions do not say it
        score = next((measure.plain(row[measure.name]) for row in reversed(rows) if measure.name in row), "-")
        found.append((str(info.parent), f"{facts['status']}, {len(rows)} rounds, {measure.words} {score}"))
    return found


def first_line(of: object) -> str:
    """First line of a docstring."""
    return (inspect.getdoc(of) or "(not documented)").splitlines()[0]
