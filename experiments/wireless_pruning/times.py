"""Seconds of the latency model until a run comes near what another one ends with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]


def last(result: Result, column: str) -> float:
    """The last value of a column."""
    return result["method metrics"][column][-1]


def seconds_to(result: Result, goal: float) -> float | None:
    """Seconds of the latency model until the personalised accuracy reached a goal."""
    columns = result["method metrics"]
    for accuracy, seconds in zip(columns["personal_accuracy"], columns["wireless_seconds"], strict=True):
        if accuracy >= goal:
            return seconds
    return None


def share_of_time(ours: Result, theirs: Result, points: float) -> float:
    """Seconds to the accuracy that the reference ends with, less some points, by its own to the same; else infinite."""
    goal = last(theirs, "personal_accuracy") - points / 100
    mine, reference = seconds_to(ours, goal), seconds_to(theirs, goal)
    return mine / reference if mine is not None and reference else math.inf
