"""What papers or their code report beside the rows of the tables, and whether a row says otherwise.

A folder of an experiment may hold a ``reported.toml``: what is said, where it was read, and, where it can be held against
our results, a claim: this row beside another one, seed by seed. The verdict is computed from the committed JSON.
"""

from __future__ import annotations

import math
import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from fedbonsai.sweeps.statistics import estimate

HERE = Path(__file__).parent

Results = Sequence[Mapping[str, Any]]
Score = Callable[[Mapping[str, Any]], float]


@dataclass(frozen=True)
class Claim:
    """What can be held against our results: ``figure`` of a row beside ``beside``, at least or at most so much.

    The figure ``accuracy`` is a difference in points; ``bytes`` and ``bytes_up`` are how many times fewer this row moves. Of
    several rows to stand beside, the best on average counts; a ``*`` in their names is what follows this row's last dash,
    or, at ``equal = "parameters"``, whatever makes the row's model nearest to this one's in size.
    """

    beside: Sequence[str]
    figure: str = "accuracy"
    least: float = -math.inf
    most: float = math.inf
    equal: str = ""


@dataclass(frozen=True)
class Reported:
    """One statement: for which rows, what is said, where it was read, and what comes of it here."""

    rows: Sequence[str]
    says: str
    where: str
    claim: Claim | None = None
    verdict: str = ""

    @property
    def text(self) -> str:
        """The statement with its source."""
        return f"{self.says} *{self.where}*"


@cache
def statements(experiment: str) -> tuple[Reported, ...]:
    """What is reported beside the rows of an experiment; nothing where it has no ``reported.toml``."""
    file = HERE / experiment / "reported.toml"
    if not file.exists():
        return ()
    found = []
    for entry in tomllib.loads(file.read_text(encoding="utf-8"))["reported"]:
        claim = Claim(**entry.pop("claim")) if "claim" in entry else None
        if (claim is None) == ("verdict" not in entry):
            raise SystemExit(f"{file}: {entry['rows']} needs a claim or a verdict, and not both")
        found.append(Reported(**entry, claim=claim))
    return tuple(found)


def statement(experiment: str, name: str) -> Reported | None:
    """What is reported beside one row."""
    return next((each for each in statements(experiment) if name in each.rows), None)


def verdict(said: Reported, name: str, rows: Mapping[str, Results], score: Score, size: Score) -> str:
    """Whether our row says the same, with the figure and its 95 % interval over the seeds.

    Args:
        said: what is reported beside the row.
        name: of the row.
        rows: results of the experiment by name, a result for each seed.
        score: accuracy of a result in percent, as the table has it.
        size: parameters of a result's model.
    """
    claim = said.claim
    if claim is None:
        return said.verdict
    if claim.equal:
        others = [other for pattern in claim.beside if (other := nearest(name, pattern, rows, size))]
    else:
        others = [other for pattern in claim.beside for other in matching(name, pattern, rows)]
    pairs = {other: differences(rows[name], rows[other], claim.figure, score) for other in others if rows.get(other)}
    pairs = {other: values for other, values in pairs.items() if values}
    if not pairs:
        return f"not run beside {', '.join(others or claim.beside)}"
    other, values = min(pairs.items(), key=lambda pair: statistics.mean(pair[1]))
    mean, half = (found := estimate(values)).mean, found.half
    spread = f" ± {half:.2f}" if math.isfinite(half) else ""
    figure = f"{mean:+.2f}{spread} points" if claim.figure == "accuracy" else f"{mean:.2f}{spread} times fewer bytes"
    text = f"{judgement(mean, half, claim)}: {figure} beside {other}"
    if not claim.equal:
        return text
    return f"{text} ({of_size(rows[name], size):,.0f} parameters against {of_size(rows[other], size):,.0f})"


def matching(name: str, pattern: str, rows: Mapping[str, Results]) -> list[str]:
    """The row that a pattern names, a ``*`` in it being what follows the last dash of ``name``; none where it has no results."""
    other = pattern.replace("*", name.rpartition("-")[2])
    return [other] if rows.get(other) else []


def nearest(name: str, pattern: str, rows: Mapping[str, Results], size: Score) -> str:
    """The row of a pattern whose model is nearest in size; empty where none is."""
    found = [other for other in rows if rows[other] and fnmatchcase(other, pattern)]
    return min(
        found, key=lambda other: abs(math.log(of_size(rows[other], size) / of_size(rows[name], size))), default=""
    )


def of_size(results: Results, size: Score) -> float:
    """Mean number of parameters over the seeds."""
    return statistics.mean(map(size, results))


def differences(ours: Results, theirs: Results, figure: str, score: Score) -> list[float]:
    """A figure seed by seed: points more accurate, or how many times fewer bytes."""
    beside = {result["seed"]: result for result in theirs}
    both = [(result, beside[result["seed"]]) for result in ours if result["seed"] in beside]
    if figure == "accuracy":
        return [score(one) - score(other) for one, other in both]
    ways = {"bytes": ("up", "down"), "bytes_up": ("up",)}[figure]
    return [sum(other["bytes"][way] for way in ways) / sum(one["bytes"][way] for way in ways) for one, other in both]


def judgement(mean: float, half: float, claim: Claim) -> str:
    """In words: beyond the interval, on average only, or of a single seed."""
    if claim.least <= mean - half and mean + half <= claim.most:
        return "agrees"
    if mean + half < claim.least or mean - half > claim.most:
        return "contradicts"
    side = "agrees" if claim.least <= mean <= claim.most else "contradicts"
    return f"{side} on average, not beyond the interval" if math.isfinite(half) else f"{side} in one seed"
