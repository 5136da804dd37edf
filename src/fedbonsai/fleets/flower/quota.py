"""How many bytes each device may send in a time: Flower takes in whole answers, to memory and disk, before anybody looks.

What a device sent counts once the SuperLink has taken it, which checks the signature that names the device: so nobody can use
up another's room. It drains evenly, so that a full hour's room is there again after an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable

HOUR = 3600.0  # seconds in which all of it is drained


class Quota:
    """Bytes of each device that have not drained yet.

    Args:
        most: bytes that a device may send in an hour.
        clock: seconds, which never go back.
    """

    def __init__(self, most: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self._clock = most, clock
        self._levels: dict[bytes, tuple[float, float]] = {}  # by device: bytes, and when
        self._full: list[bytes] = []

    def allows(self, who: bytes, size: int) -> bool:
        """Whether a device may send so many bytes now; the first refusal of each filling is kept for `told`."""
        if self._level(who) + size <= self.most:
            return True
        if who not in self._full:
            self._full.append(who)
        return False

    def spend(self, who: bytes, size: int) -> None:
        """A device's bytes were taken."""
        self._levels[who] = self._level(who) + size, self._clock()

    def told(self) -> list[bytes]:
        """Devices that were refused since the last call."""
        found, self._full = self._full, []
        return found

    def _level(self, who: bytes) -> float:
        held, at = self._levels.get(who, (0.0, 0.0))
        left = max(0.0, held - (self._clock() - at) * self.most / HOUR)
        if not left:
            self._levels.pop(who, None)
        return left
