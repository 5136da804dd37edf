"""Names of devices: safe as file names and in logs."""

from __future__ import annotations

import re

from fedbonsai.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> str:
    """The name.

    Raises:
        ConfigError: it is none.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"device name {name[:80]!r}: expected up to 64 letters, digits, dots, - and _")
    return name
