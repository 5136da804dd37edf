"""specs/fl-pqsu check 14 to check 19 against the committed results: ``python -m experiments.fl_pqsu.checks``.

Prints a table for digits, one for a part of MNIST where it was run, and one of the modern preset's stages; ``--write``
puts all into ``checks.md``. A line that is not met says so; what is only to be reported has no verdict.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
T975 = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
}  # by degrees of freedom

Runs = dict[str, list[dict]]


class Line(NamedTuple):
    """One line of a table; ``met`` is None where nothing is asked."""

    check: str
    text: str
    measured: str
    met: bool | None


def load(folder: Path) -> Runs:
    """Results by name of the run, in the order of the seeds."""
    found: Runs = {}
    for file in sorted((folder / "results").glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(result["name"], []).append(result)
    return {name: sorted(results, key=lambda result: result["seed"]) for name, results in found.items()}


def interval(values: Sequence[float]) -> str:
    """Mean and half the width of the 95 % interval by Student's t."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.2f} (one seed)"
    half = T975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.2f} ± {half:.2f}"


def points(results: list[dict]) -> list[float]:
    """Accuracy in percent, mean of the last five rounds, by seed."""
    return [100 * result["last five"] for result in results]


def uploads(results: list[dict]) -> list[float]:
    """Uploads of the whole run, by seed."""
    return [sum(result["method metrics"]["uploads"]) for result in results]


