"""Numbers with units, as people write them: 5MB, 2h, 500ms, 3kJ."""

from __future__ import annotations

import re
from math import inf
from typing import Literal

from fedbonsai.errors import ConfigError

Kind = Literal["bytes", "seconds", "joules"]

UNITS: dict[Kind, dict[str, float]] = {
    "bytes": {
        "B": 1,
        "kB": 1e3,
        "KB": 1e3,
        "MB": 1e6,
        "GB": 1e9,
        "KiB": 2**10,
        "MiB": 2**20,
        "GiB": 2**30,
    },
    "seconds": {"us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400},
    "joules": {"mJ": 1e-3, "J": 1, "kJ": 1e3, "MJ": 1e6, "Wh": 3600, "kWh": 3.6e6},
}
NUMBER = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*")


def quantity(given: object, kind: Kind, what: str, plain: str = "") -> float:
    """A number above 0 in bytes, seconds or joules.

    Args:
        given: a number, or text such as ``5MB``.
        kind: what it counts.
        what: the setting, for errors.
        plain: unit of a number that has none; empty: bytes, seconds, joules.

    Raises:
        ConfigError: it is none.

    >>> quantity("5MB", "bytes", "limit.bytes"), quantity("0.2", "seconds", "hours", "h")
    (5000000.0, 720.0)
    """
    units = UNITS[kind]
    found = NUMBER.fullmatch(str(given)) if not isinstance(given, bool) else None
    factor = units.get(found[2] or plain or next(unit for unit, size in units.items() if size == 1)) if found else None
    try:
        value = float(found[1]) * factor if found and factor else 0.0
    except ValueError:  # 1.2.3
        value = 0.0
    if not 0 < value < inf:
        unit = plain or kind
        raise ConfigError(f"{what} = {given!r}: expected a number above 0 ({unit}), or one with {', '.join(units)}")
    return value


def said(value: float, kind: Kind) -> str:
    """A quantity for people: three digits and a unit.

    >>> said(5e6, "bytes"), said(0.25, "seconds"), said(5400, "seconds"), said(1500, "joules")
    ('5 MB', '250 ms', '1.5 h', '1.5 kJ')
    """
    steps = {
        "bytes": ("B", "kB", "MB", "GB"),
        "seconds": ("ms", "s", "min", "h"),
        "joules": ("J", "kJ", "MJ"),
    }[kind]
    sizes = UNITS[kind]
    unit = next((step for step in reversed(steps) if value >= sizes[step]), steps[0])
    return f"{value / sizes[unit]:.3g} {unit}"
