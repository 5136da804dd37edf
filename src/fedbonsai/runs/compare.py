"""A comparison: recipes by seeds, on the same data. `runs.jobs` carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedbonsai.errors import ConfigError
from fedbonsai.runs import recipes
from fedbonsai.runs.jobs import Job, status
from fedbonsai.runs.structure import unstructure


def plan(
    names: Sequence[str], seeds: int, home: Path, overrides: Mapping[str, object], first_seed: int = 0
) -> list[Job]:
    """What a comparison consists of, seed by seed, so that every recipe has a first result soon.

    Args:
        names: recipes; ``fl-pqsu:published`` is a preset of one.
        seeds: how many for each recipe.
        home: folder of the comparison.
        overrides: settings of all runs, by dotted path.
        first_seed: the first of the seeds.

    Raises:
        ConfigError: a recipe or setting is wrong, two recipes are the same run or would share a folder, or a folder
            holds a run of another configuration.
    """
    if seeds < 1:
        raise ConfigError(f"seeds = {seeds}: expected at least 1")
    if twice := {name for name in names if list(names).count(name) > 1}:
        raise ConfigError(f"{', '.join(sorted(twice))} given twice; each recipe is compared once")
    if taken := {"seed", "name"} & overrides.keys():
        raise ConfigError(f"--{min(taken)} is set by the comparison; use --seeds and --first-seed")
    jobs: list[Job] = []
    for seed in range(first_seed, first_seed + seeds):
        for name in names:
            recipe, _, preset = name.partition(":")
            label = f"{Path(recipe).stem}-{preset}-{seed}" if preset else f"{Path(recipe).stem}-{seed}"
            config = recipes.load(recipe, preset, {**overrides, "seed": seed, "name": label})
            jobs.append(Job(recipe, preset, seed, home / label, config, status(home / label, config)))
    _apart(names, jobs[: len(names)])
    return jobs


def _apart(names: Sequence[str], jobs: Sequence[Job]) -> None:
    """Refuse what would be found out when all hours are spent: runs in one folder, that are the same, or judged unlike."""
    for place, (name, job) in enumerate(zip(names, jobs, strict=True)):
        for other, earlier in zip(names[:place], jobs, strict=False):
            judges = [each.config.objective.metric for each in (earlier, job)]
            if judges[0] != judges[1]:
                raise ConfigError(
                    f"{other} is judged by {judges[0]}, {name} by {judges[1]}: set --objective.metric for both"
                )
            if job.folder == earlier.folder:
                raise ConfigError(f"{other} and {name} would both run in {job.folder}; give one of them another name")
            if unstructure(replace(job.config, name="")) == unstructure(replace(earlier.config, name="")):
                raise ConfigError(f"{other} and {name} are the same run; leave one of them out")
