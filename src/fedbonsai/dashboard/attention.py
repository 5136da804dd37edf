"""What an operator should look at first, the worst before the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fedbonsai.dashboard.facts import DeviceFacts, Picture, ServerFacts
from fedbonsai.dashboard.runs import RunFacts
from fedbonsai.dashboard.words import ago, size
from fedbonsai.fleets.flower.federation import RENEW, SOON

ROOM = 5e9  # bytes of disk below which it is nearly full,
SHARE = 0.05  # or part of a small one
FULL = 2e8  # bytes below which the next round may not find room
NAMED = 5  # devices in a line
LATELY = 86_400.0  # seconds for which an error of a device or of a run is news


@dataclass(frozen=True)
class Notice:
    """One thing."""

    grade: Literal["bad", "warn"]
    about: str
    text: str


def attention(picture: Picture) -> list[Notice]:
    """Notices, those that are ``bad`` first."""
    found = [
        *_server(picture.server),
        *(notice for run in picture.runs for notice in _run(run, picture.at)),
        *_devices(picture),
    ]
    return sorted(found, key=lambda notice: notice.grade != "bad")


def _server(server: ServerFacts) -> Iterator[Notice]:
    if not server.running:
        yield Notice("bad", "server", f"does not run; start it: fedbonsai serve --folder {server.folder}")
    days = server.certificate_days
    if days is not None and days <= 0:
        yield Notice("bad", "certificate", f"has ended, devices refuse it; {RENEW}")
    elif days is not None and days < SOON:
        yield Notice("warn", "certificate", f"ends in {days:.0f} days; {RENEW}")
    free, total = server.disk_free, server.disk_total
    if free is not None and total is not None and free < max(FULL, min(ROOM, SHARE * total)):
        yield Notice("bad" if free < FULL else "warn", "disk", f"{size(free)} of {size(total)} are free; make room")


def _run(run: RunFacts, now: float) -> Iterator[Notice]:
    if run.status in ("failed", "died"):
        if run.changed is None or now - run.changed < LATELY:
            why = run.reason or "its process ended without a word"
            then = f"fedbonsai run --resume {run.folder}" if run.round else "run it again"
            yield Notice("bad", f"run {run.name}", f"{run.status}: {why}; then: {then}")
    elif run.status == "not known":
        yield Notice("warn", f"run {run.name}", run.reason)
    elif run.status == "running":
        if run.disk_free is not None and run.disk_free < FULL:
            yield Notice(
                "bad", f"run {run.name}", f"{size(run.disk_free)} are free on the disk of {run.folder}; make room"
            )
        if run.fruitless:
            yield Notice("warn", f"run {run.name}", f"{run.fruitless} of {run.round} rounds brought no update")
        if run.silent:
            yield Notice("warn", f"run {run.name}", f"round {run.round}: {run.trouble}")


def _devices(picture: Picture) -> Iterator[Notice]:
    """Refusals one by one for those who are there, by the reason; who is away in one line."""
    refused: dict[str, list[str]] = {}
    away: list[DeviceFacts] = []
    lately: dict[str, list[str]] = {}
    for device in picture.devices:
        if device.refused and device.state != "out":
            refused.setdefault(device.refused, []).append(device.name)
        if device.state in ("offline", "never seen"):
            away.append(device)
        if (
            device.error_at is not None
            and picture.at - device.error_at < LATELY
            and device.enrolled
            and _last_was_silent(device)
        ):
            lately.setdefault(device.error, []).append(device.name)
    for why, names in refused.items():
        yield Notice("bad", _named(names), f"cannot take part: {why}")
    if waits := [
        each.name for each in picture.devices if each.state == "not let in" and each.waits and not each.refused
    ]:
        yield Notice(
            "warn", _named(waits), "waits to be let in: a server that runs does so within seconds, or says why not"
        )
    for state in ("offline", "never seen"):
        if those := [device for device in away if device.state == state]:
            seen = max((device.last_seen for device in those if device.last_seen), default=None)
            tail = f"; the last of them was seen {ago(seen, picture.at)}" if seen else ""
            yield Notice("warn", _named([device.name for device in those]), f"{state}{tail}")
    for why, names in lately.items():
        yield Notice("warn", _named(names), f"silent when asked last: {why}")


def _last_was_silent(device: DeviceFacts) -> bool:
    """Whether a device was silent when it was asked last."""
    return device.answered_at is None or (device.error_at or 0.0) > device.answered_at


def _named(names: list[str]) -> str:
    count = len(names)
    if count == 1:
        return f"device {names[0]}"
    return f"{count} devices ({', '.join(names[:NAMED])}{', ...' if count > NAMED else ''})"
