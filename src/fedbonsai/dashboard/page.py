"""The page: made whole on the server, so that it can be read without a script; nothing in it is fetched from elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from html import escape

from fedbonsai.dashboard.attention import attention
from fedbonsai.dashboard.curves import drawing
from fedbonsai.dashboard.facts import DeviceFacts, Picture
from fedbonsai.dashboard.runs import RunFacts
from fedbonsai.dashboard.words import COLUMNS, UNKNOWN, cells, data
from fedbonsai.runs.progress import size

AGAIN = 10  # seconds until the page is loaded again
STATES = {"online": "good", "offline": "warn", "never seen": "warn", "not let in": "bad"}


def page(picture: Picture, still: bool = False) -> str:
    """The page of a federation.

    Args:
        picture: what is shown.
        still: whether it stays as it is; else the browser loads it again by itself.
    """
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "" if still else f'<meta http-equiv="refresh" content="{AGAIN}">',
            "<title>fedbonsai: devices and runs</title>",
            # an icon of nothing, so that no browser asks for one
            '<link rel="icon" href="data:,"><link rel="stylesheet" href="style.css"></head><body><main>',
            *_top(picture, still),
            *_attention(picture),
            *_runs(picture),
            *_devices(picture),
            '<footer><p>The same for programs: <a href="api/devices">devices</a>, <a href="api/runs">runs</a>, '
            '<a href="api/server">server</a> as JSON, <a href="metrics">metrics</a> for Prometheus.</p></footer>',
            "</main></body></html>",
        ]
    )


def _top(picture: Picture, still: bool) -> Iterator[str]:
    devices, server = picture.devices, picture.server
    there = sum(device.state == "online" for device in devices)
    going = sum(run.status in ("running", "starting") for run in picture.runs)
    days = UNKNOWN if server.certificate_days is None else f"{server.certificate_days:.0f} days"
    disk = UNKNOWN if server.disk_free is None else size(server.disk_free)
    yield f"<header><h1>Federation</h1><p>{escape(server.folder)}</p></header>"
    yield '<dl class="tiles">'
    for name, value in (
        ("devices online", f"{there} of {sum(device.enrolled for device in devices)}"),
        ("runs going on", str(going)),
        ("certificate ends in", days),
        ("disk free", disk),
    ):
        yield f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>"
    yield "</dl>"
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(picture.at))
    again = (
        f'It stays as it is; <a href="?">load it every {AGAIN} s</a>.'
        if still
        else f'It is loaded again every {AGAIN} s; <a href="?still">hold it</a>.'
    )
    yield f'<p class="stamp">As of {stamp} UTC. {again}</p>'


def _attention(picture: Picture) -> Iterator[str]:
    yield '<section aria-labelledby="first"><h2 id="first">What needs attention first</h2>'
    notices = attention(picture)
    if not notices:
        yield '<p class="calm">Nothing.</p>'
    else:
        yield '<ul class="notices">'
        for notice in notices:
            sign = "urgent" if notice.grade == "bad" else "look"
            yield (
                f'<li class="{notice.grade}"><span class="sign">{sign}</span> <b>{escape(notice.about)}</b> '
                f"{escape(notice.text)}</li>"
            )
        yield "</ul>"
    yield "</section>"


def _runs(picture: Picture) -> Iterator[str]:
    yield '<section aria-labelledby="runs"><h2 id="runs">Runs</h2>'
    if not picture.runs:
        yield '<p class="calm">None yet: fedbonsai run RECIPE --fleet flower</p>'
    yield '<div class="runs">'
    for run in picture.runs:
        yield from _run(run)
    yield "</div>"
    if picture.older:
        yield f"<p>{picture.older} older runs are not shown.</p>"
    yield "</section>"


def _run(run: RunFacts) -> Iterator[str]:
    grade = "bad" if run.status in ("failed", "died") else "good" if run.status == "running" else "plain"
    method = f'<span class="method">{escape(run.method)}</span> ' if run.method else ""
    yield f'<article><h3>{escape(run.name)}</h3><p>{method}<span class="state {grade}">{escape(run.status)}</span></p>'
    facts = [("round", f"{run.round} of {run.rounds if run.rounds is not None else UNKNOWN}")]
    if run.score is not None and run.best is not None:
        facts.append((run.measure, f"{run.score:.4g} (best {run.best:.4g})"))
    if run.round:
        facts.append(("down / up", f"{size(run.bytes_down)} / {size(run.bytes_up)}"))
    if run.seconds is not None:
        facts.append(("a round takes", f"{run.seconds:.1f} s"))
    if run.answered is not None:
        facts.append(("answered last", str(run.answered)))
    yield (
        "<dl>"
        + "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
        + "</dl>"
    )
    for text in (run.doing, run.reason, run.trouble):
        if text:
            yield f'<p class="said">{escape(text)}</p>'
    for curve in run.curves:
        yield f"<figure><figcaption>{escape(curve.name)}</figcaption>{drawing(curve)}</figure>"
    yield "</article>"


def _devices(picture: Picture) -> Iterator[str]:
    yield '<section aria-labelledby="devices"><h2 id="devices">Devices</h2>'
    if not picture.devices:
        yield '<p class="calm">None yet: copy a device\'s .pub file into the folder devices of the federation.</p></section>'
        return
    yield '<div class="scroll" tabindex="0" role="region" aria-labelledby="devices"><table><thead><tr>'
    yield "".join(f'<th scope="col" title="{escape(column.about)}">{escape(column.head)}</th>' for column in COLUMNS)
    yield "</tr></thead><tbody>"
    for device in sorted(picture.devices, key=_rank):
        first, state, *rest = cells(device, picture.at)
        tail = [(cell, _look(cell, device)) for cell in rest]
        row = [(state, f"state {STATES.get(device.state, 'plain')}"), *tail]
        yield f'<tr><th scope="row">{escape(first)}</th>' + "".join(
            f'<td class="{look}">{escape(cell)}</td>' for cell, look in row
        )
        yield "</tr>"
    yield "</tbody></table></div></section>"


def _look(cell: str, device: DeviceFacts) -> str:
    if cell == UNKNOWN:
        return "quiet"
    return "state bad" if device.refused and cell == data(device) else "plain"


def _rank(device: DeviceFacts) -> tuple[int, str]:
    """Devices that are refused before those that are away, these before those that are there."""
    grade = "bad" if device.refused and device.state != "out" else STATES.get(device.state, "plain")
    return ("bad", "warn", "plain", "good").index(grade), device.name
