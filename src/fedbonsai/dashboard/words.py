"""Facts as people read them: times, bytes, and the cells of the table of devices, which page and terminal share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fedbonsai.dashboard.facts import DeviceFacts
from fedbonsai.runs.progress import size

UNKNOWN = "not known"
DAY = 86_400


def ago(then: float | None, now: float) -> str:
    """How long ago something was.

    >>> ago(100.0, 104.0), ago(0.5, 7300.0), ago(None, 0.0)
    ('4 s ago', '2 h ago', 'not known')
    """
    if then is None:
        return UNKNOWN
    seconds = max(0, int(now - then))
    for unit, length in (("d", DAY), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def known(value: object) -> str:
    """A value, or that it is not known."""
    return UNKNOWN if value is None or value == "" else str(value)


def data(device: DeviceFacts) -> str:
    """Whether a device's samples fit the task, and how many there are."""
    if device.fits is None:
        return UNKNOWN
    return f"fits, {device.train or 0:,} + {device.valid or 0:,}" if device.fits else "cannot take part"


def rounds(device: DeviceFacts) -> str:
    """Rounds that a device answered, and how often it was silent."""
    return known(device.rounds) + (f", {device.silent} silent" if device.silent else "")


def moved(device: DeviceFacts) -> str:
    """Bytes to and from a device."""
    if device.bytes_down is None or device.bytes_up is None:
        return UNKNOWN
    return f"{size(device.bytes_down)} / {size(device.bytes_up)}"


class Column(NamedTuple):
    """A column of the table of devices: its head, what it means, and a cell of it for a device and the time."""

    head: str
    about: str
    cell: Callable[[DeviceFacts, float], str]


COLUMNS = (
    Column("device", "the name of its key's file", lambda device, _: device.name),
    Column("state", "online: it was at the server's door within a minute", lambda device, _: device.state),
    Column("enrolled", "whether its key was let in", lambda device, _: "yes" if device.enrolled else "no"),
    Column("last seen", "when it was last at the door", lambda device, now: ago(device.last_seen, now)),
    Column("version", "of fedbonsai", lambda device, _: known(device.version)),
    Column("machine", "its architecture", lambda device, _: known(device.machine)),
    Column("data", "whether they fit the task: samples to learn from + to decide on", lambda device, _: data(device)),
    Column(
        "rounds",
        "of which an answer came, and questions that got none, over all runs",
        lambda device, _: rounds(device),
    ),
    Column("down / up", "encoded bytes to the device and from it", lambda device, _: moved(device)),
    Column(
        "seconds",
        "from request to answer, on the server's clock: the mean over all answers",
        lambda device, _: UNKNOWN if device.seconds is None else f"{device.seconds:.1f}",
    ),
    Column("last error", "why it could not take part, or was silent last", lambda device, now: trouble(device, now)),
)


def trouble(device: DeviceFacts, now: float) -> str:
    """What was wrong last; a dash where nothing was."""
    if device.refused:
        return device.refused
    return f"{device.error} ({ago(device.error_at, now)}, {device.error_run})" if device.error else "-"


def cells(device: DeviceFacts, now: float) -> list[str]:
    """A row of the table."""
    return [column.cell(device, now) for column in COLUMNS]
