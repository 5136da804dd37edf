"""One trial in a process of its own: a run that goes on to a round, stops there, and can go on later to the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbonsai.disk import refused
from fedbonsai.errors import BadMessage, ConfigError, FedbonsaiError, Unwritable, said
from fedbonsai.model import Model
from fedbonsai.planning.exported import exported
from fedbonsai.planning.standing import Standing, standing
from fedbonsai.runs import former, recipes
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.folder import Checkpoint, Folder
from fedbonsai.runs.jobs import terminable
from fedbonsai.runs.run import execute, stored
from fedbonsai.runs.setup import RunContext


@dataclass(frozen=True)
class Leg:
    """A run up to a round."""

    config: RunConfig
    folder: Path
    upto: int
    """Rounds that it has done in the end, the ones of earlier legs included."""


class Paused(KeyboardInterrupt):
    """A run is as far as it should go for now."""


class Until:
    """An observer that stops a run after a round."""

    def __init__(self, upto: int) -> None:
        self._upto = upto
        self.sample: tuple[int, ...] = ()

    def begin(self, config: RunConfig, scene: RunContext, first: int) -> None:
        """Note the shape of an input; stop where nothing is left to do."""
        if first >= self._upto:
            raise Paused

    def round(self, row: Mapping[str, Any], model: Model) -> None:
        """Stop after the last round, unless the run ends there anyway."""
        if row["round"] + 1 >= self._upto:
            raise Paused

    def end(self, rows: list[dict[str, Any]]) -> None:
        """Nothing to close."""


def walk(leg: Leg) -> Standing:
    """Carry a run on to a round, and say where it stands; one that fails says why.

    Raises:
        Unwritable: the disk refused; the same call goes on once there is room.
    """
    recipes.own_modules({"imports": list(leg.config.imports)})
    files, failed = Folder(leg.folder), ""
    begun = files.config.exists()
    done = begun and files.noted().get("status") == "finished"
    # the last round of a run is left to the run itself, which then ends as any other
    watching = [] if leg.upto >= leg.config.rounds else [Until(leg.upto)]
    try:
        with terminable(), suppress(Paused):
            if not done and len(files.rows()) < leg.upto:
                execute(leg.config, leg.folder, begun, watching)
    except Unwritable:
        raise
    except OSError as error:
        if line := refused(error):
            raise Unwritable(line) from None
        failed = said(error)
    except FedbonsaiError as error:
        failed = str(error)
    except Exception as error:  # whatever a network or method of one's own raises: others shall go on
        failed = said(error)
    if not files.config.exists():
        return Standing(failed=failed)
    if failed:
        return standing(leg.folder, {}, failed)
    return stands(leg.folder).first(leg.upto)


def stands(folder: Path) -> Standing:
    """Where the run of a folder stands, which nobody writes meanwhile."""
    return standing(folder, _of_model(folder))


def _of_model(folder: Path) -> dict[str, float]:
    """Costs of the model with which a run's last round left."""
    config = stored(folder)
    try:
        held = Checkpoint(Folder(folder)).load()
    except (ConfigError, BadMessage):
        held = None
    if held is None:
        return {}
    method: Any = config.method
    model: Model = method.model(former.state(held[1], method))
    return exported(model, config, Folder(folder).noted()["data"]["shape"])
