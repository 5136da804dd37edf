"""The library in two calls: `run` a recipe, `load` what a run left."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedbonsai.places import settle
from fedbonsai.runs import recipes
from fedbonsai.runs.loop import Observer
from fedbonsai.runs.run import Run, execute, load, name_of

__all__ = ["Run", "load", "run"]


def run(
    recipe: str,
    *,
    preset: str = "",
    runs: str | Path = "runs",
    resume: bool = False,
    observers: Iterable[Observer] = (),
    **settings: object,
) -> Run:
    """Run a recipe and return the finished run.

    Args:
        recipe: name of a shipped recipe, or path of a TOML file.
        preset: a preset of the recipe, such as ``published``.
        runs: folder under which the run's own folder is made.
        resume: continue the run of that name if there is one.
        observers: see each round as it ends.
        settings: overrides; dots of a setting's path are written as two underscores (``data__clients=100``).

    Raises:
        ConfigError: lists every fault of the configuration, or says that the run exists already.
        Unanswered: nobody answered when the run began, or (`NothingLearned`) rounds in a row brought no update.
        TaskFailed: a task fails alike on all clients.
    """
    settle()
    overrides = {name.replace("__", "."): value for name, value in settings.items()}
    config = recipes.load(recipe, preset, overrides)
    folder = Path(runs) / name_of(recipe, config)
    there = resume and (folder / "config.toml").exists()
    return execute(config, folder, there, observers)
