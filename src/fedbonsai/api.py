"""The library in two calls: `run` a recipe, `load` what a run left."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from fedbonsai.data.given import Given
from fedbonsai.places import settle
from fedbonsai.runs import recipes
from fedbonsai.runs.loop import Observer
from fedbonsai.runs.run import Run, execute, load, name_of
from fedbonsai.runs.shown import shown
from fedbonsai.telling import Progress

__all__ = ["Run", "load", "run"]


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
        overrides = data.settings | overrides
    config = recipes.load(recipe, preset, overrides)
    folder = Path(runs) / name_of(recipe, config)
    there = resume and (folder / "config.toml").exists()
    with shown(progress):
        return execute(config, folder, there, observers)
