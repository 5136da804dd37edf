"""The word without which nobody elsewhere sees the page."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from fedbonsai.errors import ConfigError

SHORTEST = 20  # characters; a word that is easy to guess is none


def token_of(file: Path) -> tuple[str, bool]:
    """The token of a federation, made where there is none; and whether it was made now.

    Raises:
        ConfigError: the file can be read by others, or holds no token.
    """
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(file), False
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}; the page needs a token there") from None
    token = secrets.token_urlsafe(32)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(token + "\n")
    return token, True


def _read(file: Path) -> str:
    try:
        if file.stat().st_mode & 0o077:
            raise ConfigError(f"{file} can be read by others: chmod 600 {file}, or delete it, and a new one is made")
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}; delete it, and a new one is made") from None
    if len(token) < SHORTEST or not token.isascii():
        raise ConfigError(
            f"{file} holds no token: expected at least {SHORTEST} letters and digits; delete it, and a new one is made"
        )
    return token


def same(given: str, token: str) -> bool:
    """Whether a word is the token; it takes as long wherever they differ."""
    return secrets.compare_digest(given.encode(), token.encode())
