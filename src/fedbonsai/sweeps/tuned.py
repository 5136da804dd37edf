"""The same small budget of trials for each variant, by which it chooses settings such as its learning rate.

Trials are a sweep of their own, in the folder ``tune`` of the sweep, with a seed that no result has. A variant takes the
point of the grid at which the clients' validation parts were best; the test set has no say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from math import isnan
from pathlib import Path
from typing import Any

from fedbonsai.errors import ConfigError
from fedbonsai.reports.series import personal
from fedbonsai.runs import recipes
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.run import Run
from fedbonsai.runs.structure import unstructure
from fedbonsai.sweeps.judged import score
from fedbonsai.sweeps.plan import Plan, Variant, axis, words
from fedbonsai.sweeps.results import FILE, Sweep, load_sweep

FOLDER = "tune"


def tuning(plan: Plan) -> Plan:
    """The sweep of a plan's trials: each variant at each point of the grid, all for as many rounds."""
    found: list[Variant] = []
    for variant in plan.variants:
        base = {**variant.settings, "rounds": min(plan.tune.rounds, _rounds(variant, plan.tune.rounds))}
        for settings, named in points(plan):
            name = "-".join([variant.name, *words(named, len(named) > 1)])
            tried = {**base, "patience": 0, "target": 0.0, **settings}
            found.append(
                replace(
                    variant,
                    name=name,
                    run=variant.name,
                    settings=tried,
                    varied=named,
                    seeds=(plan.tune.seed,),
                    tuned={},
                )
            )
    return Plan(FOLDER, tuple(found), metric=plan.metric)


def _rounds(variant: Variant, unknown: int) -> int:
    """Of a variant's runs; ``unknown`` where its recipe cannot be read, which is told when it is asked for."""
    try:
        return int(recipes.table(variant.recipe, variant.preset, variant.settings).get("rounds", RunConfig.rounds))
    except (ConfigError, TypeError, ValueError):
        return unknown


def points(plan: Plan) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each point of the grid: its settings, and what the grid calls them."""
    crossed = product(*(axis(path, values) for path, values in plan.tune.grid.items()))
    return [({path: value for path, _, value in point}, {path: name for path, name, _ in point}) for point in crossed]


def tuned(plan: Plan, home: Path) -> Plan:
    """The plan with what its trials chose: of variants whose trials have all ended, as the plan has them now, one of them well.

    Args:
        plan: with a grid for trials.
        home: folder of the sweep.
    """
    if (trials := _trials(plan, home)) is None:
        return plan
    wanted = tuning(plan)
    return replace(plan, variants=tuple(_chosen(plan, variant, wanted, trials) for variant in plan.variants))


def unjudged(plan: Plan, home: Path) -> list[str]:
    """A line for each variant whose trials have all ended, none of which can be judged."""
    if (trials := _trials(plan, home)) is None:
        return []
    found, wanted = list[str](), tuning(plan)
    for variant in plan.variants:
        mine = _ended(variant, wanted, trials)
        if mine is not None and not _values(mine, plan.metric):
            failed = [
                (name, trials.failed[name])
                for name in (f"{name}-{plan.tune.seed}" for name in mine)
                if name in trials.failed
            ]
            example, why = next(iter(failed), ("all of them", "no figure on the clients' validation parts"))
            found.append(
                f"{variant.name}: no trial of tune.grid could be judged; {example}: {why}; change tune.grid or the runs, or "
                "give the same command again, which tries those that failed once more"
            )
    return found


def _trials(plan: Plan, home: Path) -> Sweep | None:
    """The trials as far as they have come; None where there are none."""
    return load_sweep(home / FOLDER) if plan.tune.grid and (home / FOLDER / FILE).exists() else None


def _ended(variant: Variant, wanted: Plan, trials: Sweep) -> dict[str, Run | None] | None:
    """Trials of a variant in the order of the grid, None for one that failed; None where not all of these have ended."""
    there = {each.name: each for each in trials.plan.variants}
    found: dict[str, Run | None] = {}
    for trial in wanted.variants:
        if trial.run != variant.name:
            continue
        if trial.name not in there or _text(there[trial.name]) != _text(trial):
            return None  # the plan was another one then
        found[trial.name] = run = trials.of(trial).get(trial.seeds[0])
        if run is None and f"{trial.name}-{trial.seeds[0]}" not in trials.failed:
            return None
    return found


def _text(trial: Variant) -> str:
    """What a trial runs, as it is stored."""
    what = (trial.recipe, trial.preset, dict(trial.settings), trial.seeds)
    return json.dumps(unstructure(what), sort_keys=True, default=str)


def _values(ended: Mapping[str, Run | None], metric: str) -> dict[str, float]:
    """How well the trials that did not fail did, by name."""
    values = {name: judged(run, metric) for name, run in ended.items() if run is not None}
    return {name: value for name, value in values.items() if not isnan(value)}


def _chosen(plan: Plan, variant: Variant, wanted: Plan, trials: Sweep) -> Variant:
    ended = _ended(variant, wanted, trials) or {}
    if not (values := _values(ended, plan.metric)):
        return variant
    better = next(run.measure.better for run in ended.values() if run is not None)
    best = (max if better == "higher" else min)(values, key=values.__getitem__)
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
        f"{plan.tune.rounds} rounds (fewer where the runs have fewer) with seed {plan.tune.seed}, which no result has."
    )


def choices(named: Mapping[str, Any]) -> str:
    """What a variant chose, in a cell of a table.

    >>> choices({"method.optimizer.lr": 0.1, "method.optimizer.epochs": 2})
    'lr 0.1, epochs 2'
    """
    return ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in named.items())
