"""Runs put together for a report: one series for each configuration, its seeds side by side.

A series knows its runs' evaluated rounds and can tell them along any axis on which they have figures. All series of a
report are judged in one way: by the global model on the test set, or, where a run has personal parts, by the model that
each device would use on the device's own validation part.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedbonsai.errors import ConfigError
from fedbonsai.objectives import Measure
from fedbonsai.runs.run import Run
from fedbonsai.runs.structure import unstructure
from fedbonsai.runs.trouble import of_run

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """What a measure can be drawn against: sums over the run up to a round, of one or more columns of the metrics."""

    name: str
    columns: tuple[str, ...]
    label: str
    scale: float = 1.0
    log: bool = False

    def value(self, row: Row) -> float | None:
        """Value in a round, None where the run has no such figures."""
        if not all(column in row for column in self.columns):
            return None
        return self.scale * (sum(row[column] for column in self.columns) + (self.name == "rounds"))


AXES = (
    Axis("rounds", ("round",), "round"),
    Axis("bytes", ("total_bytes_up", "total_bytes_down"), "megabytes moved, both directions", 1e-6, True),
    Axis("seconds", ("simulated_seconds",), "simulated seconds", 1.0, True),
    Axis("energy", ("total_joules",), "joules, all devices together", 1.0, True),
    Axis("epsilon", ("epsilon",), "epsilon of differential privacy, each at its own delta"),
    Axis("work", ("total_macs",), "multiplications on all devices, millions", 1e-6, True),
)


def scored(run: Run, own: bool = False) -> list[tuple[Row, float]]:
    """Rounds in which a run was judged on the test set, or on the devices' own data, with the verdict."""
    kind = "" if not own else "personal_" if personal(run) else "valid_"
    column = f"{kind}{run.measure.name}"
    return [(row, float(row[column])) for row in run.metrics if column in row]


def personal(run: Run) -> bool:
    """Whether each client has a model of its own, by which the run was judged."""
    return any(f"personal_{run.measure.name}" in row for row in run.metrics)


@dataclass(frozen=True)
class Series:
    """Runs of one configuration that differ in their seeds only, and how they are judged."""

    label: str
    runs: tuple[Run, ...]
    own: bool = False
    """Judged on the devices' own data, not on the test set."""

    @property
    def measure(self) -> Measure:
        """By which it is judged."""
        return self.runs[0].measure

    @property
    def judged(self) -> str:
        """What its figures are, in words."""
        return f"{self.measure.words} on own data" if self.own else f"test {self.measure.words}"

    @property
    def personal(self) -> bool:
        """Whether each client has a model of its own; then a measure of the common part means nothing."""
        return personal(self.runs[0])

    def scored(self) -> list[list[tuple[Row, float]]]:
        """Rounds that were judged, with the verdict, by run."""
        return [scored(run, self.own) for run in self.runs]

    def curve(self, axis: Axis) -> list[tuple[float, float, float, float]]:
        """Points (x, mean, lowest, highest) over the rounds that all seeds have; empty without such figures."""
        points: list[tuple[float, float, float, float]] = []
        for rows in zip(*self.scored(), strict=False):
            places = [axis.value(row) for row, _ in rows]
            if any(place is None for place in places):
                return []
            values = [value for _, value in rows]
            place = statistics.mean(place for place in places if place is not None)
            points.append((place, statistics.mean(values), min(values), max(values)))
        return points

    def column(self, name: str) -> list[tuple[int, float]]:
        """Mean over the seeds of one column of the metrics, as (round from 1, value); empty where no run has it."""
        found: list[tuple[int, float]] = []
        for rows in zip(*(run.metrics for run in self.runs), strict=False):
            values = [float(row[name]) for row in rows if name in row]
            if len(values) == len(rows):
                found.append((int(rows[0]["round"]) + 1, statistics.mean(values)))
        return found

    def final(self) -> tuple[float, float]:
        """The measure over the last five evaluated rounds: mean over the seeds and sample standard deviation (0 for one).

        Of personal models, which may be judged in fewer rounds, it is the mean of the judgements in those rounds.
        """
        each: list[float] = []
        for run, judged in zip(self.runs, self.scored(), strict=True):
            first = [row["round"] for row, _ in scored(run)][-5:][0]
            late = [value for row, value in judged if row["round"] >= first]
            each.append(statistics.mean(late or [judged[-1][1]]))
        return statistics.mean(each), statistics.stdev(each) if len(each) > 1 else 0.0

    def to(self, goal: float, axis: Axis) -> float | None:
        """Mean place on an axis where the measure first reaches a goal; None unless every seed gets there."""
        places: list[float] = []
        for rows in self.scored():
            first = next((row for row, value in rows if self.measure.reached(value, goal)), None)
            place = axis.value(first) if first is not None else None
            if place is None:
                return None
            places.append(place)
        return statistics.mean(places)

    def kinds(self) -> dict[tuple[str, str], float]:
        """Bytes by direction and message class, mean over the seeds."""
        sums: dict[tuple[str, str], float] = {}
        for run in self.runs:
            for row in run.ledger():
                key = (str(row["direction"]), str(row["kind"]))
                sums[key] = sums.get(key, 0.0) + row["bytes"] / len(self.runs)
        return sums


