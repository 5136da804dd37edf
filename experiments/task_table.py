"""The table of the experiment ``tasks``: what sensors, sound, tables and text came to, and what each system lost and saved."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedbonsai.objectives.base import measure_named

Results = Sequence[Mapping[str, Any]]  # of one row, a result for each seed

GOALS = {  # in the unit of the measure; it tells which way is better
    "har": 89.0,
    "speech": 88.0,
    "ecg": 0.90,
    "cmapss": 17.0,
    "air": 19.5,
    "shakespeare": 52.0,
    "credit": 0.77,
    "fsdd": 95.0,
    "omniglot": 45.2,
}
HEADING = [
    "FedAvg on sets with natural clients (`credit` has none), and the five systems on some of them; the last evaluated round",
    "on the test set, which holds other people or devices except in `fsdd`, `credit` and `shakespeare`. Settings were found by",
    "a handful of runs on seed 0 against the same test set: take the figures as what can be reached, not as a fair comparison.",
    "A name says `fedadam` where the server steps by Adam. `goal` was set before, by figures of simple central models; behind",
    "it, how many seeds reached it. *Beside FedAvg* is the difference from the task's first row on the same seeds.",
    "Bytes are of all devices; seconds are simulated, of Raspberry Pis 4 over LTE, where a run had a clock. † the devices' own",
    "models on their validation parts, which hold the same people or devices as their training parts, beside FedAvg's model on",
    "the same parts.",
    "",
]
COLUMNS = ["task, method", "measure", "seeds", "result", "goal", "beside FedAvg", "MB up", "MB down"]
COLUMNS += ["of FedAvg's bytes", "seconds", "commit"]


def tasks(plan: Iterable[str], found: Results) -> list[str]:
    """The text and a line for each row that has results; the plan begins each task with FedAvg, or with FedAdam.

    Args:
        plan: names of the rows, in order; a task's name ends at the first hyphen.
        found: all results.
    """
    lines = [*HEADING, f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    first: dict[str, Results] = {}
    for name in plan:
        if results := [result for result in found if result["name"] == name]:
            base = first.setdefault(name.partition("-")[0], results)
            lines.append(f"| {' | '.join(line(name, results, base))} |")
    return lines


def line(name: str, results: Results, base: Results) -> list[str]:
    """The cells of one row beside those of the task's first."""
    measure = measure_named(results[0]["metric"])
    own = f"personal_{measure.name}"  # of methods whose devices have models of their own
    personal = all(result["method metrics"].get(own) for result in results)
    scores = {each["seed"]: measure.scaled(last(each, own if personal else "")) for each in results}
    valid = f"valid_{measure.name}" if personal else ""
    bases = {
        each["seed"]: measure.scaled(last(each, valid))
        for each in base
        if not valid or each["method metrics"].get(valid)
    }
    gaps = [scores[seed] - bases[seed] for seed in scores.keys() & bases.keys()]
    digits = ".2f" if measure.unit == "%" or statistics.mean(scores.values()) > 1 else ".4f"
    spread = f" ± {statistics.stdev(scores.values()):{digits}}" if len(scores) > 1 else ""
    up, down = (statistics.mean(each["bytes"][way] for each in results) / 1e6 for way in ("up", "down"))
    whole = statistics.mean(sum(each["bytes"].values()) for each in base) / 1e6
    goal = GOALS.get(name.partition("-")[0]) if results is base else None
    clocked = [each["method metrics"].get("simulated_seconds") for each in results]
    seconds = [each[-1] for each in clocked if each]
    return [
        name + " †" * personal,
        measure.headed(measure.words),
        str(len(results)),
        f"{statistics.mean(scores.values()):{digits}}{spread}",
        f"{goal:g}: {sum(measure.reached(value, goal) for value in scores.values())}" if goal else "",
        f"{statistics.mean(gaps):+{digits}}" if gaps and results is not base else "",
        f"{up:.2f}",
        f"{down:.2f}",
        f"{(up + down) / whole:.3f}",
        f"{statistics.mean(seconds):,.1f}" if seconds else "",
        ", ".join(sorted({str(each["commit"]) for each in results})),
    ]


def last(result: Mapping[str, Any], metric: str = "") -> float:
    """The last value of the measure that decides on the test set, or of another metric."""
    return result["method metrics"][metric][-1] if metric else result["curve"][-1][1]
