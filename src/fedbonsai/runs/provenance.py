"""Where a number came from: versions, machine, commit and command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def provenance() -> dict[str, Any]:
    """Versions, machine and commit, so that a number can be traced."""

    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "versions": {"python": platform.python_version()}
        | {name: of(name) for name in ("fedbonsai", "torch", "numpy", "flwr-datasets")},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "commit": commit(),
        "command": sys.argv,
    }


def commit() -> str | None:
    """Commit of the library's checkout, with ``+`` if it has changes; nothing when it is not a checkout."""
    try:
        head, dirty = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if dirty else "")


def _git(*words: str) -> str:
    """What git says of the library's folder."""
    here = Path(__file__).parent.parent
    done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, encoding="utf-8")
    return done.stdout.strip()