def together(runs: Sequence[Run]) -> list[Series]:
    """Group runs by configuration, in the order in which they were given, and choose how all of them are judged.

    Raises:
        ConfigError: a run has no evaluated round yet, two folders hold the same configuration and seed, or runs are not
            judged by one measure.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if not scored(run):
            status = run.info.get("status", "running")
            then = "wait for one" if status == "running" else f"go on with it: fedbonsai run --resume {run.path}"
            raise ConfigError(f"{run.path} ({status}) has no evaluated round yet; {then}, or leave it out")
        settings = {key: value for key, value in unstructure(run.config).items() if key not in ("seed", "name")}
        groups.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(run)
    judges = {run.measure.name: run for run in reversed(runs)}
    if len(judges) > 1:
        told = ", ".join(f"{run.path} by {name}" for name, run in reversed(judges.items()))
        raise ConfigError(f"runs are judged by different measures, {told}: compare those of one objective.metric")
    # one way for all; where a run was not judged by its devices' own data, the test set is all there is
    own = any(personal(run) for run in runs) and all(scored(run, own=True) for run in runs)
    found: list[Series] = []
    for group in groups.values():
        seeds = [run.config.seed for run in group]
        if twice := {seed for seed in seeds if seeds.count(seed) > 1}:
            same = ", ".join(str(run.path) for run in group if run.config.seed in twice)
            raise ConfigError(f"{same} hold the same configuration and seed; name one of them")
        found.append(Series(_label(group[0], {series.label for series in found}), tuple(group), own))
    return found


def baseline(series: Sequence[Series], name: str = "") -> Series:
    """The series that others are held against: the one of that name, else the first.

    Raises:
        ConfigError: no series has that name.
    """
    if not name:
        return series[0]
    for each in series:
        if each.label == name:
            return each
    raise ConfigError(f"no run {name!r} to compare with; there are {', '.join(each.label for each in series)}")


def goal_of(reference: Series, wanted: float = 0.0) -> float:
    """The value to which costs are told: what was asked for, else a little less than what the reference ends with.

    That is one point less of a measure up to 1, and 2 % worse of any other (`Measure.nearly`).

    Raises:
        ConfigError: the measure cannot have that value.
    """
    if wanted and (expected := reference.measure.refusal(wanted)):
        raise ConfigError(f"target {wanted:g}: expected {expected}")
    return wanted or reference.measure.nearly(reference.final()[0])


def cautions(series: Sequence[Series]) -> list[str]:
    """What must be said beside the figures, so that nobody holds unlike things against each other."""
    names = ", ".join(each.label for each in series if each.personal)
    notes = [(each.label, each.runs[0].info.get("notes", {}).get("judged", "")) for each in series]
    said = [f"{label}: {note}." for label, note in notes if note]
    said += [f"{run.path.resolve().name}: {text}." for each in series for run in each.runs if (text := _troubled(run))]
    if not names:
        return said
    if series[0].own:
        return [
            *said,
            f"{names}: each device's own model. All are therefore judged on the devices' own validation parts, by the "
            "model that each device would use; devices weigh as many as their samples.",
        ]
    return [
        *said,
        f"{names}: each device has a model of its own, but other runs were not judged on the devices' own data "
        f"(data.valid = 0). The {series[0].judged} shown for it is that of the common part with a head that nobody trained.",
    ]


def _troubled(run: Run) -> str:
    """How a run failed, and what there is to tell of silent clients."""
    failed = [f"failed: {run.info.get('reason', '')}"] if run.info.get("status") == "failed" else []
    return "; ".join([*failed, *of_run(run.metrics)]).rstrip(".")


def _label(run: Run, taken: set[str]) -> str:
    name = run.path.resolve().name  # of ".", too
    base = re.sub(rf"-{run.config.seed}$", "", name) or name
    label, number = base, 2
    while label in taken:
        label, number = f"{base} ({number})", number + 1
    return label
