"""Requests to many devices of which many get the same: made once, encoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from fedbonsai.core import Device

P = TypeVar("P")
R = TypeVar("R")


def requests_for(sent: Mapping[Device, P], make: Callable[[P], R]) -> dict[Device, R]:
    """A request for each device; devices that are sent the same object get the same request, which is encoded once."""
    made: dict[int, R] = {}
    for part in sent.values():
        if id(part) not in made:
            made[id(part)] = make(part)
    return {device: made[id(part)] for device, part in sent.items()}
