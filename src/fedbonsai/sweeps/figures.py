"""The figures of a sweep: the measure against each number that was varied, and against what it costs with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from fedbonsai.reports.figures import Figure, style, window
from fedbonsai.sweeps.plan import Variant
from fedbonsai.sweeps.results import Group, Sweep
from fedbonsai.sweeps.statistics import Estimate, estimate, front
from fedbonsai.sweeps.tables import headed, mean_of, scores

COSTS = {  # column of the rows: words, unit and scale
    "bytes": ("bytes", "megabytes moved, both directions", 1e-6),
    "seconds": ("seconds", "simulated seconds", 1.0),
    "joules": ("energy", "joules, all devices together", 1.0),
    "parameters": ("size", "parameters that are left", 1.0),
}
WIDE = 8.0  # ratio of the ends of an axis from which it is logarithmic


def figures(sweep: Sweep) -> list[Figure]:
    """All figures for which there is something to draw."""
    found: list[Figure] = []
    for number, group in enumerate(sweep.groups):
        means = {each.name: estimate(list(scores(sweep, group, each).values())) for each in group.variants}
        kept = [each for each in group.variants if means[each.name].n]
        found += [against(group, kept, means, path, number) for path in numeric(kept)]
        found += [drawn for column in COSTS if (drawn := pareto(sweep, group, kept, means, column, number)) is not None]
    return found


def numeric(variants: Sequence[Variant]) -> list[str]:
    """Settings that were varied and are numbers, with at least two values."""
    values: dict[str, set[Any]] = {}
    for variant in variants:
        for path, value in variant.varied.items():
            values.setdefault(path, set()).add(value)
    return [
        path for path, some in values.items() if len(some) > 1 and all(type(value) in (int, float) for value in some)
    ]


def against(group: Group, variants: Sequence[Variant], means: dict[str, Estimate], path: str, number: int) -> Figure:
    """The measure against a setting: a line for all that differ in nothing else; variants without it are level lines."""
    measure, lines = group.measure, dict[str, list[tuple[float, Estimate]]]()
    for variant in variants:
        if path in variant.varied:
            rest = [f"{key.rpartition('.')[2]} {value}" for key, value in variant.varied.items() if key != path]
            points = lines.setdefault(", ".join([variant.run, *rest]), [])
            points.append((float(variant.varied[path]), means[variant.name]))
    places = [x for points in lines.values() for x, _ in points]
    for variant in variants:
        if not variant.varied:
            lines[variant.name] = [(x, means[variant.name]) for x in (min(places), max(places))]
    data = [
        {
            "type": "scatter",
            "name": name,
            "x": [x for x, _ in sorted(points, key=lambda point: point[0])],
            **_values(group, [found for _, found in sorted(points, key=lambda point: point[0])]),
            **style(i),
        }
        for i, (name, points) in enumerate(lines.items())
    ]
    layout = {
        "xaxis": {"title": {"text": path}, "type": _kind(places)},
        "yaxis": {
            "title": {"text": headed(group)},
            **window(measure, [found.mean for found in means.values() if found.n]),
        },
    }
    text = "Mean over the seeds; bars are the 95 % interval (Student's)." + " Lower is better." * (
        measure.better == "lower"
    )
    return Figure(f"against-{number}-{path}", f"{group.data}: {measure.words} against {path}", text, data, layout)


def pareto(
    sweep: Sweep, group: Group, variants: Sequence[Variant], means: dict[str, Estimate], column: str, number: int
) -> Figure | None:
    """The measure against a cost, and the line of those that no other one beats in both; None for fewer than two points."""
    measure, (words, label, scale) = group.measure, COSTS[column]
    costs = {each.name: cost * scale for each in variants if (cost := mean_of(sweep, each, column)) is not None}
    if len(set(costs.values())) < 2:
        return None
    placed = [each for each in variants if each.name in costs]
    best = front([(means[each.name].mean, costs[each.name]) for each in placed], (measure.better, "lower"))
    line = sorted((placed[i] for i in best), key=lambda each: costs[each.name])
    data: list[dict[str, Any]] = []
    for i, run in enumerate(dict.fromkeys(each.run for each in placed)):
        mine = [each for each in placed if each.run == run]
        data.append(
            {
                "type": "scatter",
                "name": run,
                "x": [costs[each.name] for each in mine],
                **_values(group, [means[each.name] for each in mine]),
                **style(i),
                "mode": "markers+text",
                "text": [each.name.removeprefix(f"{run}-") if each in line else "" for each in mine],
                "hovertext": [each.name for each in mine],
                "textposition": "top center",
            }
        )
    data.append(
        {
            "type": "scatter",
            "name": "Pareto front",
            "x": [costs[each.name] for each in line],
            "y": [measure.scaled(means[each.name].mean) for each in line],
            "mode": "lines",
            "line": {"color": "#7f7f7f", "width": 1, "shape": "hv" if measure.better == "higher" else "vh"},
            "hoverinfo": "skip",
        }
    )
    layout = {
        "xaxis": {"title": {"text": label}, "type": _kind(list(costs.values()))},
        "yaxis": {
            "title": {"text": headed(group)},
            **window(measure, [found.mean for found in means.values() if found.n]),
        },
    }
    names = ", ".join(each.name for each in line)
    text = f"Means over the seeds, with 95 % intervals. No other variant is better and cheaper than: {names}."
    return Figure(f"front-{number}-{column}", f"{group.data}: {measure.words} against {words}", text, data, layout)


def _values(group: Group, found: Sequence[Estimate]) -> dict[str, Any]:
    """Means and their intervals, in the measure's unit; one seed has no interval."""
    halves = [group.measure.scaled(each.half) if isfinite(each.half) else 0.0 for each in found]
    bars = {"error_y": {"type": "data", "array": halves, "thickness": 1}} if any(halves) else {}
    return {"y": [group.measure.scaled(each.mean) for each in found], **bars}


def _kind(places: Sequence[float]) -> str:
    """Of an axis with these places on it."""
    return "log" if min(places) > 0 and max(places) / min(places) >= WIDE else "linear"
