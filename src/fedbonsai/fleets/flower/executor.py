"""Flower's SuperExec on a device, which forks the app of each message instead of starting a Python for it.

A new process would import Flower again, over a second of processor for each message; one that is forked has it. It is
started by `fedbonsai join` beside a node in Flower's isolation mode ``process``, and takes what `flower-superexec` takes.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from fedbonsai.fleets.flower import compat
from fedbonsai.fleets.flower.processes import program

COMMAND, APP = "flower-superexec", "flwr-clientapp"  # the commands of Flower that start apps, and that are one
START = 60.0  # seconds that the node has to answer

Main = Callable[[], object]


class Forked:
    """A command that a fork of this process does; what else is started of its kind is started as ever.

    It stands where Flower's executor looks for the module `subprocess`.

    Args:
        mains: functions that do a command's work with what stands in ``sys.argv``, by the command's name.
    """

    DEVNULL = subprocess.DEVNULL

    def __init__(self, mains: Mapping[str, Main]) -> None:
        self._mains = mains
        self._begun: set[int] = set()

    def Popen(self, args: list[str], **settings: Any) -> object:
        """Begin a command; nobody waits for it, so those that have ended are let go at the next one."""
        self._reap()
        main = self._mains.get(args[0])
        if main is None or settings:
            return subprocess.Popen(args, **settings)
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            self._begun.add(pid)
            return pid
        os._exit(_code_of(main, args))

    def _reap(self) -> None:
        for pid in list(self._begun):
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            self._begun.discard(pid)


def _code_of(main: Main, args: list[str]) -> int:
    """Do a command; its exit code."""
    sys.argv = list(args)
    try:
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> None:
    """Serve a node until it ends; as Flower's own does where this release keeps its parts elsewhere."""
    try:
        superexec, executor, app = compat.executor()
    except (ImportError, AttributeError):
        os.execv(program(COMMAND), [COMMAND, *sys.argv[1:]])
    _wait_for(sys.argv[sys.argv.index("--runtime-api-address") + 1])
    import_module("fedbonsai.fleets.flower.app")  # what every message needs is here before the first
    executor.subprocess = Forked({APP: app})
    gc.collect()
    gc.freeze()  # pages that no collection writes to are shared by all forks
    superexec()


def _wait_for(address: str) -> None:
    """Wait until a node answers, which Flower would say a line about for each time that it does not yet."""
    host, port = address.rsplit(":", 1)
    until = time.monotonic() + START
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.1)


if __name__ == "__main__":
    main()
