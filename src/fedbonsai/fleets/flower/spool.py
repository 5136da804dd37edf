"""Replies that came before their turn: in memory up to a bound, beyond it in a file that has no name."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO

from fedbonsai.disk import writing


class Spool:
    """Bytes by number, each taken out once.

    Args:
        bound: bytes that are held in memory over all entries.
    """

    def __init__(self, bound: int) -> None:
        self._bound, self._held = bound, 0
        self._near: dict[int, bytes] = {}
        self._far: dict[int, IO[bytes]] = {}

    def put(self, number: int, data: bytes) -> None:
        """Keep.

        Raises:
            Unwritable: there is no room for the file.
        """
        if self._held + len(data) <= self._bound:
            self._near[number] = data
            self._held += len(data)
            return
        with writing(Path(tempfile.gettempdir())):
            file = self._far[number] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives until its turn
            file.write(data)
            file.flush()

    def take(self, number: int) -> bytes:
        """Give back, and forget."""
        if number in self._near:
            data = self._near.pop(number)
            self._held -= len(data)
            return data
        with self._far.pop(number) as file:
            file.seek(0)
            return file.read()

    def close(self) -> None:
        """Forget everything."""
        for file in self._far.values():
            file.close()
        self._near, self._far, self._held = {}, {}, 0
