"""Requests to many devices of which many get the same: made once, encoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from fedbonsai.core import Device

P = TypeVar("P")
R = TypeVar("R")


def each(sent: Mapping[Device, P], make: Callable[[P], R]) -> dict[Device, R]:
    """A request for each device; devices that are sent the same object get the same request, which is encoded once."""
    made = {id(part): make(part) for part in sent.values()}
    return {device: made[id(part)] for device, part in sent.items()}
