"""A link as data: how long so many bytes take to a device or back.

Three kinds: ``fixed`` rates, a ``trace`` of rates over time that repeats, and ``cell``, a wireless cell that devices
share (`fedbonsai.devices.channel`). Lost packets are sent again until they arrive: with loss p a byte is sent 1/(1-p)
times in the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedbonsai.devices.channel import Cell
from fedbonsai.devices.figures import Figure, Reader, Table, load
from fedbonsai.errors import ConfigError

Way = Literal["down", "up"]


@dataclass(frozen=True)
class Ask:
    """What a link may know of the ask of which a transfer is a part."""

    devices: tuple[str, ...]
    """Ids of all who were asked."""
    seed: int = 0
    round: int = 0
    same: bool = False
    """Whether all were sent one and the same message, so that one broadcast serves them."""
    bandwidth: Mapping[str, float] = field(default_factory=dict[str, float])
    """Hz that the server granted to a device, by id; others have an equal share."""


class Link(Protocol):
    """What carries messages between the server and one device."""

    @property
    def name(self) -> str:
        """As in a recipe."""
        ...

    @property
    def about(self) -> str:
        """One line on what it is."""
        ...

    def seconds(self, way: Way, size: int, start: float, device: str, ask: Ask) -> float:
        """Seconds that ``size`` bytes take when they leave at second ``start`` of the simulated time."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Rates that never change."""

    name: str
    about: str
    down: Figure
    """Bits a second to the device."""
    up: Figure
    """Bits a second from the device."""
    latency: Figure
    """Seconds from one end to the other."""
    loss: Figure
    """Probability that a packet is lost."""

    def seconds(self, way: Way, size: int, start: float, device: str, ask: Ask) -> float:
        """Latency, and the bits with what is sent again."""
        rate = self.down.value if way == "down" else self.up.value
        return self.latency.value + 8 * size / (rate * (1 - self.loss.value)) if size else 0.0


@dataclass(frozen=True)
class Trace:
    """Rates over time: ``down[i]`` and ``up[i]`` hold from ``times[i]`` on; after ``period`` it begins again."""

    name: str
    about: str
    times: tuple[float, ...]
    down: tuple[float, ...]
    up: tuple[float, ...]
    period: float
    latency: Figure
    loss: Figure
    source: str

    def seconds(self, way: Way, size: int, start: float, device: str, ask: Ask) -> float:
        """Latency, and the time in which the rates carry the bits."""
        if not size:
            return 0.0
        edges = np.array([*self.times, self.period])
        done = np.concatenate([[0.0], np.cumsum(np.diff(edges) * np.array(self.down if way == "down" else self.up))])
        begin = start + self.latency.value
        whole, offset = divmod(begin, self.period)
        target = float(np.interp(offset, edges, done)) + 8 * size / (1 - self.loss.value)
        rounds, rest = divmod(target, float(done[-1]))
        return whole_seconds(rounds, rest, edges, done, self.period) + self.period * whole - start


def whole_seconds(
    rounds: float, rest: float, edges: NDArray[np.float64], done: NDArray[np.float64], period: float
) -> float:
    """When ``rounds`` periods and ``rest`` bits more are through, counted from the beginning of a period."""
    if rest <= 0:  # the last bit ends with a period, or with its last second that has a rate
        return (rounds - 1) * period + float(edges[int(np.searchsorted(done, done[-1], "left"))])
    place = int(np.searchsorted(done, rest, "left"))  # a stretch without a rate adds no bits: the first end counts
    share = (rest - done[place - 1]) / (done[place] - done[place - 1])
    return rounds * period + float(edges[place - 1] + share * (edges[place] - edges[place - 1]))


@dataclass(frozen=True)
class Shared:
    """A wireless cell: the uplink band is shared, the downlink is one broadcast where all get the same."""

    name: str
    about: str
    cell: Cell
    latency: Figure

    def seconds(self, way: Way, size: int, start: float, device: str, ask: Ask) -> float:
        """Latency, and the bits at the rate of this round's channel."""
        if not size:
            return 0.0
        snr, place = heard(self.cell, ask.seed, ask.devices, ask.round), ask.devices.index(device)
        if way == "up":
            band = ask.bandwidth.get(device, self.cell.bandwidth / len(snr))
            rate = float(self.cell.rate(band, snr[place]))
        else:
            rate = self.cell.broadcast_rate(snr) if ask.same else float(self.cell.unicast_rates(snr)[place])
        return self.latency.value + 8 * size / rate


@lru_cache(maxsize=16)
def heard(cell: Cell, seed: int, devices: tuple[str, ...], round: int) -> NDArray[np.float64]:
    """SNR-bandwidth products of a round, Hz, drawn once for all of its transfers."""
    return cell.snr_bandwidth(seed, devices, round)


def read(table: Table) -> Link:
    """A link from its table; ``kind`` is ``fixed`` (also when it is missing), ``trace`` or ``cell``.

    Raises:
        ConfigError: lists every fault.
    """
    reader = Reader(table)
    kind, name, about = reader.text("kind", "fixed"), reader.text("name"), reader.text("about")
    latency = reader.figure("latency", above=False)
    if kind == "cell":
        link: Link = Shared(name, about, _cell(reader, reader.table("cell")), latency)
    elif kind in ("fixed", "trace"):
        loss = reader.figure("loss", above=False, most=0.99)
        if kind == "fixed":
            link = Fixed(name, about, reader.figure("down"), reader.figure("up"), latency, loss)
        else:
            link = _trace(reader, name, about, latency, loss)
    else:
        raise ConfigError(f"kind = {kind!r}: expected fixed, trace or cell")
    reader.done()
    return link


def _trace(reader: Reader, name: str, about: str, latency: Figure, loss: Figure) -> Trace:
    times, down, up = (reader.numbers(f"trace.{each}") for each in ("times", "down", "up"))
    period = reader.numbers("trace.period")
    source = reader.text("trace.source")
    if not len(times) == len(down) == len(up) > 0 or len(period) != 1:
        reader.faults.append("trace: expected times, down and up of one length, and period = [seconds]")
    elif times[0] != 0 or any(a >= b for a, b in pairwise([*times, period[0]])):
        reader.faults.append("trace: expected times that rise from 0 and stay below the period")
    elif min(*down, *up) < 0 or not max(down) > 0 or not max(up) > 0:
        reader.faults.append("trace: expected rates >= 0, each way at least one above 0")
    return Trace(name, about, times, down, up, period[0] if period else 0.0, latency, loss, source)


def _cell(reader: Reader, table: Mapping[str, Any]) -> Cell:
    known = {entry.name for entry in fields(Cell)}
    if wrong := table.keys() - known:
        reader.faults.append(f"cell: there is no {sorted(wrong)}; known: {', '.join(sorted(known))}")
    try:
        return Cell(**{name: value for name, value in table.items() if name in known})
    except (ConfigError, TypeError) as error:
        reader.faults.append(str(error))
        return Cell()


def link(name: str) -> Link:
    """A shipped link by name, or one of your own by the path of its TOML file.

    Raises:
        ConfigError: there is none, or it has faults.
    """
    return load(name, "links", "link", read)
