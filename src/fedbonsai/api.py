"""The library in a few calls: `run` a recipe, `sweep` over many settings, `plan` which to run, `load` what a run left."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbonsai.data.given import Given
from fedbonsai.errors import ConfigError
from fedbonsai.places import settle
from fedbonsai.runs import recipes
from fedbonsai.runs import run as runs_of
from fedbonsai.runs.folder import Folder
from fedbonsai.runs.given import Network, hold, hold_again
from fedbonsai.runs.loop import Observer
from fedbonsai.runs.run import Run, execute, name_of, stored
from fedbonsai.runs.shown import shown
from fedbonsai.sweeps.plan import read
from fedbonsai.sweeps.results import Sweep, load_sweep
from fedbonsai.sweeps.sweep import carry, ready
from fedbonsai.telling import Progress

if TYPE_CHECKING:
    from fedbonsai.planning.answer import Answer

__all__ = ["Run", "Sweep", "load", "load_sweep", "plan", "run", "sweep"]


def run(
    recipe: str,
    *,
    preset: str = "",
    runs: str | Path = "runs",
    resume: bool = False,
    data: Given | None = None,
    model: Network | str | Mapping[str, Any] | None = None,
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
        model: a network of one's own instead of the recipe's, for runs in this process: an object, which is copied and whose
            weights the run begins with; or a class or function that makes one, whose keyword arguments are filled in as those
            of a registered `network`. Or the name of one, or a table as in a recipe.
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
        overrides = data.settings | overrides
    given = model is not None and not isinstance(model, str | Mapping)
    if isinstance(model, Mapping):
        overrides["model"] = model
    elif model is not None:
        if "model.name" in overrides:
            raise ConfigError("model and model__name exclude each other: leave one out")
        overrides["model.name"] = model if isinstance(model, str) else hold(model)
    config = recipes.load(recipe, preset, overrides)
    folder = Path(runs) / name_of(recipe, config)
    there = resume and (folder / "config.toml").exists()
    if there and given:
        hold_again(model, stored(folder).model.name, Folder(folder).noted().get("given", {}), folder)
    with shown(progress):
        return execute(config, folder, there, observers)


def load(folder: str | Path, *, model: Network | None = None) -> Run:
    """A run from its folder.

    Args:
        folder: of the run.
        model: where its network was given in Python to another process: the same again, with whatever weights.

    Raises:
        ConfigError: there is no run, or it was another network.
    """
    found = runs_of.load(folder)
    if model is not None:
        hold_again(model, found.config.model.name, found.info.get("given", {}), folder)
    return found


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


def plan(
    *,
    limits: Mapping[str, object] | None = None,
    folder: str | Path = "plan",
    hours: float = 0.0,
    trials: int = 0,
    rounds: int = 30,
    target: float = 0.0,
    lower: Sequence[str] = (),
    recipes: Sequence[str] = (),
    networks: Sequence[str] = (),
    finalists: int = 3,
    seeds: int = 3,
    workers: int = 0,
    say: Callable[[str], object] = print,
    progress: bool | Callable[[Progress], object] = True,
    **settings: object,
) -> Answer:
    """Find recipe, network, density and codec for data, devices, links and limits; as ``fedbonsai plan``.

    Trials run in processes of their own, so a script calls it below ``if __name__ == "__main__":``.

    Args:
        limits: what a run may cost a device, such as ``{"bytes": "5MB", "latency": "20ms"}``.
        folder: of the plan; a second call goes on there.
        hours: that all of it takes; 0: one, or as long as ``trials`` take.
        trials: settings that train at most; 0: until the time is up.
        rounds: of a run at most.
        target: value of the measure that is to be reached at the least cost; 0: the best measure is wanted.
        lower: costs to lower beside the measure: bytes, seconds, joules.
        recipes: that are tried; none: a choice.
        networks: that are tried; none: those that fit the data.
        finalists: settings that run again.
        seeds: other seeds on which they do, at most.
        workers: processes; 0: all cores.
        say: told what was found on the way.
        progress: as for `run`.
        settings: of every run (``data__path="folder"``, ``devices="raspberry-pi-4"``, ``link="lte"``).

    Raises:
        ConfigError: names what is wrong, or which limit no setting meets.
        Missing: Optuna is not installed.
    """
    from fedbonsai.planning.plan import Effort, carry_out, cores, question
    from fedbonsai.runs.recipes import SHORT

    settle()
    shared = {SHORT.get(name, name).replace("__", "."): value for name, value in settings.items()}
    time = hours * 3600 if hours else inf if trials else 3600.0
    with shown(progress):
        asked = question(shared, limits, target=target, lower=lower, recipes=recipes, networks=networks, rounds=rounds)
        return carry_out(asked, Path(folder), Effort(time, trials, seeds, finalists, workers or cores()), say)
