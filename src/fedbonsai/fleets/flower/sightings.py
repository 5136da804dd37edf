"""When each device was last at the gate, by its name, in one small file of the federation's folder.

What counts is a request that the SuperLink took, and it takes only what a key that was let in has signed.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization


@lru_cache(4096)
def header_of(key: str) -> bytes:
    """How Flower writes a public key into a request's header; empty where the text is no key.

    Args:
        key: as it stands in a .pub file.
    """
    try:
        held = serialization.load_ssh_public_key(key.encode())
    except (ValueError, UnsupportedAlgorithm):
        return b""
    return b64encode(held.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))


def sightings(file: Path) -> dict[str, float]:
    """When devices were last seen, in seconds since 1970; none where nobody wrote it down."""
    try:
        held = cast("dict[str, float]", json.loads(file.read_text(encoding="utf-8")))
        return {str(name): float(at) for name, at in held.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def note(file: Path, seen: Mapping[bytes, float], keys: Mapping[str, str]) -> None:
    """Add what the gate saw, and leave out who is no longer let in.

    Args:
        file: of the federation.
        seen: when a key was let through, by `header_of` it.
        keys: those that are let in, by the device's name.

    Raises:
        OSError: the disk refused.
    """
    before = sightings(file)
    now = {name: at for name, key in keys.items() if (at := seen.get(header_of(key), before.get(name)))}
    if now != before:
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(now), encoding="utf-8")
        fresh.replace(file)
