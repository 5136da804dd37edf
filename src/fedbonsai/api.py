"""The library in a few calls: `run` a recipe, `load` what a run left, `plan` which recipe to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from fedbonsai.data.given import Given
from fedbonsai.places import settle
from fedbonsai.runs import recipes
from fedbonsai.runs.loop import Observer
from fedbonsai.runs.run import Run, execute, load, name_of
from fedbonsai.runs.shown import shown
from fedbonsai.telling import Progress

if TYPE_CHECKING:
    from fedbonsai.planning.answer import Answer

__all__ = ["Run", "load", "plan", "run"]


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
