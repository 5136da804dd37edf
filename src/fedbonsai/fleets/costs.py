"""The book of a virtual clock: seconds, joules, operations and memory of every client and round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fedbonsai.core import Scope
from fedbonsai.devices.clock import Macs, Times

SERVER = ""  # the client of the row that holds how long an attempt took


@dataclass
class Entry:
    """One client in one attempt of a round; ``profile`` is empty and ``elapsed`` counts in the server's row alone."""

    profile: str = ""
    asks: int = 0
    dropped: int = 0
    elapsed: float = 0.0
    down_seconds: float = 0.0
    compute_seconds: float = 0.0
    up_seconds: float = 0.0
    idle_seconds: float = 0.0
    joules: float = 0.0
    macs: int = 0
    kept_macs: int = 0
    peak_memory: int = 0

    @property
    def busy(self) -> float:
        """Seconds in which the device received, computed or sent."""
        return self.down_seconds + self.compute_seconds + self.up_seconds


@dataclass
class Totals:
    """Sums over a run; always built from rows in their order, so that a resumed run has the same to the last bit."""

    seconds: float = 0.0
    joules: float = 0.0
    macs: int = 0
    peak_memory: int = 0
    device_joules: dict[str, float] = field(default_factory=dict[str, float])
    device_seconds: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows of one or more rounds."""
        for row in rows:
            client = str(row["client"])
            self.seconds += row["elapsed"]
            self.joules += row["joules"]
            self.macs += row["macs"]
            self.peak_memory = max(self.peak_memory, row["peak_memory"])
            if client != SERVER:
                busy = row["down_seconds"] + row["compute_seconds"] + row["up_seconds"]
                self.device_joules[client] = self.device_joules.get(client, 0.0) + row["joules"]
                self.device_seconds[client] = self.device_seconds.get(client, 0.0) + busy


class Costs:
    """Rows of the round in progress, and sums over the whole run."""

    def __init__(self) -> None:
        self.total = Totals()
        self._open: dict[tuple[int, int, str], Entry] = {}

    @property
    def now(self) -> float:
        """Simulated seconds since the run began."""
        return self.total.seconds + sum(entry.elapsed for entry in self._open.values())

    def pass_time(self, scope: Scope, seconds: float) -> None:
        """The clock moves on."""
        self._entry(scope, SERVER, "").elapsed += seconds

    def book(
        self, scope: Scope, client: str, profile: str, times: Times, idle: float, joules: float, macs: Macs, peak: int
    ) -> Entry:
        """Book one ask of one client."""
        entry = self._entry(scope, client, profile)
        entry.asks += 1
        entry.down_seconds += times.down
        entry.compute_seconds += times.compute
        entry.up_seconds += times.up
        entry.idle_seconds += idle
        entry.joules += joules
        entry.macs += macs.done
        entry.kept_macs += macs.kept
        entry.peak_memory = max(entry.peak_memory, peak)
        return entry

    def _entry(self, scope: Scope, client: str, profile: str) -> Entry:
        return self._open.setdefault((scope.round, scope.attempt, client), Entry(profile))

    def take(self) -> list[dict[str, Any]]:
        """Rows since the last call, ready for a table; they are forgotten here and enter the sums."""
        rows = [
            {"round": round, "attempt": attempt, "client": client, **vars(entry)}
            for (round, attempt, client), entry in self._open.items()
        ]
        self._open = {}
        self.total.add(rows)
        return rows

    def resume(self, rows: Iterable[dict[str, Any]]) -> None:
        """Sums as an earlier process left them."""
        self.total.add(rows)
