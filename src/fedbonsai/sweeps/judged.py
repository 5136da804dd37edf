"""By which figure the runs of a sweep are judged, and what it is in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import nan
from statistics import fmean

from fedbonsai.errors import ConfigError
from fedbonsai.objectives import Measure, Objective
from fedbonsai.objectives.base import measure_named
from fedbonsai.reports.series import Row, scored
from fedbonsai.runs.loop import PARTED
from fedbonsai.runs.run import Run

LAST = 5  # evaluated rounds of which a score is the mean


def judge(objective: Objective, metric: str) -> Measure:
    """The measure of a column of the metrics; of none, the one that decides.

    Raises:
        ConfigError: runs with this objective have no such column.
    """
    if not metric:
        return objective.measure
    ends = [f"client_{end}" for end in PARTED[objective.measure.better]]
    kind, _, base = metric.partition("_")
    if metric in objective.measures:
        return measure_named(metric)
    if kind in ("personal", "valid") and base in objective.measures:
        return replace(measure_named(base), name=metric)
    if metric in ends:
        return replace(objective.measure, name=metric)
    if metric in ("loss", "valid_loss"):
        return Measure(metric, "lower")
    known = [*objective.measures, *(f"{way}_{objective.metric}" for way in ("valid", "personal")), *ends, "loss"]
    raise ConfigError(
        f"metric = {metric!r}: objective {objective.choice_name!r} gives no such column; expected one of {', '.join(known)}"
    )


def judgements(run: Run, metric: str, own: bool) -> list[tuple[Row, float]]:
    """Rounds in which a run was judged, with the verdict.

    Args:
        run: of a sweep.
        metric: a column; empty: the measure that decides, on the test set.
        own: without a metric, on the devices' own data instead.
    """
    if metric:
        return [(row, float(row[metric])) for row in run.metrics if metric in row]
    return scored(run, own)


def score(run: Run, metric: str = "", own: bool = False) -> float:
    """Mean over the last evaluated rounds, up to five; NaN where there is none.

    Of personal models, which may be judged in fewer rounds, it is the mean of the judgements in those rounds.
    """
    late = [row["round"] for row, _ in scored(run)][-LAST:]
    values = [value for row, value in judgements(run, metric, own) if late and row["round"] >= late[0]]
    return fmean(values) if values else last(run, metric, own)


def last(run: Run, metric: str = "", own: bool = False) -> float:
    """The last verdict; NaN where there is none."""
    verdicts: Sequence[tuple[Row, float]] = judgements(run, metric, own)
    return verdicts[-1][1] if verdicts else nan
