"""The figures of a page, as Plotly's JSON: every series has its own dash and marker, so that no colour is needed.

Only data and meaning are here; fonts, grids and colours of light and dark are the page's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedbonsai.reports.anatomy import Layers, remaining
from fedbonsai.reports.series import AXES, Series

# eight hues that differ in lightness too (Okabe and Ito), readable on white and on near-black
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c6bb1", "#7f7f7f")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "pentagon")
ENDS = {"worst": "client_min", "tenth percentile": "client_p10", "median": "client_median", "best": "client_max"}
PATTERNS = ("", "/", "x", ".", "-", "+", "\\", "|")


@dataclass(frozen=True)
class Figure:
    """A figure: ``data`` and ``layout`` as Plotly takes them, and the sentence under it."""

    name: str
    title: str
    text: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]


def figures(series: Sequence[Series], layers: Mapping[str, Layers]) -> list[Figure]:
    """All figures for which there is something to draw."""
    found = [
        *accuracies(series),
        sizes(series),
        *(heat(label, each) for label, each in layers.items() if each.kept),
        kinds(series),
        fairness(series),
    ]
    return [figure for figure in found if figure.data]


def style(number: int) -> dict[str, Any]:
    """Line and marker of the n-th series; at most a dozen markers, so that the dash can be seen."""
    colour = COLOURS[number % len(COLOURS)]
    return {
        "mode": "lines+markers",
        "line": {"color": colour, "dash": DASHES[number % len(DASHES)], "width": 2},
        "marker": {"symbol": MARKERS[number % len(MARKERS)], "size": 7, "color": colour, "maxdisplayed": 12},
    }


def accuracies(series: Sequence[Series]) -> list[Figure]:
    """Accuracy along every axis, with the range of the seeds behind it."""
    found: list[Figure] = []
    floor = max(0.0, 100 * min(each.final()[0] for each in series) - 25)
    for axis in AXES:
        data: list[dict[str, Any]] = []
        for number, each in enumerate(series):
            points = each.curve(axis)
            if not points:
                continue
            x, mean, low, high = (list(values) for values in zip(*points, strict=True))
            if len(each.runs) > 1:
                shade = {"type": "scatter", "x": x + x[::-1], "y": percent(high + low[::-1]), "fill": "toself"}
                quiet = {"hoverinfo": "skip", "showlegend": False, "line": {"width": 0}, "mode": "lines"}
                colour = {"fillcolor": COLOURS[number % len(COLOURS)], "opacity": 0.15}
                data.append({**shade, **quiet, **colour, "legendgroup": each.label})
            line = {"type": "scatter", "name": each.label, "x": x, "y": percent(mean), "legendgroup": each.label}
            data.append({**line, **style(number)})
        layout = {
            "xaxis": {"title": {"text": axis.label}, "type": "log" if axis.log else "linear"},
            # from a little below the worst end, so that the differences can be seen; the start is a double click away
            "yaxis": {"title": {"text": f"{series[0].measure.label}, %"}, "range": [floor, 101]},
        }
        text = "Mean over the seeds; the shaded band runs from the lowest to the highest seed."
        found.append(Figure(f"accuracy-{axis.name}", f"Accuracy against {axis.name}", text, data, layout))
    return found


def sizes(series: Sequence[Series]) -> Figure:
    """Parameters that are left, over the rounds; a model that is not pruned is a level line."""
    data: list[dict[str, Any]] = []
    for number, each in enumerate(series):
        points = remaining(each)
        if points:
            x, y = (list(values) for values in zip(*points, strict=True))
            line = {"type": "scatter", "name": each.label, "x": x, "y": y}
            data.append({**line, **style(number)})
    layout = {
        "xaxis": {"title": {"text": "round"}},
        "yaxis": {"title": {"text": "parameters that are not pruned"}, "rangemode": "tozero"},
    }
    return Figure("size", "Size of the model", "Parameters that are not pruned, after each round.", data, layout)


def heat(label: str, layers: Layers) -> Figure:
    """Share of each layer's weights that is not zero, over the rounds."""
    data = [
        {
            "type": "heatmap",
            "x": layers.rounds,
            "y": layers.names,
            "z": [percent(row) for row in layers.kept],
            "zmin": 0,
            "zmax": 100,
            "colorscale": "Cividis",
            "colorbar": {"title": {"text": "%"}},
        }
    ]
    layout = {"xaxis": {"title": {"text": "round"}}, "yaxis": {"autorange": "reversed", "automargin": True}}
    return Figure(
        f"layers-{label}", f"Layers of {label}", "Share of each layer's weights that is not zero.", data, layout
    )


def kinds(series: Sequence[Series]) -> Figure:
    """Bytes by direction and message class, stacked."""
    every = {each.label: each.kinds() for each in series}
    classes = sorted({key for sums in every.values() for key in sums})
    data: list[dict[str, Any]] = []
    for number, (way, kind) in enumerate(classes):
        first = way not in (each["legendgroup"] for each in data)  # the legend tells directions, the bars their classes
        pattern = {"shape": PATTERNS[number % len(PATTERNS)], "fillmode": "overlay", "solidity": 0.2}
        bar = {"type": "bar", "orientation": "h", "name": way, "legendgroup": way, "showlegend": first}
        colour = {"marker": {"color": COLOURS[way == "up"], "pattern": pattern}}
        sums = [each.get((way, kind), 0.0) / 1e6 for each in every.values()]
        hover = f"{kind} {way}: %{{x:.3f}} MB<extra>%{{y}}</extra>"
        data.append(
            {
                **bar,
                **colour,
                "y": list(every),
                "x": sums,
                "text": kind,
                "textposition": "inside",
                "hovertemplate": hover,
            }
        )
    layout = {
        "barmode": "stack",
        "uniformtext": {"mode": "hide", "minsize": 9},
        "xaxis": {"title": {"text": "megabytes over the run"}},
        "yaxis": {"automargin": True, "autorange": "reversed"},
    }
    text = "Lengths of the encoded messages, heads included, by direction and class."
    return Figure("bytes", "What travelled", text, data, layout)


def fairness(series: Sequence[Series]) -> Figure:
    """Spread of the clients' accuracies on their own validation parts: worst, tenth percentile, median, best."""
    data: list[dict[str, Any]] = []
    for number, each in enumerate(series):
        # of personal models a run has the tenth percentile alone; the other columns are of a head that nobody trained
        columns = {"tenth percentile": "personal_p10"} if each.personal else ENDS
        ends = {name: each.column(column) for name, column in columns.items()}
        if all(ends.values()):
            place = {"type": "scatter", "name": each.label}
            points = {"x": percent([end[-1][1] for end in ends.values()]), "y": list(ends)}
            data.append({**place, **points, **style(number)})
    layout = {
        "xaxis": {"title": {"text": "accuracy on the client's own validation part, %"}},
        "yaxis": {"automargin": True, "categoryorder": "array", "categoryarray": list(ENDS)},
    }
    text = "After the last round: the client that fares worst, the tenth percentile, the median and the best client."
    return Figure("fairness", "Clients", text, data, layout)


def percent(values: Sequence[float]) -> list[float]:
    """Fractions as percent, as precise as they are drawn."""
    return [round(100 * value, 3) for value in values]
