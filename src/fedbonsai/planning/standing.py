"""Where a run stands: its validation measure after each round, and what it had cost the costliest device by then."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import nan
from pathlib import Path
from typing import Any

from fedbonsai.planning.limits import GROWING, Limits


@dataclass(frozen=True)
class Standing:
    """A run's first rounds, as numbers; of each list the n-th entry is after n + 1 rounds."""

    values: tuple[float, ...] = ()
    """The measure that decides, on the clients' validation parts; NaN where it was not taken."""
    tests: tuple[float, ...] = ()
    """The same on the test set: told of finalists in the end, never looked at before."""
    bytes: tuple[float, ...] = ()
    """Of the device that moved most so far, both ways."""
    seconds: tuple[float, ...] = ()
    """Simulated, of the run; empty without devices."""
    joules: tuple[float, ...] = ()
    """Of the device that spent most so far; empty without devices."""
    fixed: Mapping[str, float] = field(default_factory=dict[str, float])
    """Costs that do not grow with rounds: round_seconds, peak_memory, model_bytes, latency."""
    ended: bool = False
    """Whether the run ended by itself: all rounds done, or a budget used up, or the target reached."""
    took: float = 0.0
    """Seconds that its rounds took here."""
    failed: str = ""
    """Why it cannot go on."""

    @property
    def rounds(self) -> int:
        """How many were done."""
        return len(self.values)

    def first(self, rounds: int) -> Standing:
        """The same after fewer rounds."""
        cut: dict[str, Any] = {name: getattr(self, name)[:rounds] for name in ("values", "tests", *GROWING)}
        return replace(self, **cut, ended=self.ended and rounds >= self.rounds)

    def within(self, limits: Limits) -> int:
        """Rounds after which no growing limit is exceeded."""
        growing = {name: value for name, value in limits.set.items() if name in GROWING}
        kept = self.rounds
        for name, limit in growing.items():
            kept = min(kept, sum(cost <= limit for cost in getattr(self, name)))
        return kept

    def costs(self, rounds: int) -> dict[str, float]:
        """All costs after so many rounds, by the names of limits; nothing of what was not counted."""
        grown = {name: getattr(self, name)[rounds - 1] for name in GROWING if getattr(self, name) and rounds}
        return {**grown, **self.fixed}

    def value(self, rounds: int) -> float:
        """The last validation measure of the first rounds; NaN where there is none."""
        return next((value for value in reversed(self.values[:rounds]) if value == value), nan)

    def test(self, rounds: int) -> float:
        """As `value`, on the test set."""
        return next((value for value in reversed(self.tests[:rounds]) if value == value), nan)

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @staticmethod
    def of(plain: Mapping[str, Any]) -> Standing:
        """From what `plain` gave."""
        held: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        return Standing(**held)


def standing(folder: Path, fixed: Mapping[str, float], failed: str = "") -> Standing:
    """The standing of a run's folder.

    Args:
        folder: of the run.
        fixed: costs that its final model has.
        failed: why it cannot go on.
    """
    from fedbonsai.runs.folder import Folder
    from fedbonsai.runs.run import stored

    files = Folder(folder)
    measure = stored(folder).objective.metric
    rows = files.rows()
    costs = list(files.cost_rows())
    each = [row for row in costs if row["client"]]
    rounds = len(rows)
    seconds = _summed([(row["round"], row["elapsed"]) for row in costs if not row["client"]], rounds)
    longest = [after - before for before, after in pairwise(seconds)]
    known = dict(fixed)
    if costs:
        known["round_seconds"] = max(longest or seconds, default=0.0)
        known["peak_memory"] = float(max((row["peak_memory"] for row in each), default=0))
    return Standing(
        values=tuple(float(row.get(f"valid_{measure}", nan)) for row in rows),
        tests=tuple(float(row.get(measure, nan)) for row in rows),
        bytes=_costliest(((row["round"], row["client"], row["bytes"]) for row in files.ledger_rows()), rounds),
        seconds=tuple(seconds) if costs else (),
        joules=_costliest(((row["round"], row["client"], row["joules"]) for row in each), rounds) if costs else (),
        fixed=known,
        ended=files.noted().get("status") == "finished",
        took=sum(row["seconds"] for row in rows),
        failed=failed,
    )


def _summed(rows: Iterable[tuple[int, float]], rounds: int) -> list[float]:
    """Sum up to and with each round, what came before the first one included."""
    per = [0.0] * rounds
    for round, amount in rows:
        if max(round, 0) < rounds:
            per[max(round, 0)] += amount
    total, found = 0.0, list[float]()
    for amount in per:
        total += amount
        found.append(total)
    return found


def _costliest(rows: Iterable[tuple[int, str, float]], rounds: int) -> tuple[float, ...]:
    """The largest sum of any client up to and with each round."""
    per: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for round, client, amount in rows:
        per[client].append((round, amount))
    sums: Sequence[Sequence[float]] = [_summed(each, rounds) for each in per.values()]
    return tuple(max(values) for values in zip(*sums, strict=True)) if sums else (0.0,) * rounds
