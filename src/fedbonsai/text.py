"""Text that people write: UTF-8 whatever the locale, with or without a byte-order mark and Windows line ends."""

from __future__ import annotations

import codecs
import tomllib
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from fedbonsai.errors import ConfigError

_OTHERS = {  # the longer marks first: UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def text_of(file: Path | Traversable) -> str:
    """The text of a file.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8; the text names what it seems to be.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from None
    return decoded(raw, str(file))


def decoded(raw: bytes, what: str) -> str:
    """The text in bytes of a file.

    Raises:
        ConfigError: they are not UTF-8.

    >>> decoded(codecs.BOM_UTF8 + b"a = 1", "my.toml")
    'a = 1'
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        why = f"is {_seems(raw)}" if _seems(raw) else f"is not UTF-8 (byte 0x{raw[error.start]:02x} in line {line})"
    else:
        if "\0" not in text:
            return text.replace("\r\n", "\n")
        why = f"is {_seems(raw) or 'no text: it has bytes of zero'}"
    raise ConfigError(f"{what} cannot be read: it {why}; save it as UTF-8")


def toml(text: str, what: str) -> dict[str, Any]:
    """The table in the text of a TOML file.

    Raises:
        ConfigError: it is no TOML; the text has the line.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{what}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{what}: not valid TOML: brackets within brackets, too many to read") from None


def _seems(raw: bytes) -> str:
    """The encoding that a mark at the beginning names, or else every second byte of zero; empty where neither is so."""
    marked = next((name for mark, name in _OTHERS.items() if raw.startswith(mark)), "")
    if marked or len(raw) < 4:
        return marked
    head = raw[:64]
    return "UTF-16" if max(head[::2].count(0), head[1::2].count(0)) > len(head) // 4 else ""
