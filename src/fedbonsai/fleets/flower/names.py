"""Names of devices, safe as file names and in logs, and what devices say, on one line of a log."""

from __future__ import annotations

import re

from fedbonsai.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


LINE = 1000  # characters of what a device says, in a log


def plain(text: str) -> str:
    """A text from a device as one short line: it can neither write lines of its own nor speak to a terminal."""
    return "".join(c if c.isprintable() else " " for c in text[:LINE])


def check_name(name: str) -> str:
    """The name.

    Raises:
        ConfigError: it is none.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"device name {name[:80]!r}: expected up to 64 letters, digits, dots, - and _")
    return name
