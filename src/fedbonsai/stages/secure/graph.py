"""Who shares masks with whom: everybody with everybody, or each with a few of a ring in random order.

Bell, Bonawitz, Gascon, Lepoint, Raykova, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020: the
ring (a Harary graph) is a connected graph of which many devices may leave before it falls apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fedbonsai.tree import generator


def neighbours(ids: Sequence[str], most: int, seed: int) -> dict[str, tuple[str, ...]]:
    """Neighbours of each device, in the order of ``ids``; who is whose neighbour is so in both directions.

    Args:
        ids: devices of the sum.
        most: neighbours of each, an even number; 0: all.
        seed: which decides the order of the ring.

    >>> neighbours(["a", "b", "c"], 0, 0)
    {'a': ('b', 'c'), 'b': ('a', 'c'), 'c': ('a', 'b')}
    """
    count = len(ids)
    if not most or most >= count - 1:
        return {id: tuple(other for other in ids if other != id) for id in ids}
    order: list[int] = torch.randperm(count, generator=generator(seed)).tolist()
    place = {member: at for at, member in enumerate(order)}
    steps = [step for step in range(-(most // 2), most // 2 + 1) if step]
    return {
        id: tuple([ids[other] for other in sorted(order[(place[member] + step) % count] for step in steps)])
        for member, id in enumerate(ids)
    }


def needed(neighbours: int, share: float) -> int:
    """How many neighbours must stay: the smallest number above the share.

    With a share of at least a half, more than half are needed, so that no two sets of neighbours that have none in common
    can tell both secrets of one device.

    >>> needed(9, 2 / 3), needed(99, 2 / 3), needed(4, 0.5)
    (7, 67, 3)
    """
    return min(neighbours, math.floor(round(share * neighbours, 9)) + 1)
