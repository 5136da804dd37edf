"""The model of one client where each has a part of its own: the shared part of the run with what the client holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from fedbonsai.core import SavedMemory
from fedbonsai.errors import ConfigError, Forgotten
from fedbonsai.model import Model
from fedbonsai.runs.folder import reading
from fedbonsai.runs.run import Run
from fedbonsai.stages.personal import PERSONAL, merged
from fedbonsai.tree import Weights
from fedbonsai.wire import OWN, decode


def owners(run: Run) -> list[str]:
    """Ids of the clients whose personal part lies in the run's folder; a device of a real federation keeps its own.

    Memories are read one at a time: together they may be many times the model. A run whose checkpoint was deleted has none.
    """
    files = _files(run.path) if (run.path / "checkpoint" / "manifest.json").exists() else {}
    return sorted(id for id, file in files.items() if PERSONAL in _kept(file).memory)


def personal_model(run: Run, client: str) -> Model:
    """The final model of one client.

    Raises:
        ConfigError: the run holds no personal part of that client, or it does not fit the model.
    """
    file = _files(run.path).get(client)
    held = _kept(file).memory if file is not None else {}
    if PERSONAL not in held:
        known = owners(run)
        raise ConfigError(
            f"{run.path} holds no personal part of client {client!r}; "
            + (f"it has those of {', '.join(known)}" if known else "no client of it has any: leave --client out")
        )
    own = cast("Weights", held[PERSONAL])
    shared = {name: value for name, value in run.model.weights.items() if name not in own}
    try:
        return merged(run.model.arch, shared, own)
    except Forgotten as error:
        raise ConfigError(f"client {client!r}: {error}") from error


def _files(folder: Path) -> Mapping[str, Path]:
    """Where lies what clients kept after the last round."""
    home = folder / "checkpoint"
    with reading(home, "bring back a copy of it, or leave --client out"):
        manifest: dict[str, Any] = json.loads((home / "manifest.json").read_text(encoding="utf-8"))
        return {id: home / name for id, name in manifest["memories"].items()}


def _kept(file: Path) -> SavedMemory:
    with reading(file, "bring back a copy of it, or leave --client out"):
        return cast("SavedMemory", decode(file.read_bytes(), OWN))
