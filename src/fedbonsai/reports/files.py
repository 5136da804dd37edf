"""The same report as files for a paper or a spreadsheet: Markdown and CSV tables, PNG and SVG plots, and the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from fedbonsai.disk import room_for
from fedbonsai.errors import ConfigError, Missing
from fedbonsai.reports.costs import classes, clocked, measured, outcomes, to_goal
from fedbonsai.reports.figures import COLOURS, scaled
from fedbonsai.reports.page import page
from fedbonsai.reports.series import Series, cautions

KINDS = (".html", ".png", ".svg", ".csv", ".md")
DASHES = ("-", "--", ":", "-.", (0, (8, 3)), (0, (8, 3, 2, 3)))
MARKERS = "osDP^X*p"


def write(
    target: Path,
    series: Sequence[Series],
    reference: Series,
    goal: float,
    title: str = "fedbonsai",
    remarks: Sequence[str] = (),
) -> None:
    """Write one file; its ending says which kind. Pages and Markdown tell the remarks before their tables.

    Raises:
        ConfigError: no such kind.
        Missing: a library that the kind needs is not installed.
    """
    kind = kind_of(target)
    if kind in (".png", ".svg"):
        picture(target, series)
    elif kind == ".html":
        target.write_text(page(series, reference, goal, title, remarks), encoding="utf-8", errors="replace")
    elif kind == ".csv":
        target.write_text(curves(series), encoding="utf-8", errors="replace")
    else:
        tables = [outcomes(series), clocked(series), to_goal(series, reference, goal), classes(series)]
        said = "".join(f"{text}\n\n" for text in [*remarks, *cautions(series)])
        shown = "\n".join(table.markdown() for table in tables if table.rows)
        target.write_text(f"# {title}\n\n{said}{shown}{noted(series)}", encoding="utf-8", errors="replace")


def kind_of(target: Path) -> str:
    """Kind of a report's file, by its ending; its folder is made.

    Raises:
        ConfigError: no such kind, or no file can be there.
    """
    kind = target.suffix.lower()
    if kind not in KINDS:
        raise ConfigError(f"{target}: a report is one of {', '.join(KINDS)}, not {kind or 'a file without an ending'}")
    room_for(target)
    return kind


def noted(series: Sequence[Series]) -> str:
    """What a method says must stand beside its numbers."""
    notes = {each.label: each.runs[0].info.get("notes", {}) for each in series}
    return "".join(
        f"\n## Notes on {label}\n\n" + "".join(f"- {name}: {value}\n" for name, value in entries.items())
        for label, entries in notes.items()
        if entries
    )


def curves(series: Sequence[Series]) -> str:
    """Every point of every curve as comma-separated values: run, axis, place, mean, lowest and highest value."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["run", "axis", "value", series[0].measure.name, "lowest", "highest"])
    for each in series:
        for axis in measured(series):
            table.writerows(
                [each.label, axis.name, f"{x:.10g}", f"{mean:.6g}", f"{low:.6g}", f"{high:.6g}"]
                for x, mean, low, high in each.curve(axis)
            )
    return text.getvalue()


def picture(target: Path, series: Sequence[Series]) -> None:
    """The measure along every axis on which there are figures; lines differ by dash and marker as well as by colour.

    Raises:
        Missing: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise Missing("plots need matplotlib: pip install 'fedbonsai[sim]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes, measure = measured(series), series[0].measure
    columns = min(3, len(axes))
    rows = -(-len(axes) // columns)
    figure, places = pyplot.subplots(
        rows, columns, figsize=(5.2 * columns, 4.0 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    for place in places.flat[len(axes) :]:
        place.set_visible(False)
    for place, axis in zip(places.flat, axes, strict=False):
        for number, each in enumerate(series):
            points = each.curve(axis)
            if not points:
                continue
            x, mean, low, high = (list(values) for values in zip(*points, strict=True))
            mean, low, high = (scaled(measure, values) for values in (mean, low, high))
            colour = COLOURS[number % len(COLOURS)]
            place.plot(
                x,
                mean,
                label=each.label,
                color=colour,
                linestyle=DASHES[number % len(DASHES)],
                marker=MARKERS[number % len(MARKERS)],
                markevery=max(1, len(x) // 10),
                markersize=4,
            )
            if len(each.runs) > 1:
                place.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        place.set(xlabel=axis.label, xscale="log" if axis.log else "linear")
        place.grid(alpha=0.3)
    for line in places:
        line[0].set_ylabel(measure.headed(series[0].judged))
    places.flat[0].legend(loc="lower right" if measure.better == "higher" else "upper right", fontsize=8)
    figure.savefig(target, dpi=150)
    pyplot.close(figure)
