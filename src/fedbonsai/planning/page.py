"""The page of a plan: recommendation, front, trials and finalists, in the look of all reports."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from fedbonsai.planning.answer import HEADS, Answer
from fedbonsai.planning.limits import KINDS
from fedbonsai.planning.quantities import said
from fedbonsai.planning.search import Candidate, described
from fedbonsai.reports.costs import Table
from fedbonsai.reports.figures import COLOURS, MARKERS, Figure, style
from fedbonsai.reports.page import document, frame, table

SHOWN = 8  # curves that can be told apart


def page(answer: Answer) -> str:
    """The page of an answer.

    Raises:
        Missing: Plotly is not installed.
    """
    drawn = [figure for figure in (fronts(answer), finals(answer), curves(answer)) if figure.data]
    notes = [html.escape(note[:1].upper() + note[1:]) for note in answer.notes()]
    ruled = answer.ruled_out()
    title = (
        f"Plan for {answer.question.base['data'].get('name') or answer.question.base['data'].get('path', 'these data')}"
    )
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="caution">{html.escape(answer.sentence())}</p>',
        table(answer.rows()),
        '<div class="figures">',
        *(frame(figure) for figure in drawn),
        "</div>",
        table(ruled) if ruled.rows else "",
        table(trials(answer)),
        "<h2>How this came about</h2>",
        *(f"<p>{note}.</p>" for note in notes),
        f"<details><summary>best.toml</summary><pre>{html.escape(answer.recipe())}</pre></details>",
    ]
    return document(title, body, drawn)


def fronts(answer: Answer) -> Figure:
    """All settings that trained, and the front: the measure against the bytes of a device."""
    measure = answer.question.objective.measure
    there = {each.number for each in answer.front()}
    some = answer.search.feasible()
    groups = {
        "on the front": [each for each in some if each.number in there],
        "trained whole": [each for each in some if each.number not in there and each.whole],
        "left behind": [each for each in some if each.number not in there and not each.whole],
    }
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            **_points(answer, members),
            "marker": {"symbol": MARKERS[number], "size": 9 - 2 * bool(number), "color": COLOURS[number]},
            "hovertemplate": "%{text}<br>%{x:.4g} MB: %{y:.4g}<extra></extra>",
        }
        for number, (name, members) in enumerate(groups.items())
        if members
    ]
    limit = answer.question.limits.set.get("bytes")
    lines: list[dict[str, Any]] = []
    if limit:
        lines.append({"type": "line", "x0": limit / 1e6, "x1": limit / 1e6, "yref": "paper", "y0": 0, "y1": 1})
        lines[-1]["line"] = {"dash": "dot", "color": COLOURS[7]}
    layout = {
        "xaxis": {"title": {"text": "megabytes of the device that moves most"}, "type": "log"},
        "yaxis": {"title": {"text": measure.headed(f"validation {measure.words}")}},
        "shapes": lines,
    }
    text = "Each point is a setting after the rounds that it trained within the limits; a dotted line is the limit."
    return Figure("front", f"{measure.words.capitalize()} against bytes", text, data, layout)


def _points(answer: Answer, members: Sequence[Candidate]) -> dict[str, Any]:
    measure = answer.question.objective.measure
    found: dict[str, list[Any]] = {"x": [], "y": [], "text": []}
    for each in members:
        rounds = answer.search.counted(each)
        assert each.standing is not None
        found["x"].append(each.standing.bytes[rounds - 1] / 1e6)
        found["y"].append(measure.scaled(each.standing.value(rounds)))
        found["text"].append(described(each.asked.labels))
    return found


def curves(answer: Answer) -> Figure:
    """The validation measure of the settings of the front along the bytes of a device."""
    measure = answer.question.objective.measure
    data: list[dict[str, Any]] = []
    for number, each in enumerate(answer.front()[:SHOWN]):
        rounds = answer.search.counted(each)
        assert each.standing is not None
        x = [size / 1e6 for size in each.standing.bytes[:rounds]]
        y = [measure.scaled(value) for value in each.standing.values[:rounds]]
        data.append({"type": "scatter", "name": described(each.asked.labels), "x": x, "y": y, **style(number)})
    layout = {
        "xaxis": {"title": {"text": "megabytes of the device that moves most"}, "type": "log"},
        "yaxis": {"title": {"text": measure.headed(f"validation {measure.words}")}},
    }
    return Figure(
        "curves", "How they came there", "Validation measure of the front's settings, round by round.", data, layout
    )


def finals(answer: Answer) -> Figure:
    """Finalists: validation and test measure over seeds, with intervals."""
    measure = answer.question.objective.measure
    some = [each for each in answer.finals if each.runs]
    data: list[dict[str, Any]] = []
    for number, (name, values) in enumerate(
        {
            "validation": [each.valid(answer.question) for each in some],
            "test": [each.test(answer.question) for each in some],
        }.items()
    ):
        if not some:
            break
        halves = [0.0 if each.half == float("inf") else measure.scaled(each.half) for each in values]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [measure.scaled(each.mean) for each in values],
                "y": [described(each.candidate.asked.labels) for each in some],
                "error_x": {"type": "data", "array": halves},
                "marker": {"symbol": MARKERS[number], "size": 9, "color": COLOURS[number]},
            }
        )
    layout = {
        "xaxis": {"title": {"text": measure.headed(measure.words)}},
        "yaxis": {"automargin": True, "autorange": "reversed"},
    }
    text = f"Mean over {answer.seeds} seeds with the 95 % interval of Student's t."
    return Figure("finalists", "Finalists on other seeds", text, data, layout)


def trials(answer: Answer) -> Table:
    """Every setting that was looked at."""
    measure = answer.question.objective.measure
    rows: list[list[str]] = []
    shown = ("bytes", "seconds") if answer.question.base.get("clock", {}).get("devices") else ("bytes",)
    for each in answer.search.candidates.values():
        rounds = answer.search.counted(each)
        value = measure.cell(each.standing.value(rounds)) if each.standing is not None and rounds else ""
        costs = each.standing.costs(rounds) if each.standing is not None and rounds else {}
        became = each.out[0] or ("trained whole" if each.whole else f"left behind after rung {each.rung + 1}")
        cells = [said(costs[name], KINDS[name]) if name in costs else "" for name in shown]
        rows.append([described(each.asked.labels), str(rounds), value, *cells, became])
    head = [
        "setting",
        "rounds",
        measure.headed(f"validation {measure.words}"),
        *(HEADS[name] for name in shown),
        "became",
    ]
    return Table("All settings", head, rows)
