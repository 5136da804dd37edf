"""The library in a few calls: `run` a recipe or `sweep` over many settings, and `load` what a run left."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbonsai.data.given import Given
from fedbonsai.places import settle
from fedbonsai.runs import recipes
from fedbonsai.runs.loop import Observer
from fedbonsai.runs.run import Run, execute, load, name_of
from fedbonsai.runs.shown import shown
from fedbonsai.sweeps.plan import read
from fedbonsai.sweeps.results import Sweep, load_sweep
from fedbonsai.sweeps.sweep import carry, ready
from fedbonsai.telling import Progress

__all__ = ["Run", "Sweep", "load", "load_sweep", "run", "sweep"]


def run(
    recipe: str,
    *,
    preset: str = "",
    runs: str | Path = "runs",
    resume: bool = False,
    data: Given | None = None,
    observers: Iterable[Observer] = (),
    progress: bool | Callable[[Progress], object] = True,
    **settings: object,
) -> Run:
    """Run a recipe and return the finished run.

    Args:
        recipe: name of a shipped recipe, or path of a TOML file.
        preset: a preset of the recipe, such as ``published``.
        runs: folder under which the run's own folder is made.
        resume: continue the run of that name if there is one.
        data: given in Python instead of the recipe's, as `fedbonsai.data.of` makes it.
        observers: see each round as it ends.
        progress: what takes more than two seconds is shown on standard error (True) or not at all (False), or given to a
            function, four times a second at most; what that raises ends the run.
        settings: overrides; dots of a setting's path are written as two underscores (``data__clients=100``).

    Raises:
        ConfigError: lists every fault of the configuration, or says that the run exists already.
        Unanswered: nobody answered when the run began, or (`NothingLearned`) rounds in a row brought no update.
        TaskFailed: a task fails alike on all clients.
    """
    settle()
    overrides = {name.replace("__", "."): value for name, value in settings.items()}
    if data is not None:
        overrides = {"data.path": data.path, "data.name": data.name} | overrides
    config = recipes.load(recipe, preset, overrides)
    folder = Path(runs) / name_of(recipe, config)
    there = resume and (folder / "config.toml").exists()
    with shown(progress):
        return execute(config, folder, there, observers)


def sweep(
    plan: str | Path | Mapping[str, Any],
    *,
    runs: str | Path = "runs",
    name: str = "",
    workers: int = 0,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    hours: float = 0.0,
    data: str | Path | None = None,
    progress: bool | Callable[[Progress], object] = True,
    **settings: object,
) -> Sweep:
    """Carry out a plan of recipes by settings by seeds; the same call goes on with one that was interrupted.

    Runs are processes of their own, which begin as this one did: in a script, call it below
    ``if __name__ == "__main__":``. A run that fails stops no other; `Sweep.failed` says which did and why.

    Args:
        plan: file of a plan, or a mapping as the file would give it.
        runs: folder under which the sweep's own folder is made.
        name: of that folder; empty: the plan's.
        workers: runs at a time; 0: one a core.
        only: variants, or names of runs in the plan; all when left out.
        seeds: only of these; the tables have those beside the plan's.
        hours: begin no run that would not end within so many; 0 is no bound.
        data: folder in which data sets are looked for by their names.
        progress: as for `run`.
        settings: of all runs, as for `run`.

    Raises:
        ConfigError: lists every fault of the plan, or says who carries out a sweep in that folder.
        DiskFull: there is no room; what was finished is kept.
    """
    settle()
    overrides = {name.replace("__", "."): value for name, value in settings.items()}
    what = ready(read(plan), Path(runs), name, overrides, only, seeds, None if data is None else Path(data))
    with shown(progress):
        return carry(what, workers or os.cpu_count() or 1, hours=hours)[0]
