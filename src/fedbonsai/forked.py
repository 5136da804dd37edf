"""Worker processes that begin in milliseconds: forked from one that has imported torch and has no threads yet.

That one is started with the first worker and serves this process to its end; on Windows, which cannot fork, workers are
spawned. A worker is in the folder and has the environment of the moment at which it is started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

IMPORTED = ("fedbonsai.fleets.worker", "fedbonsai.zoo", "fedbonsai.methods")


def context(also: Sequence[str] = ()) -> BaseContext:
    """Where workers come from.

    Args:
        also: modules that they need beside those of a client; of the first call in a process only.
    """
    made = get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        made.set_forkserver_preload([*IMPORTED, *also])
    return made


def begun(environment: Mapping[str, str], function: Callable[..., Any], *arguments: Any) -> None:
    """First in a worker: take an environment as it is now, not as it was when the first worker was started."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    function(*arguments)


def process(made: BaseContext, function: Callable[..., Any], *arguments: Any, daemon: bool = False) -> BaseProcess:
    """A worker that does a function of a module, not started yet."""
    given = (dict(os.environ), function, *arguments)
    return made.Process(target=begun, args=given, daemon=daemon)  # type: ignore[attr-defined] - each context has it, their base does not
