"""The ledger: what every client sent and received, in bytes that were really encoded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class Row:
    """Bytes of one client, round, direction and message class; a retried round has rows for each attempt."""

    round: int
    attempt: int
    client: str
    direction: Literal["down", "up"]
    kind: str
    bytes: int


class Ledger:
    """Rows of the round in progress, and sums over the whole run."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, int, str, str, str], tuple[int, int]] = {}
        self.total: dict[str, int] = {"down": 0, "up": 0}
        self.kinds: dict[tuple[str, str], int] = {}
        self.clients: dict[str, int] = {}
        self._senders: dict[str, set[str]] = {}  # by message class

    def senders(self, kind: type[Any]) -> set[str]:
        """Clients from which a message of a class has come; whoever is taken out of it, counts anew."""
        return self._senders.setdefault(str(kind.wire_name), set())

    def add(self, row: Row) -> None:
        """Book one transfer; transfers of the same client, round, direction and class are added up."""
        key = (row.round, row.attempt, row.client, row.direction, row.kind)
        count, size = self._open.get(key, (0, 0))
        self._open[key] = (count + 1, size + row.bytes)
        self.total[row.direction] += row.bytes
        kind = (row.direction, row.kind)
        self.kinds[kind] = self.kinds.get(kind, 0) + row.bytes
        self.clients[row.client] = self.clients.get(row.client, 0) + row.bytes
        self._sent(row.client, row.direction, row.kind)

    def take(self) -> list[dict[str, Any]]:
        """Rows since the last call, ready for a table; they are forgotten here, the sums stay."""
        names = [field.name for field in fields(Row)]
        rows = [
            {**dict(zip(names, (*key, size), strict=True)), "messages": count}
            for key, (count, size) in self._open.items()
        ]
        self._open = {}
        return rows

    def resume(self, rows: Iterable[dict[str, Any]]) -> None:
        """Sums as an earlier process left them."""
        for row in rows:
            direction, kind, size = str(row["direction"]), str(row["kind"]), int(row["bytes"])
            self.clients[row["client"]] = self.clients.get(row["client"], 0) + size
            self.total[direction] += size
            self.kinds[(direction, kind)] = self.kinds.get((direction, kind), 0) + size
            self._sent(row["client"], direction, kind)

    def _sent(self, client: str, direction: str, kind: str) -> None:
        if direction == "up":
            self._senders.setdefault(kind, set()).add(client)
