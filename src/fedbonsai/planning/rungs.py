"""Successive halving by rounds: all settings of a bracket train a ninth of theirs, the best third a third, the best of those all.

Each setting has a length of its own, as many rounds as limits allow it: so those that a limit ends early are judged by
what they can reach, beside others that may go on.
"""

from __future__ import annotations

from math import ceil

SHARE = 3  # one of so many goes on
RUNGS = 3
SIZE = 9  # settings of a bracket


def upto(length: int, rung: int) -> int:
    """Rounds that a setting of a length has done at the end of a rung.

    >>> [upto(30, rung) for rung in range(RUNGS)], [upto(2, rung) for rung in range(RUNGS)]
    ([4, 10, 30], [1, 1, 2])
    """
    return max(1, ceil(length / SHARE ** (RUNGS - 1 - rung)))


def going_on(count: int) -> int:
    """How many of so many go on to the next rung."""
    return max(1, ceil(count / SHARE))
