"""What is asked: data, devices, limits and aim, as one value that a plan's folder keeps and that makes every run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedbonsai.data.given import PREFIX
from fedbonsai.errors import ConfigError
from fedbonsai.objectives import Objective
from fedbonsai.planning.limits import GROWING, Limits
from fedbonsai.planning.space import Space
from fedbonsai.runs import recipes
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.structure import structure

PLANNED = ("method", "model", "name", "target", "budget", "evaluate_every")  # what the planner decides itself
COSTS = ("bytes", "seconds", "joules")  # what can be made least


@dataclass(frozen=True)
class Aim:
    """What is wanted: the best measure, or the least cost at which a target is reached; beside it, costs to lower."""

    target: float = 0.0
    lower: tuple[str, ...] = ()
    """Costs that are lowered as well; with a target the first is what counts (bytes where none is said)."""

    @property
    def cost(self) -> str:
        """The cost that is least where a target is reached."""
        return self.lower[0] if self.lower else "bytes"


@dataclass(frozen=True)
class Question:
    """What a plan answers."""

    base: Mapping[str, Any]
    """Tables that all runs share: data, objective, clock, fleet, seed."""
    limits: Limits
    aim: Aim
    space: Space
    rounds: int
    objective: Objective
    """As `base` says it, for its measure."""
    notes: tuple[str, ...] = field(default=())
    """What was taken for granted."""

    def config(self, labels: Mapping[str, str], length: int = 0, seed: int | None = None, rounds: int = 0) -> RunConfig:
        """The run behind labels.

        Args:
            labels: of the space.
            length: rounds that its schedules are made for; 0: as many as are asked for at most.
            seed: of the run; None: the question's.
            rounds: after which it ends; 0: its length.

        Raises:
            ConfigError: the recipe does not take these settings.
        """
        known = recipes.table(labels["recipe"], "", self.space.settings(dict(labels)))
        merged = {**known, **copy.deepcopy(dict(self.base)), "rounds": length or self.rounds}
        merged["budget"] = {
            "seconds" if name == "seconds" else f"device_{name}": value for name, value in self._growing()
        }
        if self.aim.target:
            merged["target"] = self.aim.target
        if seed is not None:
            merged["seed"] = seed
        made = structure(merged, RunConfig)
        return replace(made, rounds=rounds) if rounds else made

    def _growing(self) -> list[tuple[str, float]]:
        given = [(name, value) for name, value in self.limits.set.items() if name in GROWING]
        return [(name, int(value) if name == "bytes" else value) for name, value in given]


def shared(settings: Mapping[str, object]) -> dict[str, Any]:
    """Tables that all runs share, of settings by dotted path; what recipes say of their own data does not count.

    Raises:
        ConfigError: a setting that the planner decides itself, or one that does not exist.
    """
    for name in settings:
        if name.split(".")[0] in PLANNED:
            raise ConfigError(
                f"--{name} is what a plan decides; narrow its choice by --recipes, --networks or a recipe file of your own"
            )
    if str(settings.get("data.path", "")).startswith(PREFIX):
        raise ConfigError("data given in Python stay in one process, and a plan has many: write them to a file")
    merged = recipes.table("fedavg", "", settings)
    own = recipes.table("fedavg")
    if settings.keys() & {"data.path", "data.name", "data.client"}:  # other data keep nothing of the recipe's split
        merged["data"] = {
            name: value
            for name, value in merged["data"].items()
            if any(given == f"data.{name}" or given.startswith(f"data.{name}.") for given in settings)
            or value != own["data"].get(name)
        }
    for name in ("method", "model", "rounds"):
        merged.pop(name, None)
    structure({**merged, "method": own["method"]}, RunConfig)  # every fault at once
    return merged


def aimed(question: Question, target: float, lower: tuple[str, ...]) -> Question:
    """The question with an aim.

    Raises:
        ConfigError: the measure cannot have this value, or there is no such cost.
    """
    measure = question.objective.measure
    if target and (wanted := measure.refusal(target)):
        raise ConfigError(f"--target {target:g}: expected {wanted}")
    if wrong := [name for name in lower if name not in COSTS]:
        raise ConfigError(f"--lower {', '.join(wrong)}: expected one or several of {', '.join(COSTS)}")
    clock = question.base.get("clock", {}).get("devices", "")
    needs = [
        *(f"limit.{name}" for name in question.limits.timed),
        *(f"lower {name}" for name in lower if name != "bytes"),
    ]
    if needs and not clock:
        raise ConfigError(
            f"{needs[0]} needs devices, whose seconds and joules a clock counts: --devices raspberry-pi-4"
        )
    return replace(question, aim=Aim(target, lower))
