"""The same facts for programs: JSON, and Prometheus' text format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from fedbonsai.dashboard.attention import attention
from fedbonsai.dashboard.facts import DeviceFacts, Picture
from fedbonsai.dashboard.runs import RunFacts


def devices(picture: Picture) -> dict[str, Any]:
    """Devices, as ``/api/devices`` has them."""
    return {"at": picture.at, "devices": [asdict(device) for device in picture.devices]}


def runs(picture: Picture) -> dict[str, Any]:
    """Runs, as ``/api/runs`` has them: the newest first."""
    return {"at": picture.at, "runs": [asdict(run) for run in picture.runs], "older": picture.older}


def server(picture: Picture) -> dict[str, Any]:
    """The server and what needs attention, as ``/api/server`` has them."""
    notices = [asdict(notice) for notice in attention(picture)]
    return {"at": picture.at, "server": asdict(picture.server), "attention": notices}


def encoded(table: dict[str, Any]) -> str:
    """JSON."""
    return json.dumps(table, ensure_ascii=False, allow_nan=False)


DEVICE: tuple[tuple[str, str, str, Callable[[DeviceFacts], float | None]], ...] = (
    ("online", "gauge", "1 if it was seen within a minute", lambda device: device.state == "online"),
    ("last_seen_seconds", "gauge", "seconds since 1970", lambda device: device.last_seen),
    ("refused", "gauge", "1 if it cannot take part", lambda device: bool(device.refused)),
    ("rounds_total", "counter", "rounds of which an answer came", lambda device: device.rounds),
    ("silent_total", "counter", "questions that it did not answer", lambda device: device.silent),
    ("sent_bytes_total", "counter", "encoded bytes to the device", lambda device: device.bytes_down),
    ("received_bytes_total", "counter", "encoded bytes from the device", lambda device: device.bytes_up),
    ("answer_seconds", "gauge", "mean from request to answer", lambda device: device.seconds),
)
RUN: tuple[tuple[str, str, str, Callable[[RunFacts], float | None]], ...] = (
    ("running", "gauge", "1 while it goes on", lambda run: run.status == "running"),
    ("failed", "gauge", "1 if it failed or died", lambda run: run.status in ("failed", "died")),
    ("rounds_total", "counter", "rounds that are over", lambda run: run.round),
    ("score", "gauge", "the measure that decides, last", lambda run: run.score),
    ("silent", "gauge", "devices that were silent in the last round", lambda run: run.silent),
)


def metrics(picture: Picture) -> str:
    """Figures in Prometheus' text format, as ``/metrics`` has them; what is not known is left out."""
    return "".join(f"{line}\n" for line in _lines(picture))


def _lines(picture: Picture) -> Iterator[str]:
    server = picture.server
    for name, about, value in (
        ("certificate_days", "days until the server's certificate ends", server.certificate_days),
        ("disk_free_bytes", "on the server", server.disk_free),
    ):
        if value is not None:
            yield from (
                f"# HELP fedbonsai_{name} {about}",
                f"# TYPE fedbonsai_{name} gauge",
                f"fedbonsai_{name} {value}",
            )
    for name, kind, about, of in DEVICE:
        yield from (f"# HELP fedbonsai_device_{name} {about}", f"# TYPE fedbonsai_device_{name} {kind}")
        for device in picture.devices:
            if (value := of(device)) is not None:
                yield f'fedbonsai_device_{name}{{device="{_label(device.name)}"}} {float(value)!r}'
    for name, kind, about, of in RUN:
        yield from (f"# HELP fedbonsai_run_{name} {about}", f"# TYPE fedbonsai_run_{name} {kind}")
        for run in picture.runs:
            if (value := of(run)) is not None:
                yield f'fedbonsai_run_{name}{{run="{_label(run.folder)}"}} {float(value)!r}'


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
