"""A bell between the process of a run and the gate: it says that messages wait for devices.

It is a file whose time of change is the moment of the last ring, so it holds over restarts of both ends.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

LOOK = 0.05  # seconds between looks at the file, while somebody listens


class Bell:
    """The bell of a federation.

    Args:
        file: that stands for it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._listening: set[asyncio.Future[None]] = set()
        self._looks: asyncio.Task[None] | None = None

    def ring(self) -> None:
        """Say that messages wait. Where the disk refuses, they are found a little later."""
        now = time.time_ns()
        with suppress(OSError):
            if not self._file.exists():
                self._file.touch(0o600)
            os.utime(self._file, ns=(now, now))

    def last(self) -> int:
        """When it rang last, in nanoseconds since 1970; 0 where it never did."""
        try:
            return self._file.stat().st_mtime_ns
        except OSError:
            return 0

    @property
    def listening(self) -> int:
        """How many wait for it."""
        return len(self._listening)

    async def rung(self, since: int, seconds: float, gone: asyncio.Future[Any]) -> None:
        """Wait until it has rung, the time is over, or ``gone`` is done.

        Args:
            since: what `last` was.
            seconds: how long to wait.
            gone: what else ends the wait.
        """
        if self.last() != since:
            return
        rings: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listening.add(rings)
        if self._looks is None or self._looks.done():
            self._looks = asyncio.create_task(self._look(since))
        try:
            await asyncio.wait({rings, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._listening.discard(rings)

    async def _look(self, last: int) -> None:
        """One look for all who listen."""
        while self._listening:
            if (now := self.last()) != last:
                last = now
                for rings in self._listening:
                    if not rings.done():
                        rings.set_result(None)
                self._listening.clear()
            await asyncio.sleep(LOOK)
