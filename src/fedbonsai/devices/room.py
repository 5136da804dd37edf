"""How much memory the processes of this machine may take, and the least with which a device of a federation works."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

LEAST = 420  # MB for all processes of `fedbonsai join`: bench.join_memory saw 390 work and 360 fail, with `cnn-bn`
MB = 1 << 20
ROOT = Path("/")


def allowed(root: Path = ROOT) -> int | None:
    """MB that this process and its children may take; None where the system does not say.

    It is the machine's memory, or the limit of a control group (of version 1 or 2) that this process is in or below.

    Args:
        root: folder in which ``proc`` and ``sys`` lie.
    """
    found: list[int] = []
    with suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemTotal:")).split()[1]) << 10)
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, names, path = line.split(":", 2)
            if names in ("", "memory"):
                top = root / "sys/fs/cgroup" / names
                name = "memory.limit_in_bytes" if names else "memory.max"
                found += _limits(top, top / path.lstrip("/"), name)
    return min(found) // MB if found else None


def _limits(top: Path, group: Path, name: str) -> list[int]:
    """Limits of a group and of those that hold it; ``max`` is none."""
    found: list[int] = []
    while group.is_relative_to(top):
        with suppress(OSError, ValueError):
            found.append(int((group / name).read_text(encoding="utf-8")))
        group = group.parent
    return found


def advice(here: int | None) -> str:
    """What to know of so much memory, for who starts a device; empty where it is enough or not known."""
    if here is None or here >= LEAST:
        return ""
    return (
        f"this machine gives {here} MB, and a device needs about {LEAST} for its processes together; "
        "it may be ended in the middle of a round"
    )
