"""Federated training of small models on constrained devices, with its cost counted in what was really sent."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedbonsai.api import Run, Sweep, load, load_sweep, plan, run, sweep
    from fedbonsai.arch import Arch, network
    from fedbonsai.core import Client, Device, Fleet, Memory, Method, Samples, task
    from fedbonsai.data.config import DataConfig
    from fedbonsai.errors import (
        BadMessage,
        ConfigError,
        FedbonsaiError,
        Forgotten,
        Missing,
        NothingLearned,
        TaskFailed,
        Unanswered,
    )
    from fedbonsai.methods.registry import method
    from fedbonsai.model import Model
    from fedbonsai.runs.config import RunConfig
    from fedbonsai.wire import decode, encode, message

__all__ = [
    "Arch",
    "BadMessage",
    "Client",
    "ConfigError",
    "DataConfig",
    "Device",
    "FedbonsaiError",
    "Fleet",
    "Forgotten",
    "Memory",
    "Method",
    "Missing",
    "Model",
    "NothingLearned",
    "Run",
    "RunConfig",
    "Samples",
    "Sweep",
    "TaskFailed",
    "Unanswered",
    "decode",
    "encode",
    "load",
    "load_sweep",
    "message",
    "method",
    "network",
    "plan",
    "run",
    "sweep",
    "task",
]

# where the public names live; nothing is imported before it is used, so that the command line answers at once
_HOMES = {
    "api": ("Run", "Sweep", "load", "load_sweep", "plan", "run", "sweep"),
    "arch": ("Arch", "network"),
    "core": ("Client", "Device", "Fleet", "Memory", "Method", "Samples", "task"),
    "data.config": ("DataConfig",),
    "errors": (
        "BadMessage",
        "ConfigError",
        "FedbonsaiError",
        "Forgotten",
        "Missing",
        "NothingLearned",
        "TaskFailed",
        "Unanswered",
    ),
    "methods.registry": ("method",),
    "model": ("Model",),
    "runs.config": ("RunConfig",),
    "wire": ("decode", "encode", "message"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":  # pyproject.toml is its one place
        from importlib.metadata import version

        return version("fedbonsai")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"fedbonsai.{module}"), name)
    raise AttributeError(f"module 'fedbonsai' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
