"""Flower's programs as processes of ours: found, started quietly, and never left behind."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from fedbonsai.errors import ConfigError
from fedbonsai.fleets.flower import compat

FILES = 8192  # open files: each connection of a device takes two
GRACE = 15.0  # seconds that a process has to end by itself


def program(name: str) -> str:
    """Path of a program that was installed with this Python.

    Raises:
        ConfigError: it is not there.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise ConfigError(f"{name} is not installed here: pip install 'fedbonsai[flower]'")
    return found


def environment(home: Path) -> dict[str, str]:
    """Environment of Flower's processes: quiet, with this Python's programs first, and all of Flower's files in one.

    What they say to each other on this machine goes through no proxy.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    direct = {
        name: ",".join(part for part in (os.environ.get(name, ""), "127.0.0.1,localhost") if part)
        for name in ("NO_PROXY", "no_proxy")
    }
    return {**os.environ, **compat.QUIET, **direct, "FLWR_HOME": str(home), "PATH": path}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def many_files() -> None:
    """Let this process and those that it starts open as many files and connections as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a group, and the group with it, also where the leader has ended already."""
    until = time.monotonic() + GRACE
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < until:
            process.poll()  # who has ended counts as a member until somebody looks
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_by_signal() -> None:
    """Let SIGTERM end this process as Ctrl-C does, by way of its ``finally``."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)


def ignore_signals() -> None:
    """Tidy up in peace: who asks twice asks no more than once."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def remember(file: Path, pid: int) -> None:
    """Write down a process, so that `forget` can end it even after its parent was killed."""
    file.write_text(str(pid), encoding="utf-8")


def forget(file: Path, name: str) -> None:
    """End what `remember` wrote down, if it still is a process of that name: numbers are given anew."""
    try:
        pid = int(file.read_text(encoding="utf-8"))
        # -ww: without it ps cuts a command at $COLUMNS, and a name at its end would not be found
        told = subprocess.run(
            ["ps", "-ww", "-p", str(pid), "-o", "command="], capture_output=True, errors="replace", encoding="utf-8"
        ).stdout
    except (OSError, ValueError):
        return
    if name in told:
        with contextlib.suppress(ProcessLookupError):
            leads = os.getpgid(pid) == pid
            (os.killpg if leads else os.kill)(pid, signal.SIGKILL)
    file.unlink(missing_ok=True)