def between(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Differences seed by seed."""
    return [left - right for left, right in zip(one, other, strict=True)]


def checks(runs: Runs) -> list[Line]:
    """specs/fl-pqsu check 14, check 16, check 17 and check 19, those whose runs are there."""
    found: list[Line] = []

    def asked(check: str, text: str, values: list[float], least: float, strict: bool = False) -> None:
        mean = statistics.mean(values)
        sign = ">" if strict else ">="
        found.append(
            Line(check, f"{text} {sign} {least:g}", interval(values), mean > least if strict else mean >= least)
        )

    if runs.keys() >= {"none", "none-fp32"}:
        sixth = [
            [100 * next(acc for number, acc, *_ in result["curve"] if number == 6) for result in runs[name]]
            for name in ("none", "none-fp32")
        ]
        gap = between(*sixth)
        met = abs(statistics.mean(gap)) <= 2
        found.append(Line("14", "8 bits minus fp32 after 6 rounds, within 2 either way", interval(gap), met))
    if runs.keys() >= {"none", "previous", "best"}:
        counts = {name: uploads(runs[name]) for name in ("none", "previous", "best")}
        asked("16", "uploads, previous minus best", between(counts["previous"], counts["best"]), 0, strict=True)
        asked("16", "uploads, none minus previous", between(counts["none"], counts["previous"]), 0, strict=True)
        accuracy = {name: points(runs[name]) for name in counts}
        asked("16", "accuracy, none minus previous", between(accuracy["none"], accuracy["previous"]), 0)
        asked("16", "accuracy, previous minus best", between(accuracy["previous"], accuracy["best"]), 0)
        measured = ", ".join(f"{name} {interval(values)}" for name, values in counts.items())
        found.append(Line("16", "uploads of 36", measured, None))
    if runs.keys() >= {"sorted-best-cache", "sorted-best-drop"}:
        gap = between(points(runs["sorted-best-cache"]), points(runs["sorted-best-drop"]))
        asked("17", "sorted by label, cache minus drop", gap, 20, strict=True)
    for name in ("best", "previous"):
        if runs.keys() >= {name, f"random-as-{name}"}:
            found += against(runs, name, f"random-as-{name}")
    return found


def against(runs: Runs, gate: str, random: str) -> list[Line]:
    """specs/fl-pqsu check 19: a gate against chance at its rate."""
    gap = between(points(runs[gate]), points(runs[random]))
    rates = f"{statistics.mean(uploads(runs[gate])):.1f} and {statistics.mean(uploads(runs[random])):.1f}"
    return [Line("19", f"accuracy, `{gate}` minus random skip; uploads {rates}", interval(gap), None)]


def direct() -> list[Line]:
    """specs/fl-pqsu check 15 and check 18, from ``direct.json``."""
    file = HERE / "direct.json"
    if not file.exists():
        return []
    found = json.loads(file.read_text(encoding="utf-8"))
    gap = [100 * (row["right"] - row["as coded"]) for row in found["rebuild"]]
    speed, macs = found["step"]["speed-up"], found["step"]["mac ratio"]
    return [
        Line("15", "right after pruning 30 %, correct rebuild minus as coded > 20", interval(gap), min(gap) > 20),
        Line("18", f"speed-up of a step, AlexNet 30, MACs to {macs:.2f}, >= 1.3", f"{speed:.2f}", speed >= 1.3),
    ]


def table(runs: Runs, more: list[Line], data: str) -> str:
    """The checks as Markdown, with how many seeds stand behind them."""
    lines = sorted([*checks(runs), *more], key=lambda line: line.check)
    verdicts = {True: "yes", False: "**no**", None: "reported"}
    return "\n".join(
        [
            f"Points of test accuracy on {data}, {_seeds(runs)}; mean of the last five rounds where no round is named.",
            "Intervals are of 95 %, seed by seed.",
            "",
            "| check | asked | measured | met |",
            "|---|---|---|---|",
            *(f"| {line.check} | {line.text} | {line.measured} | {verdicts[line.met]} |" for line in lines),
            "",
        ]
    )


def stages(runs: Runs) -> str:
    """The modern preset with one stage off, or another gate, as Markdown."""
    rows = []
    for name, results in runs.items():
        figures = [result["method metrics"] for result in results]

        def mean(key: str, each: list[dict] = figures) -> float:
            return statistics.mean(figure[key][-1] for figure in each)

        up, down = (statistics.mean(result["bytes"][way] for result in results) / 1e6 for way in ("up", "down"))
        rows.append(
            f"| {name} | {interval(points(results))} | {100 * mean('skip_rate'):.1f} % | {up:.2f} | {mean('paper_up') / 1e6:.2f} "
            f"| {down:.2f} | {mean('paper_down') / 1e6:.2f} | {mean('parameters'):,.0f} | {mean('macs'):,.0f} "
            f"| {mean('training_memory') / 1e3:,.0f} |"
        )
    lines = [
        line
        for gate in ("lazy", "cmfl")
        if {gate, f"random-as-{gate}"} <= set(runs)
        for line in against(runs, gate, f"random-as-{gate}")
    ]
    return "\n".join(
        [
            f"The modern preset on Dirichlet digits, one stage off or another gate, {_seeds(runs)}; MB, as booked and as the",
            "specification's rule counts them; memory of training in kB, counted.",
            "",
            "| run | accuracy | skips | up | up, rule | down | down, rule | parameters | MACs | memory |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            *(f"Check 19: {line.text}: {line.measured}." for line in lines),
            "",
        ]
    )


def _seeds(runs: Runs) -> str:
    commits = ", ".join(sorted({str(result["commit"]) for results in runs.values() for result in results}))
    return f"{min(len(results) for results in runs.values())} seeds, commit {commits}"


def report() -> str:
    """All tables whose runs are there."""
    parts: list[str] = []
    for folder, more, data in ((HERE, direct(), "digits"), (HERE.parent / "fl_pqsu_mnist", [], "a part of MNIST")):
        if runs := load(folder):
            parts.append(table(runs, more, data))
    if runs := load(HERE.parent / "fl_pqsu_stages"):
        parts.append(stages(runs))
    return "\n".join(parts)


if __name__ == "__main__":
    text = report()
    print(text or "no results yet: fedbonsai sweep experiments/fl_pqsu/plan.toml")
    if text and "--write" in sys.argv:
        (HERE / "checks.md").write_text(text, encoding="utf-8")
