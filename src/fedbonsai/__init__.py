"""Federated training of small models on constrained devices, with its cost counted in what was really sent.

>>> import fedbonsai
>>> run = fedbonsai.run("fedavg", rounds=1, runs=getfixture("tmp_path"))
>>> run.model.arch.name
'cnn-bn'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedbonsai.api import load, run
    from fedbonsai.core import Client, Device, Fleet, Memory, Samples, task
    from fedbonsai.data import DataConfig
    from fedbonsai.errors import BadMessage, ConfigError, FedbonsaiError, Forgotten, Missing, Unanswered
    from fedbonsai.methods.registry import method
    from fedbonsai.model import Model, network
    from fedbonsai.runs.config import RunConfig
    from fedbonsai.wire import decode, encode, message

# what is public, and where it lives; nothing is imported before it is used, so that the command line answers at once
_HOME = {
    "load": "api",
    "run": "api",
    "Client": "core",
    "Device": "core",
    "Fleet": "core",
    "Memory": "core",
    "Samples": "core",
    "task": "core",
    "DataConfig": "data.config",
    "BadMessage": "errors",
    "ConfigError": "errors",
    "FedbonsaiError": "errors",
    "Forgotten": "errors",
    "Missing": "errors",
    "Unanswered": "errors",
    "method": "methods.registry",
    "Model": "model",
    "network": "model",
    "RunConfig": "runs.config",
    "decode": "wire",
    "encode": "wire",
    "message": "wire",
}

__version__ = "0.1.0"
__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedbonsai' has no attribute {name!r}")
    return getattr(import_module(f"fedbonsai.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
