"""A plan's variants as configurations and jobs; what cannot run is named before anything does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from fedbonsai.data.config import DataConfig
from fedbonsai.errors import ConfigError
from fedbonsai.runs import recipes
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.jobs import Job, status
from fedbonsai.runs.structure import unstructure
from fedbonsai.sweeps.judged import judge
from fedbonsai.sweeps.plan import Plan, Variant

SHOWN = 3  # names beside a fault that many variants share


def over(plan: Plan, settings: Mapping[str, object]) -> Plan:
    """The plan with settings laid over those of all variants.

    Raises:
        ConfigError: the grid has one of the settings, or the sweep sets it.
    """
    if taken := {"seed", "name"} & settings.keys():
        word = min(taken)
        raise ConfigError(f"--{word} is set by the sweep" + ("; use --seeds" if word == "seed" else ""))
    if tried := sorted(plan.tune.grid.keys() & settings.keys()):
        raise ConfigError(f"--{tried[0]}: the plan's tune.grid tries it; leave it out here or there")
    if varied := sorted({path for each in plan.variants for path in each.varied} & settings.keys()):
        raise ConfigError(f"--{varied[0]}: the plan's grid changes it; leave it out here or there")
    return replace(
        plan, variants=tuple(replace(each, settings={**each.settings, **settings}) for each in plan.variants)
    )


def with_seeds(plan: Plan, seeds: Mapping[str, Sequence[int]]) -> Plan:
    """The plan with more seeds, by the names of variants."""
    variants = [
        replace(each, seeds=tuple(dict.fromkeys([*each.seeds, *seeds.get(each.name, ())]))) for each in plan.variants
    ]
    return replace(plan, variants=tuple(variants))


def chosen(plan: Plan, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> Plan:
    """The part of a plan that has these names, of variants or of whole runs, and these seeds; all where none is given.

    Raises:
        ConfigError: there is no such name, or a seed that cannot be one.
    """
    known = list(dict.fromkeys([each.name for each in plan.variants] + [each.run for each in plan.variants]))
    for name in only:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"--only {name}: no run or variant has that name; {hint}there are {', '.join(known)}")
    if wrong := [seed for seed in seeds if seed < 0 or list(seeds).count(seed) > 1]:
        raise ConfigError(f"--seeds {' '.join(map(str, seeds))}: expected numbers >= 0, each once, not {wrong[0]}")
    variants = [each for each in plan.variants if not only or {each.name, each.run} & set(only)]
    return replace(plan, variants=tuple(replace(each, seeds=tuple(seeds) or each.seeds) for each in variants))


def jobs_of(plan: Plan, home: Path, data: Path | None = None) -> list[Job]:
    """All runs of a plan, seed by seed, so that every variant has a first result soon.

    Args:
        plan: what shall run.
        home: folder of the sweep.
        data: folder in which data sets are looked for by their names.

    Raises:
        ConfigError: lists every fault with the variants that have it.
    """
    if data is not None and not data.is_dir():
        raise ConfigError(f"--data {data}: there is no such folder; without --data, FEDBONSAI_DATA names it")
    faults: dict[str, list[str]] = {}
    configs: dict[str, RunConfig] = {}
    same: dict[str, str] = {}
    for variant in plan.variants:
        try:
            config = configs[variant.name] = configured(variant, data)
            judge(config.objective, plan.metric)
        except ConfigError as error:
            for line in str(error).splitlines():
                faults.setdefault(line, []).append(variant.name)
            continue
        key = json.dumps(unstructure(config), sort_keys=True, default=str)
        if key in same:
            faults.setdefault(f"is the same run as {same[key]}; leave one of them out", []).append(variant.name)
        same.setdefault(key, variant.name)
    jobs: list[Job] = []
    for seed in dict.fromkeys(seed for each in plan.variants for seed in each.seeds):
        for variant in plan.variants:
            if seed in variant.seeds and variant.name in configs:
                label = f"{variant.name}-{seed}"
                config = replace(configs[variant.name], seed=seed, name=label)
                try:
                    stands = status(home / label, config)
                except ConfigError as error:
                    faults.setdefault(str(error), []).append(variant.name)
                    continue
                jobs.append(Job(variant.recipe, variant.preset, seed, home / label, config, stands))
    if faults:
        raise ConfigError("\n".join(f"{_names(names)}: {fault}" for fault, names in faults.items()))
    return jobs


def configured(variant: Variant, data: Path | None = None) -> RunConfig:
    """The configuration of a variant, without its seed and name.

    Args:
        variant: of a plan.
        data: folder in which its data set is looked for by name, unless the settings say where it is.

    Raises:
        ConfigError: lists every fault.
    """
    settings = dict(variant.settings)
    if data is not None and "data.path" not in settings:
        named: dict[str, object] = recipes.table(variant.recipe, variant.preset, settings).get("data", {})
        name = str(named.get("name", DataConfig.name))
        if not named.get("path") and (data / name).exists():
            settings |= {"data.name": name, "data.path": str(data / name)}
    config = recipes.load(variant.recipe, variant.preset, settings)
    if config.fleet.kind == "flower":
        raise ConfigError("fleet.kind = 'flower': a sweep runs on this machine; take local or pool")
    return replace(config, seed=0, name="")


def _names(names: Sequence[str]) -> str:
    """Names of the variants that have a fault."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
