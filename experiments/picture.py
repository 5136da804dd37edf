"""The picture of the README: accuracy against bytes and against size, methods on three tasks, from the committed results."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

FILE = Path(__file__).parents[1] / "docs" / "images" / "pareto.svg"
TASKS = {
    "fair_har": "Movements (har-phone-watch), 18 people",
    "pruning_mnist": "MNIST, 6,000 pictures, 10 devices",
    "pruning": "Digits, 10 devices",
}
METHODS = {  # beginning of a row's name: words, colour, mark; the longest that fits
    "fedavg": ("FedAvg", "#222222", "*"),
    "small-dense": ("small dense network", "#888888", "s"),
    "fl-pqsu": ("FL-PQSU", "#d95f02", "o"),
    "prunefl": ("PruneFL", "#1b9e77", "o"),
    "fedtiny": ("FedTiny", "#7570b3", "o"),
    "fedtiny-erk": ("FedTiny, ERK densities", "#a6a0dd", "D"),
    "static-magnitude": ("static magnitude mask", "#e7298a", "v"),
    "synflow": ("SynFlow", "#66a61e", "v"),
    "snip": ("SNIP", "#e6ab02", "v"),
    "feddst": ("FedDST", "#1f78b4", "^"),
    "splitfed": ("split learning", "#a6761d", "P"),
    "sparse-collaborative": ("sparse collaborative", "#b15928", "X"),
}
Point = tuple[float, float, float]  # megabytes, parameters (NaN: unknown) and percent; means over the seeds
Lines = Mapping[str, Mapping[str, Sequence[Point]]]  # by task and method


def lines(everything: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], whole: Mapping[str, float]) -> Lines:
    """The points of each method on each task.

    Args:
        everything: results by experiment and row.
        whole: parameters of an unpruned network by experiment.
    """
    found: dict[str, dict[str, list[Point]]] = {}
    for task in TASKS:
        for row, results in everything.get(task, {}).items():
            fits = [begin for begin in METHODS if row == begin or row.removeprefix(begin)[:2] in ("-0", "-1")]
            if fits and results:
                found.setdefault(task, {}).setdefault(max(fits, key=len), []).append(point(results, whole[task]))
    return {task: {name: sorted(points) for name, points in methods.items()} for task, methods in found.items()}


def point(results: Sequence[Mapping[str, Any]], whole: float) -> Point:
    """Where a row lies."""
    counts = [each["method metrics"].get("parameters") for each in results]
    known = fmean(each[-1] for each in counts if each) if all(counts) else math.nan
    size = whole if results[0]["recipe"] == "fedavg" else known
    megabytes = fmean(sum(each["bytes"].values()) for each in results) / 1e6
    return megabytes, size, 100 * fmean(each["last five"] for each in results)


def mark(found: Lines) -> str:
    """A hash of what is drawn, which stands in the file."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def held() -> str:
    """The hash in the committed file."""
    text = FILE.read_text(encoding="utf-8")
    return text.partition("points ")[2][:64]


def draw(found: Lines) -> None:
    """Write the picture: a column for each task, accuracy against megabytes above, against parameters below."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot, ticker

    with pyplot.rc_context({"svg.hashsalt": "fedbonsai", "svg.fonttype": "path", "font.size": 9}):
        figure, axes = pyplot.subplots(2, len(found), figsize=(4 * len(found), 7), sharey="col", squeeze=False)
        for column, (task, methods) in enumerate(found.items()):
            for place, words in (
                (0, "megabytes of a whole run, both ways, all devices"),
                (1, "parameters that are left"),
            ):
                axis = axes[place][column]
                for name, points in methods.items():
                    label, colour, form = METHODS[name]
                    shown = sorted((each[place], each[2]) for each in points if not math.isnan(each[place]))
                    if shown:
                        axis.plot(*zip(*shown, strict=True), color=colour, marker=form, label=label, lw=1, ms=6)
                axis.set(xscale="log", xlabel=words, ylabel="accuracy, %" if column == 0 else "")
                axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
                axis.xaxis.set_major_formatter("{x:,g}")
                axis.xaxis.set_minor_locator(ticker.NullLocator())
                axis.grid(alpha=0.3)
            axes[0][column].set_title(TASKS[task])
        known = {
            label: line for each in axes.flat for line, label in zip(*each.get_legend_handles_labels(), strict=True)
        }
        figure.legend(known.values(), known.keys(), ncols=5, loc="lower center", frameon=False)
        figure.tight_layout(rect=(0, 0.09, 1, 1))
        figure.savefig(FILE, metadata={"Date": None, "Description": f"points {mark(found)}"}, facecolor="white")
        pyplot.close(figure)
