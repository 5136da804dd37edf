"""Frozen parameters of networks, held once by a process: by the digest that an architecture names as its base.

What else devices are sent once is held in the same way: what normalises their data, and forms that fit into no head.

A base never changes, so all network objects of a process share its tensors, and nobody sends it a second time. A
device keeps its bases on its disk, too.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import cast

from fedbonsai.errors import BadMessage, Forgotten
from fedbonsai.tree import Tree, Weights
from fedbonsai.wire import OWN, decode, encode

KEEP = 8  # bases; those that were used least recently go
LACKING = "the base of the network is not here"
_NAME = re.compile(r"[0-9a-f]{32}")

_held: OrderedDict[str, Weights] = OrderedDict()
_folder: Path | None = None


def digest(tensors: Tree) -> str:
    """Name of a base: of its tensors' names, types, shapes and values, whatever their order."""
    return hashlib.blake2b(encode({name: tensors[name] for name in sorted(tensors)}), digest_size=16).hexdigest()


def hold(tensors: Tree) -> str:
    """Hold tensors as a base, without a copy: they must not be written into from now on. Its name."""
    name = digest(tensors)
    if not has(name):
        adopt({name: tensors})
    if _folder is not None and not (_folder / name).exists():
        _write(_folder, name, tensors)
    return name


def adopt(found: dict[str, Weights] | dict[str, Tree]) -> None:
    """Hold bases whose names are known to be right."""
    for name, tensors in found.items():
        _held[name] = dict(tensors)
    while len(_held) > KEEP:
        _held.popitem(last=False)


def has(name: str) -> bool:
    """Whether a base is held here."""
    if name not in _held and _folder is not None and _NAME.fullmatch(name):
        with suppress(OSError, BadMessage):
            found = cast(Weights, decode((_folder / name).read_bytes(), OWN))
            if digest(found) == name:
                adopt({name: found})
    return name in _held


def of(name: str, lacking: str = LACKING) -> Weights:
    """Tensors of a base.

    Args:
        name: its digest.
        lacking: what to say where it is not here.

    Raises:
        Forgotten: it is not held here.
    """
    if not has(name):
        raise Forgotten(f"{lacking}: {name[:40]}")
    _held.move_to_end(name)
    return _held[name]


def shared() -> dict[str, Weights]:
    """All bases, their tensors moved to memory that worker processes share."""
    for tensors in _held.values():
        for value in tensors.values():
            value.share_memory_()
    return dict(_held)


def keep_in(folder: Path) -> None:
    """Keep what is held from now on in files, too, and look for what is not held among them."""
    global _folder
    _folder = folder


def _write(folder: Path, name: str, tensors: Tree) -> None:
    """Write a base whole or not at all; a disk that refuses costs another transfer after a restart."""
    part = folder / f"{name}.{os.getpid()}.part"
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            part.write_bytes(encode(dict(tensors)))
            part.replace(folder / name)
        finally:
            part.unlink(missing_ok=True)
        there = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
        for old in there[:-KEEP]:
            old.unlink(missing_ok=True)
