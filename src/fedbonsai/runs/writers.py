"""Observers that write a run's metrics for TensorBoard or MLflow while it goes on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from fedbonsai.errors import ConfigError, Missing
from fedbonsai.model import Model
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.loop import Observer
from fedbonsai.runs.setup import RunContext
from fedbonsai.runs.structure import unstructure


class TensorBoard:
    """Scalars by round in ``FOLDER/tensorboard``; a resumed run goes on in the same curves."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._open = _package("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer: Any = None

    def begin(self, config: RunConfig, scene: RunContext, first: int) -> None:
        """Open the event file."""
        self._writer = self._open(str(self._folder), purge_step=first + 1)

    def round(self, row: Mapping[str, Any], model: Model) -> None:
        """Write a round's scalars, at the round's number counted from 1."""
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, row["round"] + 1)
        self._writer.flush()

    def end(self, rows: list[dict[str, Any]]) -> None:
        """Close the event file."""
        self._writer.close()


class Mlflow:
    """Settings and scalars of a run, to ``MLFLOW_TRACKING_URI`` or else to ``FOLDER/mlflow.db``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mlflow = _package("mlflow", "mlflow-skinny")

    def begin(self, config: RunConfig, scene: RunContext, first: int) -> None:
        """Start a run there with all settings as parameters; a resumed run goes on in the one that was begun."""
        if "MLFLOW_TRACKING_URI" not in os.environ:
            self._mlflow.set_tracking_uri(f"sqlite:///{(self._folder / 'mlflow.db').resolve()}")
        self._mlflow.set_experiment("fedbonsai")
        note = self._folder / "mlflow.id"
        if note.exists():
            self._mlflow.start_run(run_id=note.read_text(encoding="utf-8"))
            return
        run = self._mlflow.start_run(run_name=self._folder.name)
        note.write_text(run.info.run_id, encoding="utf-8")
        self._mlflow.log_params(flat(unstructure(config)))

    def round(self, row: Mapping[str, Any], model: Model) -> None:
        """Write a round's scalars."""
        self._mlflow.log_metrics(scalars(row), step=row["round"] + 1)

    def end(self, rows: list[dict[str, Any]]) -> None:
        """End the run there."""
        self._mlflow.end_run()


WRITERS: dict[str, Callable[[Path], Observer]] = {"tensorboard": TensorBoard, "mlflow": Mlflow}


def writer(name: str, folder: Path) -> Observer:
    """An observer by name.

    Raises:
        ConfigError: there is no such writer.
        Missing: its package is not installed.
    """
    if name not in WRITERS:
        raise ConfigError(f"--log {name}: expected one of {', '.join(WRITERS)}")
    return WRITERS[name](folder)


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of the metrics file; ``layers`` as ``layers/NAME``."""
    numbers = {
        name: float(value) for name, value in row.items() if isinstance(value, int | float) and name not in ("round",)
    }
    return numbers | {f"layers/{name}": float(share) for name, share in row.get("layers", {}).items()}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings by dotted path, as text."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        path = f"{prefix}{name}"
        found |= flat(value, f"{path}.") if isinstance(value, Mapping) else {path: str(value)}
    return found


def _package(module: str, package: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(module)
    except ImportError as error:
        raise Missing(f"this log needs {package} ({error}); install it: pip install 'fedbonsai[log]'") from error
