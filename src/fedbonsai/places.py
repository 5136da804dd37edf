"""Where this library and those below it may keep files: the home folder, or a temporary one where there is none.

Containers run as a number without a name, services without ``HOME``, and laboratories with a home that is read-only.
"""

from __future__ import annotations

import os
import pwd
import sys
import tempfile
from functools import cache
from pathlib import Path

KEEPERS = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "HF_HOME", "NUMBA_CACHE_DIR", "FLWR_HOME", "TORCH_HOME")
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where Python looks before it asks the system who runs it


def home() -> Path | None:
    """The home folder; nothing where it is not known, or nothing can be written there."""
    try:
        found = Path.home()
    except RuntimeError:
        return None
    return found if found.is_dir() and os.access(found, os.W_OK | os.X_OK) else None


def caches() -> Path:
    """Folder of what is kept to be faster next time: ``FEDBONSAI_CACHE``, or ``~/.cache/fedbonsai``."""
    if given := os.environ.get("FEDBONSAI_CACHE"):
        return Path(os.path.expanduser(given))
    return (home() or temporary()) / ".cache" / "fedbonsai"


@cache
def settle() -> str:
    """Give this process, and those that it starts, folders that can be written and a user's name.

    Nothing is changed where there is a home. Libraries look at the environment when they are imported, so this comes
    before. What was done is said in one line, which is returned; it is empty where there is a home.
    """
    if not any(os.environ.get(name) for name in NAMES) and not _has_entry():
        os.environ["USER"] = f"user-{os.getuid()}"
    if home() is not None:
        return ""
    instead = temporary()
    try:
        why = f"the home folder {Path.home()} cannot be written"
        for name in KEEPERS:
            os.environ.setdefault(name, str(instead / name.lower()))
    except RuntimeError:
        why = "there is no home folder (HOME is not set, and the system does not know this user)"
        os.environ["HOME"] = str(instead)
    line = f"{why}; what is kept for later is in {instead}"
    print(f"fedbonsai: {line}", file=sys.stderr, flush=True)
    return line


@cache
def temporary() -> Path:
    """A folder of this user alone, the same in all of his processes."""
    folder = Path(tempfile.gettempdir()) / f"fedbonsai-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        held = folder.lstat()
        if held.st_uid == os.getuid() and folder.is_dir() and not folder.is_symlink() and not held.st_mode & 0o077:
            return folder
    except OSError:
        pass  # another user's, or a file
    return Path(tempfile.mkdtemp(prefix="fedbonsai-"))


def _has_entry() -> bool:
    """Whether the system knows who runs this."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True
