"""Everything that a run does before its first question to a client, and nothing after it: what `run` would refuse at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from fedbonsai.core import Answers, Device, Scope, Task, scope
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.setup import run_context

M = TypeVar("M")
R = TypeVar("R")

SAMPLES = 64  # of the server's own: enough to train on, few enough to be quick


class _Asked(Exception):
    """The method has refused nothing: it asks its clients."""


class _Mute(Wrapper):
    """Ends a method where it begins to ask."""

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """End it."""
        raise _Asked


def check(config: RunConfig) -> tuple[str, ...]:
    """Read the data, take one step of the network, and begin the method up to its first question.

    Nothing is written, and no worker or device is needed.

    Returns:
        What a run would say before its first round.

    Raises:
        ConfigError: what `run` would refuse.
    """
    if config.fleet.kind == "flower":
        from fedbonsai.runs.flower import refuse  # needs an extra

        refuse(config)
    config = replace(config, fleet=replace(config.fleet, kind="local", record=False))
    stage = run_context(config)
    server = replace(stage.server, train=stage.server.train[:SAMPLES])
    with scope(_Mute(stage.fleet), Scope("check", config.seed, -1, 0)) as fleet:
        try:
            state = stage.method.begin(stage.model, fleet, server)
            stage.method.round(state, 0, fleet)
        except _Asked:
            pass
    return stage.said
