"""Whether what the five papers claim holds here: `claims.toml` beside the committed results, for docs/claims.md."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.fair_table import personal, score
from experiments.reported import Claim, differences, judgement, matching
from experiments.seconds_to_accuracy.table import reached
from experiments.wireless_pruning.times import share_of_time
from fedbonsai.sweeps.statistics import estimate

FILE = Path(__file__).with_name("claims.toml")
WORDS = {
    "agrees": "reproduced",
    "contradicts": "refuted",
}  # of an interval that lies on one side; all else is not decided
OPEN = "not decided"
COLUMNS = ["experiment", "row", "beside", "asked", "found", "seeds", "verdict"]

Results = Sequence[Mapping[str, Any]]
Everything = Mapping[str, Mapping[str, Results]]  # results by experiment and row


@dataclass(frozen=True)
class Line(Claim):
    """One comparison that a claim stands on; of several rows to stand beside, the best on average counts.

    ``seconds`` is the share of the other's seconds until a row comes within ``short`` points of the other's last accuracy, or
    to ``goal`` percent; infinite where it never does.
    """

    experiment: str = ""
    row: str = ""
    goal: float = 0.0
    short: float = 0.0


@dataclass(frozen=True)
class Statement:
    """What a paper claims, and what it is taken for here."""

    system: str
    says: str
    where: str
    taken: str
    lines: tuple[Line, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class Found:
    """What a line comes to: the row that it was held against, the values by seed, and the verdict."""

    beside: str
    values: tuple[float, ...]
    verdict: str


def statements() -> list[Statement]:
    """The claims in their order."""
    entries = tomllib.loads(FILE.read_text(encoding="utf-8"))["claims"]
    return [Statement(**{**entry, "lines": tuple(Line(**line) for line in entry["lines"])}) for entry in entries]


def found(line: Line, rows: Mapping[str, Results]) -> Found:
    """Hold a row against the best of the others; *not run* where one side has no results."""
    others = [name for pattern in line.beside for name in matching(line.row, pattern, rows)]
    pairs = {other: values(line, rows.get(line.row, ()), rows[other]) for other in others}
    pairs = {other: found for other, found in pairs.items() if found}
    if not pairs:
        return Found(", ".join(line.beside), (), "not run")
    worst = max if line.figure == "seconds" else min
    other = worst(pairs, key=lambda name: fmean(pairs[name]))
    if any(map(math.isinf, pairs[other])):
        return Found(other, tuple(pairs[other]), "refuted" if all(map(math.isinf, pairs[other])) else OPEN)
    said = estimate(pairs[other])
    return Found(other, tuple(pairs[other]), WORDS.get(judgement(said.mean, said.half, line), OPEN))


def values(line: Line, ours: Results, theirs: Results) -> list[float]:
    """The figure of a line by seed, for the seeds that both have."""
    if line.figure != "seconds":
        own = any(map(personal, [*ours, *theirs]))
        return differences(ours, theirs, line.figure, lambda result: 100 * score(result, own))
    beside = {result["seed"]: result for result in theirs}
    return [share(line, each, beside[each["seed"]]) for each in ours if each["seed"] in beside]


def share(line: Line, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Seconds of a row to a goal, by those of the other."""
    if not line.goal:
        return share_of_time(ours, theirs, line.short)
    mine, other = reached(ours, line.goal / 100), reached(theirs, line.goal / 100)
    return mine[0] / other[0] if mine and other else math.inf


def overall(verdicts: Sequence[str]) -> str:
    """One word for a claim, with the counts: all lines that were run, or none, or neither."""
    ran = [verdict for verdict in verdicts if verdict != "not run"]
    counts = {word: ran.count(word) for word in ("reproduced", "refuted", OPEN)}
    word = next((word for word in ("reproduced", "refuted") if counts[word] == len(ran) > 0), "")
    parts = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return word or (f"in part: {parts}" if counts["reproduced"] else f"not reproduced: {parts}")


def asked(line: Line) -> str:
    """What a line asks for, in words."""
    bound = f"at least {line.least:g}" if math.isfinite(line.least) else f"at most {line.most:g}"
    unit = {
        "accuracy": "points",
        "bytes": "times fewer bytes",
        "bytes_up": "times fewer bytes up",
        "seconds": f"of its seconds to {line.goal:g} %"
        if line.goal
        else f"of its seconds to its accuracy - {line.short:g}",
    }[line.figure]
    return f"{bound} {unit}"


def told(values: Sequence[float]) -> str:
    """Mean and 95 % interval over the seeds."""
    if not values:
        return ""
    if missed := sum(map(math.isinf, values)):
        return f"{missed} of {len(values)} seeds never come there"
    said = estimate(values)
    return f"{said.mean:.2f}" + (f" ± {said.half:.2f}" if math.isfinite(said.half) else "")


def claims(everything: Everything) -> list[str]:
    """The whole of docs/claims.md."""
    every = [(each, [found(line, everything.get(line.experiment, {})) for line in each.lines]) for each in statements()]
    lines = [
        "# What the five papers claim",
        "",
        "Made by `python -m experiments.table --write` from `experiments/claims.toml` and the committed results.",
        "",
        "None of the papers' bodies could be read, so a claim is a sentence of an abstract, and what it is taken for is ours:",
        "a figure of one row beside another, seed by seed, that must lie on one side of a bound with its whole 95 % interval",
        "(Student's) to be *reproduced* or *refuted*; what lies across the bound is *not decided* by these seeds. Networks and",
        "data are other than the papers'. Experiments whose name begins with `fair` keep the [protocol](evidence.md); the others",
        "were made before it, with settings that were set by hand. All rows are in [results](results.md).",
        "",
        "| system | claim | verdict |",
        "|---|---|---|",
        *(f"| {each.system} | {each.says} | {overall([one.verdict for one in lines])} |" for each, lines in every),
    ]
    for each, judged in every:
        lines += ["", f"## {each.system}", "", f"*{each.says}* ({each.where})", "", each.taken, ""]
        lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        for line, one in zip(each.lines, judged, strict=True):
            cells = [f"`{line.experiment}`", line.row, one.beside, asked(line), told(one.values)]
            lines.append(f"| {' | '.join([*cells, str(len(one.values)), one.verdict])} |")
    return lines
