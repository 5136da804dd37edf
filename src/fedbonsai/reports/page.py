"""One HTML page that needs no network: tables, interactive plots, and where every number comes from."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from fedbonsai.errors import Missing
from fedbonsai.reports.anatomy import layers
from fedbonsai.reports.costs import Table, classes, clocked, outcomes, to_goal
from fedbonsai.reports.figures import Figure, figures
from fedbonsai.reports.series import Series, cautions
from fedbonsai.runs.structure import unstructure


def page(series: Sequence[Series], reference: Series, goal: float, title: str, remarks: Sequence[str] = ()) -> str:
    """The page of some series.

    Args:
        series: what is shown, in this order.
        reference: against which costs are told.
        goal: value to which they are told.
        title: of the page.
        remarks: that stand before the tables.

    Raises:
        Missing: Plotly is not installed.
    """
    drawn = figures(series, {each.label: layers(each.runs[0]) for each in series})
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{summary(series)}</p>",
        *(f'<p class="caution">{html.escape(text)}</p>' for text in [*remarks, *cautions(series)]),
        *(table(each) for each in (outcomes(series), clocked(series), to_goal(series, reference, goal)) if each.rows),
        '<div class="figures">',
        *(frame(figure) for figure in drawn),
        "</div>",
        table(classes(series)),
        "<h2>Where this comes from</h2>",
        *(origin(each) for each in series),
    ]
    return document(title, body, drawn)


def document(title: str, body: Sequence[str], drawn: Sequence[Figure]) -> str:
    """A whole page in the house's look.

    Args:
        title: of the page.
        body: its HTML, with a `frame` for each figure.
        drawn: the figures.

    Raises:
        Missing: Plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise Missing("pages need plotly: pip install 'fedbonsai[sim]'") from None
    plots = {figure.name: {"data": figure.data, "layout": figure.layout} for figure in drawn}
    files = resources.files("fedbonsai.reports")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            # an icon of nothing, so that no browser asks a server for one
            '<link rel="icon" href="data:,">',
            f"<style>{(files / 'page.css').read_text(encoding='utf-8')}</style></head><body><main>",
            *body,
            "</main>",
            f"<script>{get_plotlyjs()}</script>",
            f"<script>const PLOTS = {embedded(plots)};\n{(files / 'page.js').read_text(encoding='utf-8')}</script>",
            "</body></html>",
        ]
    )


def summary(series: Sequence[Series]) -> str:
    """A sentence on what is compared."""
    first = series[0].runs[0]
    count = sum(len(each.runs) for each in series)
    data = first.info["data"]["name"]
    most = first.info["data"].get("majority")  # as runs of earlier versions have it
    least = first.info["data"].get("floor", most and {"answer": repr(most["class"]), "value": most["accuracy"]})
    reached = f"{first.measure.words} {first.measure.text(least['value'], 1)}" if least else ""
    floor = f" Always answering {least['answer']} reaches {reached} on its test set." if least else ""
    runs = "1 run" if count == 1 else f"{count} runs of {len(series)} configurations"
    hint = "Drag in a plot to zoom, double-click to see all of it."
    told = f"{runs} on {html.escape(str(data))}.{html.escape(floor)}"
    return f"{told} Bytes are lengths of encoded messages, in both directions. {hint}"


def table(content: Table) -> str:
    """A table that scrolls in itself on a narrow screen."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in content.head)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in content.rows)
    return (
        f'<h2>{html.escape(content.title)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def frame(figure: Figure) -> str:
    """Where the script draws a figure."""
    return (
        f'<figure><h3>{html.escape(figure.title)}</h3><div class="plot" id="{html.escape(figure.name, quote=True)}"></div>'
        f"<figcaption>{html.escape(figure.text)}</figcaption></figure>"
    )


def origin(series: Series) -> str:
    """Configuration, seeds, versions, machine and commit of a series."""
    run = series.runs[0]
    facts: Mapping[str, Any] = {
        "seeds": ", ".join(str(each.config.seed) for each in series.runs),
        "folders": ", ".join(str(each.path) for each in series.runs),
        "commit": ", ".join(sorted({str(each.info.get("commit")) for each in series.runs})),
        "versions": ", ".join(f"{name} {version}" for name, version in run.info["versions"].items()),
        "machine": ", ".join(f"{name} {value}" for name, value in run.info["machine"].items()),
        **run.info.get("notes", {}),
        "rounds skipped": sum(bool(row["skipped"]) for each in series.runs for row in each.metrics),
        **{
            f"clients {kind}, all rounds": sum(row.get(kind, 0) for each in series.runs for row in each.metrics)
            for kind in ("silent", "rejected")
        },
    }
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in facts.items())
    settings = html.escape(json.dumps(unstructure(run.config), indent=2, default=str))
    return (
        f"<details><summary>{html.escape(series.label)}</summary>"
        f'<div class="scroll"><table>{rows}</table></div><pre>{settings}</pre></details>'
    )


def embedded(value: object) -> str:
    """JSON that cannot end the script around it."""
    return json.dumps(value).replace("<", "\\u003c")
