"""A plan from what was asked to its folder: look at the data, search, run finalists again, answer."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from fedbonsai import data
from fedbonsai.data.federation import Federation
from fedbonsai.errors import ConfigError, Missing
from fedbonsai.planning.answer import Answer
from fedbonsai.planning.finals import finalists, rerun
from fedbonsai.planning.home import Home
from fedbonsai.planning.journal import Journal
from fedbonsai.planning.limits import Limits
from fedbonsai.planning.pool import OutOfTime, Pool
from fedbonsai.planning.quantities import quantity
from fedbonsai.planning.question import Aim, Question, aimed, shared
from fedbonsai.planning.runner import Processes
from fedbonsai.planning.search import Search, directions
from fedbonsai.planning.space import Space, kind_of, usual
from fedbonsai.runs.config import DataConfig, RunConfig
from fedbonsai.runs.setup import clock_of
from fedbonsai.runs.structure import structure

LEAST = 20  # validation samples below which a choice would be one by chance
SEARCH = 0.6  # share of the time after which finalists are run again


@dataclass(frozen=True)
class Effort:
    """How much is tried.

    Attributes:
        hours: seconds of all commands in the folder; infinite: until the settings are used up.
        trials: settings that train at most; 0: until time is up.
        seeds: on which finalists run again at most.
        finalists: how many.
        workers: processes.
    """

    hours: float = inf
    trials: int = 0
    seeds: int = 3
    finalists: int = 3
    workers: int = 1


def question(
    settings: Mapping[str, object],
    limits: Mapping[str, object] | None = None,
    *,
    target: float = 0.0,
    lower: Sequence[str] = (),
    recipes: Sequence[str] = (),
    networks: Sequence[str] = (),
    rounds: int = 30,
    space: Space | None = None,
) -> Question:
    """What is asked, after a look at the data.

    Args:
        settings: that all runs share, by dotted path, such as ``data.path`` and ``clock.devices``.
        limits: names and quantities, as `Limits` has them.
        target: value of the measure that is to be reached at the least cost; 0: the best measure is wanted.
        lower: costs that are lowered beside the measure.
        recipes: that are tried; none: those of `usual`.
        networks: that are tried, by label or name; none: those of `usual` for data of this kind.
        rounds: of a run at most.
        space: instead of `usual`.

    Raises:
        ConfigError: names what is wrong.
    """
    if rounds < 1:
        raise ConfigError(f"--rounds {rounds}: expected at least 1")
    wanted, base = Limits.of(limits or {}), shared(settings)
    config = structure({**base, "method": {"name": "averaging"}}, RunConfig)
    notes: list[str] = []
    held = _data(config)
    if held.kind == "numbers" and not base["data"].get("transforms") and "data.transforms" not in settings:
        base["data"]["transforms"] = ["standardise"]
        notes.append("inputs are numbers, so they are standardised (data.transforms)")
    if "objective.name" not in settings:
        name = "tokens" if held.kind == "tokens" else "classification" if held.classes else "regression"
        if name != "classification":
            base["objective"] = {**base.get("objective", {}), "name": name}
            notes.append(f"targets are {'tokens' if name == 'tokens' else 'numbers'}, so the objective is {name}")
    config = structure({**base, "method": {"name": "averaging"}}, RunConfig)
    if notes:
        held = _data(config)
    _parted(held, config.data)
    notes += held.remarks()
    if config.clock.devices:
        clock_of(config.clock, held.ids, config.seed)
    found = space or usual(kind_of(held.kind, held.samples.shape), len(held.ids), len(held.server))
    asked = Question(base, wanted, Aim(), found.only(recipes, networks), rounds, config.objective, tuple(notes))
    return aimed(asked, target, tuple(lower))


def _data(config: RunConfig) -> Federation:
    return data.load(config.data, config.seed if config.data.seed is None else config.data.seed)


def _parted(held: Federation, config: DataConfig) -> None:
    """See that there are validation parts to choose by.

    Raises:
        ConfigError: there are too few.
    """
    apart, all_ = sum(map(len, held.valid)), sum(map(len, (*held.train, *held.valid)))
    if apart < LEAST:
        raise ConfigError(
            f"data.valid = {config.valid:g} holds {apart} of {all_} samples out, by which settings are chosen: expected at least "
            f"{LEAST}; raise data.valid, or give more data"
        )


def carry_out(asked: Question, folder: Path, effort: Effort, say: Callable[[str], object] = print) -> Answer:
    """Plan in a folder, or go on there; the answer is written in any case in which a setting was trained.

    Raises:
        ConfigError: no setting meets the limits, the folder is another plan's, or the disk refuses.
        KeyboardInterrupt: Ctrl-C, after the answer with what was found by then was written.
    """
    home = Home(folder)
    with home.alone(asked), Pool(effort.workers) as pool:
        journal = Journal(folder, asked.space, directions(asked), int(asked.base.get("seed", 0)))
        runner = Processes(asked, folder, pool)

        def told(text: str) -> None:
            home.note()
            say(text)

        search = Search(asked, journal, runner, effort.trials, told)
        now, left = time.monotonic(), effort.hours - home.spent
        stopped: KeyboardInterrupt | None = None
        found: list[Any] = []
        try:
            pool.until = now + max(0.0, effort.hours * SEARCH - home.spent)
            try:
                search.run()
            except OutOfTime:
                search.salvage()
                told("the time for the search is over")
            pool.until = now + left
            found = finalists(search.feasible(), asked, effort.finalists)
            rerun(found, asked, folder, runner, pool, effort.seeds, told)
        except KeyboardInterrupt as error:
            stopped = error
            pool.close()
            search.salvage()
        found = found or finalists(search.feasible(), asked, effort.finalists)
        home.note()
        if not found:
            if stopped is not None:
                raise stopped
            raise ConfigError(f"{search.unfinished()}; raise --hours, and the same command goes on")
        answer = Answer(asked, search, found)
        written(home, answer)
        if stopped is not None:
            raise stopped
        return answer


def written(home: Home, answer: Answer) -> None:
    """Write an answer into its folder."""
    from fedbonsai.planning.page import page

    files = {
        "best.toml": answer.recipe(),
        "plan.md": answer.markdown(),
        "answer.json": json.dumps(answer.plain(), indent=1),
    }
    with suppress(Missing):  # without Plotly there are tables
        files["plan.html"] = page(answer)
    home.write(files)


def hours(given: object) -> float:
    """Seconds of a time that is in hours where it has no unit.

    Raises:
        ConfigError: it is none.
    """
    return quantity(given, "seconds", "--hours", "h")


def cores() -> int:
    """Processes that this machine has cores for."""
    return os.cpu_count() or 1
