"""The figures of a page, as Plotly's JSON: every series has its own dash and marker, so that no colour is needed.

Only data and meaning are here; fonts, grids and colours of light and dark are the page's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedbonsai.objectives import Measure
from fedbonsai.reports.anatomy import Layers, remaining
from fedbonsai.reports.series import AXES, Series

# eight hues that differ in lightness too (Okabe and Ito), readable on white and on near-black
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c6bb1", "#7f7f7f")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "pentagon")
WRITTEN = 12  # classes for which counts have room in a figure
TAIL = "tenth from the worst"
ENDS = {  # of clients, by which way is better
    "higher": {"worst": "client_min", TAIL: "client_p10", "median": "client_median", "best": "client_max"},
    "lower": {"worst": "client_max", TAIL: "client_p90", "median": "client_median", "best": "client_min"},
}
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
        *scores(series),
        sizes(series),
        *(heat(label, each) for label, each in layers.items() if each.kept),
        *(confusion(each) for each in series if not each.personal),
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


def scores(series: Sequence[Series]) -> list[Figure]:
    """The measure along every axis, with the range of the seeds behind it."""
    found: list[Figure] = []
    measure = series[0].measure
    y = {"title": {"text": measure.headed(series[0].judged)}} | window(measure, [each.final()[0] for each in series])
    for axis in AXES:
        data: list[dict[str, Any]] = []
        for number, each in enumerate(series):
            points = each.curve(axis)
            if not points:
                continue
            x, mean, low, high = (list(values) for values in zip(*points, strict=True))
            if len(each.runs) > 1:
                shade = {"type": "scatter", "x": x + x[::-1], "y": scaled(measure, high + low[::-1]), "fill": "toself"}
                quiet = {"hoverinfo": "skip", "showlegend": False, "line": {"width": 0}, "mode": "lines"}
                colour = {"fillcolor": COLOURS[number % len(COLOURS)], "opacity": 0.15}
                data.append({**shade, **quiet, **colour, "legendgroup": each.label})
            line = {
                "type": "scatter",
                "name": each.label,
                "x": x,
                "y": scaled(measure, mean),
                "legendgroup": each.label,
            }
            data.append({**line, **style(number)})
        layout = {
            "xaxis": {"title": {"text": axis.label}, "type": "log" if axis.log else "linear"},
            "yaxis": y,
        }
        lower = " Lower is better." if measure.better == "lower" else ""
        text = f"Mean over the seeds; the shaded band runs from the lowest to the highest seed.{lower}"
        title = f"{measure.words.capitalize()} against {axis.name}"
        found.append(Figure(f"{measure.name}-{axis.name}", title, text, data, layout))
    return found


def window(measure: Measure, ends: Sequence[float]) -> dict[str, Any]:
    """From a little beyond the worst end, so that differences can be seen; the start of the curves is a double click away."""
    worst, best = measure.worst(ends), measure.best(ends)
    if measure.most == 1:
        return {"range": scaled(measure, [max(measure.least, worst - 0.25), 1.01])}
    if measure.better == "lower" and best > 0:
        return {"range": scaled(measure, [0.8 * best, 1.5 * worst])}
    return {}


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
            "z": [[round(100 * kept, 3) for kept in row] for row in layers.kept],
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


def confusion(series: Series) -> Figure:
    """How often the first run's final model took each class of the test set for each; nothing where it is not known."""
    info = series.runs[0].info
    counts: list[list[int]] = info.get("confusion", [])
    names = [str(name) for name in info["data"].get("classes", [])]
    data = [
        {
            "type": "heatmap",
            "x": names,
            "y": names,
            "z": [[round(100 * count / max(1, sum(row)), 3) for count in row] for row in counts],
            "text": counts,
            "hovertemplate": "%{y} taken for %{x}: %{text} samples, %{z:.1f} %<extra></extra>",
            "zmin": 0,
            "zmax": 100,
            "colorscale": "Cividis",
            "colorbar": {"title": {"text": "%"}},
            **({"texttemplate": "%{text}"} if len(counts) <= WRITTEN else {}),
        }
    ]
    layout = {
        "xaxis": {"title": {"text": "taken for"}, "type": "category", "automargin": True},
        "yaxis": {"title": {"text": "class"}, "type": "category", "autorange": "reversed", "automargin": True},
    }
    text = "Of the test samples of each class, how many the final model took for each; colours are shares of the class."
    return Figure(f"confusion-{series.label}", f"Classes by {series.label}", text, data if counts else [], layout)


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
    """Spread of the clients on their own validation parts: worst, tenth percentile of bad ones, median, best."""
    data: list[dict[str, Any]] = []
    measure = series[0].measure
    every = ENDS[measure.better]
    for number, each in enumerate(series):
        # of personal models a run has the tenth percentile alone; the other columns are of a head that nobody trained
        columns = {TAIL: every[TAIL].replace("client", "personal")} if each.personal else every
        ends = {name: each.column(column) for name, column in columns.items()}
        if all(ends.values()):
            place = {"type": "scatter", "name": each.label}
            points = {"x": scaled(measure, [end[-1][1] for end in ends.values()]), "y": list(ends)}
            data.append({**place, **points, **style(number)})
    layout = {
        "xaxis": {"title": {"text": measure.headed(f"{measure.words} on the client's own validation part")}},
        "yaxis": {"automargin": True, "categoryorder": "array", "categoryarray": list(every)},
    }
    text = "After the last round: the client that fares worst, the one than which a tenth fare worse, the median, and the best."
    return Figure("fairness", "Clients", text, data, layout)


def scaled(measure: Measure, values: Sequence[float]) -> list[float]:
    """Values in the unit of their measure."""
    return [measure.scaled(value) for value in values]
