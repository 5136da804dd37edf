"""Settings that cannot be meant, refused with all their faults at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Any


@dataclass(frozen=True)
class Range:
    """What a setting may be, in words and as a test."""

    text: str
    holds: Callable[[Any], bool]


COUNT = Range("at least 1", lambda value: 1 <= value < inf)
TWO = Range("at least 2", lambda value: value >= 2)
NOT_NEGATIVE = Range("a number >= 0", lambda value: 0 <= value < inf)
SECONDS = Range("seconds >= 0", NOT_NEGATIVE.holds)
POSITIVE = Range("a number > 0", lambda value: 0 < value < inf)
SHARE = Range("a share in (0, 1]", lambda value: 0 < value <= 1)
PROBABILITY = Range("a probability in [0, 1]", lambda value: 0 <= value <= 1)
PART = Range("a share in [0, 1)", lambda value: 0 <= value < 1)


def one_of(*words: str) -> Range:
    """One of several words.

    >>> one_of("off", "auto", "on").text
    "'off', 'auto' or 'on'"
    """
    *first, last = (repr(word) for word in words)
    return Range(f"{', '.join(first)} or {last}", lambda value: value in words)


def out_of_range(settings: object, **wanted: Range) -> list[str]:
    """A line for each setting that is not in its range.

    >>> from types import SimpleNamespace
    >>> out_of_range(SimpleNamespace(interval=0, density=0.5), interval=COUNT, density=SHARE)
    ['interval = 0: expected at least 1']
    """
    return [
        f"{name} = {getattr(settings, name)}: expected {want.text}"
        for name, want in wanted.items()
        if not want.holds(getattr(settings, name))
    ]


def when(*faults: tuple[bool, str]) -> list[str]:
    """The texts of those that hold."""
    return [text for wrong, text in faults if wrong]


def raise_all(faults: Iterable[str]) -> None:
    """Raise if there are any.

    Raises:
        ValueError: with all of them.
    """
    if found := list(faults):
        raise ValueError("; ".join(found))
