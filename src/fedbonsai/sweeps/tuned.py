"""The same small budget of trials for each variant, by which it chooses settings such as its learning rate.

Trials are a sweep of their own, in the folder ``tune`` of the sweep, with a seed that no result has. A variant takes the
point of the grid at which the clients' validation parts were best; the test set has no say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from math import isnan
from pathlib import Path
from typing import Any

from fedbonsai.errors import ConfigError
from fedbonsai.reports.series import personal
from fedbonsai.runs.run import Run
from fedbonsai.sweeps.judged import score
from fedbonsai.sweeps.plan import Plan, Variant, axis, words
from fedbonsai.sweeps.results import FILE, Sweep, load_sweep

FOLDER = "tune"


def tuning(plan: Plan) -> Plan:
    """The sweep of a plan's trials: each variant at each point of the grid, all for as many rounds."""
    found: list[Variant] = []
    for variant in plan.variants:
        base = {
            **variant.settings,
            "rounds": min(plan.tune.rounds, int(variant.settings.get("rounds", plan.tune.rounds))),
        }
        for settings, named in points(plan):
            name = "-".join([variant.name, *words(named, len(named) > 1)])
            tried = {**base, "patience": 0, "target": 0.0, **settings}
            found.append(
                replace(variant, name=name, run=variant.name, settings=tried, varied=named, seeds=(plan.tune.seed,))
            )
    return Plan(FOLDER, tuple(found), metric=plan.metric)


def points(plan: Plan) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each point of the grid: its settings, and what the grid calls them."""
    crossed = product(*(axis(path, values) for path, values in plan.tune.grid.items()))
    return [({path: value for path, _, value in point}, {path: name for path, name, _ in point}) for point in crossed]


def tuned(plan: Plan, home: Path) -> Plan:
    """The plan with what its trials chose, of those variants whose trials have all ended.

    Args:
        plan: with a grid for trials.
        home: folder of the sweep.

    Raises:
        ConfigError: all trials of a variant failed.
    """
    if not plan.tune.grid or not (home / FOLDER / FILE).exists():
        return plan
    trials = load_sweep(home / FOLDER)
    return replace(plan, variants=tuple(_chosen(plan, variant, trials) for variant in plan.variants))


def _chosen(plan: Plan, variant: Variant, trials: Sweep) -> Variant:
    mine = [each for each in trials.plan.variants if each.run == variant.name]
    ended = {each.name: trials.of(each).get(plan.tune.seed) for each in mine}
    failed = {name: why for name in ended if (why := trials.failed.get(f"{name}-{plan.tune.seed}"))}
    if len(mine) < len(points(plan)) or any(run is None and name not in failed for name, run in ended.items()):
        return variant
    runs = [run for run in ended.values() if run is not None]
    values = {name: judged(run, plan.metric) for name, run in ended.items() if run is not None}
    values = {name: value for name, value in values.items() if not isnan(value)}
    if not values:
        example, why = next(iter(failed.items()), ("all of them", "no client has a validation part"))
        raise ConfigError(f"{variant.name}: no trial of tune.grid could be judged; {example}: {why}")
    best = (max if runs[0].measure.better == "higher" else min)(values, key=values.__getitem__)
    settings, named = points(plan)[list(ended).index(best)]
    return replace(variant, settings={**variant.settings, **settings}, tuned=named)


def judged(run: Run, metric: str) -> float:
    """A trial on the clients' validation parts; models that devices have of their own are judged there anyway."""
    if personal(run):
        return score(run, metric if metric.startswith("personal_") else "", own=True)
    return score(run, f"valid_{run.measure.name}")


def how_tuned(plan: Plan) -> str:
    """How the variants of a plan were tuned, in a sentence; empty where they were not."""
    if not plan.tune.grid:
        return ""
    names = ", ".join(path.rpartition(".")[2] for path in plan.tune.grid)
    return (
        f"Each variant's {names} are the best of the same {len(points(plan))} on the clients' validation parts, after "
        f"{plan.tune.rounds} rounds with seed {plan.tune.seed}, which no result has."
    )


def choices(named: Mapping[str, Any]) -> str:
    """What a variant chose, in a cell of a table.

    >>> choices({"method.optimizer.lr": 0.1, "method.optimizer.epochs": 2})
    'lr 0.1, epochs 2'
    """
    return ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in named.items())
