"""Recordings from WAV files, by the standard library, and from others such as FLAC where ``soundfile`` is installed."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedbonsai.errors import ConfigError, Missing
from fedbonsai.telling import each

ENDINGS = {".wav", ".flac"}
WIDE = {1: np.uint8, 2: np.dtype("<i2"), 4: np.dtype("<i4")}


def recordings(column: Sequence[Any], what: str) -> tuple[list[NDArray[np.int16]], int]:
    """Recordings of one channel, 16 bits a sample, and their common rate.

    Raises:
        ConfigError: one that cannot be read, of several channels or of another rate.
        Missing: it is no WAV, and ``soundfile`` is not installed.
    """
    found: list[NDArray[np.int16]] = []
    rate = 0
    for place, item in enumerate(each(f"reading {what} recordings", list(column))):
        name = f"{what} recording {place}"
        samples, own = _decoded(_bytes(item, name), name)
        if rate not in (0, own):
            raise ConfigError(f"{name} has {own} samples a second, those before {rate}; resample all to one rate first")
        found.append(samples)
        rate = own
    return found, rate


def _bytes(item: Any, name: str) -> bytes:
    if isinstance(item, Mapping):
        held = cast("Mapping[str, Any]", item)
        item = held.get("bytes") or (Path(str(held["path"])) if held.get("path") else None)
    if isinstance(item, str | Path):
        item = Path(item).read_bytes()
    if not isinstance(item, bytes):
        raise ConfigError(
            f"{name} is {'missing' if item is None else type(item).__name__}; expected the bytes of a file"
        )
    return item


def _decoded(raw: bytes, name: str) -> tuple[NDArray[np.int16], int]:
    if raw[:4] != b"RIFF":
        return _by_soundfile(raw, name)
    try:
        with wave.open(io.BytesIO(raw)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ConfigError(f"{name} cannot be read: {error}; expected a WAV file of whole numbers") from None
    if channels != 1 or width not in WIDE:
        raise ConfigError(f"{name} has {channels} channels of {8 * width} bits; expected one of 8, 16 or 32 bits")
    values = np.frombuffer(frames, WIDE[width])
    if width == 1:
        return (values.astype(np.int16) - 128) << 8, rate
    return (values >> 16 if width == 4 else values).astype(np.int16), rate


def _by_soundfile(raw: bytes, name: str) -> tuple[NDArray[np.int16], int]:
    try:
        soundfile: Any = import_module("soundfile")
    except (ImportError, OSError) as error:
        kind = "FLAC" if raw[:4] == b"fLaC" else "no WAV"
        raise Missing(
            f"{name} is {kind}, which needs soundfile ({error}); pip install 'fedbonsai[audio]', or convert it to WAV"
        ) from None
    try:
        values, rate = soundfile.read(io.BytesIO(raw), dtype="int16", always_2d=True)
    except RuntimeError as error:
        raise ConfigError(f"{name} cannot be read: {error}; expected WAV or FLAC") from None
    if values.shape[1] != 1:
        raise ConfigError(f"{name} has {values.shape[1]} channels; expected one")
    return values[:, 0], int(rate)
