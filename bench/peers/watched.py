"""A command with all processes that come of it: seconds, processor seconds, and the peak of their memory together.

A process belongs to the command if its environment bears the command's mark or if its parent belongs. Linux only, for
it reads ``/proc``; elsewhere only the seconds are known.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "FEDBONSAI_PEERS"
PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class Watched:
    """How a command ended and what it took.

    ``seconds`` of the clock, ``processor`` seconds of all its processes, ``memory`` the peak of the bytes that they
    hold together (each shared page once, PSS), ``processes`` the most at one time. None: not measured on this system.
    """

    status: int | None  # of the exit; none: it was ended because it took too long
    seconds: float
    processor: float | None
    memory: int | None
    processes: int | None


class Family:
    """The processes of a command, found by looking again and again."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._known: dict[int, tuple[str, bool]] = {}  # start time and whether it belongs, by process id
        self._spent: dict[tuple[int, str], float] = {}
        self.memory = self.most = 0

    def look(self) -> list[int]:
        """Ids of those that live now; their processor time and memory are kept."""
        found: list[int] = []
        stats = {int(entry.name): stat for entry in PROC.glob("[0-9]*") if (stat := _stat(entry))}
        for pid in sorted(stats, key=lambda pid: int(stats[pid][1])):  # parents first
            if self._belongs(pid, stats):
                found.append(pid)
                self._spent[(pid, stats[pid][1])] = stats[pid][2]
        memory = sum(map(_pss, found))
        self.memory, self.most = max(self.memory, memory), max(self.most, len(found))
        return found

    @property
    def processor(self) -> float:
        """Processor seconds of all that were seen."""
        return sum(self._spent.values())

    def _belongs(self, pid: int, stats: Mapping[int, tuple[int, str, float]]) -> bool:
        parent, start, _ = stats[pid]
        held = self._known.get(pid)
        if held is None or held[0] != start or not held[1]:
            belongs = self._known.get(parent, ("", False))[1] or self._marked(pid)
            self._known[pid] = held = (start, belongs)
        return held[1]

    def _marked(self, pid: int) -> bool:
        try:
            return self._mark in (PROC / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:  # ended, or of another user
            return False


def watch(command: Sequence[str], environment: Mapping[str, str], folder: Path, limit: float) -> Watched:
    """Run a command to its end, or to the limit in seconds; what it prints goes to ``output.txt`` in its folder."""
    mark = uuid.uuid4().hex
    family, before, begin = Family(mark), _children(), time.perf_counter()
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment, MARK: mark},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status: int | None = None
        try:
            while (status := process.poll()) is None and time.perf_counter() - begin < limit:
                looked = time.perf_counter()
                if PROC.exists():
                    family.look()
                now = time.perf_counter()
                rest = max(0.1, 20 * (now - looked))  # looking takes a twentieth of the time
                time.sleep(max(0.0, min(rest, begin + limit - now)))
            seconds = time.perf_counter() - begin
        finally:
            _end(process, family)
    if not PROC.exists():
        return Watched(status, seconds, None, None, None)
    # the kernel counts exactly those whose parents waited for them; looking also sees the others
    processor = max(_children() - before, family.processor)
    return Watched(status, seconds, processor, family.memory, family.most)


def _end(process: subprocess.Popen[bytes], family: Family) -> None:
    """End the command, and what it left behind."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        left = family.look() if PROC.exists() else []
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signum)
        if process.poll() is None and not left:
            process.send_signal(signum)
        with suppress(subprocess.TimeoutExpired):
            process.wait(3 if left else 0.5)
        if process.poll() is not None and not left:
            return


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _stat(entry: Path) -> tuple[int, str, float] | None:
    """Parent, start time and processor seconds of a process; none if it has ended."""
    try:
        fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] == "Z":
        return None
    return int(fields[1]), fields[19], (int(fields[11]) + int(fields[12])) / TICKS


def _pss(pid: int) -> int:
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
