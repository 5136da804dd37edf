"""A run from its configuration to its folder, and a folder back to its run."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors import torch as tensors

from fedbonsai.arch import GIVEN, Arch, keeping
from fedbonsai.data.federation import Federation
from fedbonsai.disk import in_words
from fedbonsai.errors import ConfigError, NothingLearned, Unwritable
from fedbonsai.model import Model
from fedbonsai.objectives import Classification, Measure, Objective
from fedbonsai.objectives.classification import confusion
from fedbonsai.runs import former
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.folder import Folder, write
from fedbonsai.runs.given import note
from fedbonsai.runs.loop import Observer, loop
from fedbonsai.runs.provenance import provenance
from fedbonsai.runs.recipes import own_modules
from fedbonsai.runs.setup import RunContext, run_context
from fedbonsai.runs.structure import structure, unstructure
from fedbonsai.runs.summary import html_of, summary
from fedbonsai.runs.trouble import fruitless
from fedbonsai.text import text_of, toml
from fedbonsai.training.evaluate import answered

MOST = 100  # classes of which a table is kept, of each by each


@dataclass(frozen=True)
class Run:
    """A run as its folder holds it."""

    path: Path
    config: RunConfig
    info: Mapping[str, Any]
    metrics: list[dict[str, Any]]

    def __repr__(self) -> str:
        return f"Run({', '.join(f'{name} {value}' for name, value in summary(self))})"

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        return html_of(self)

    @property
    def model(self) -> Model:
        """The final model.

        Raises:
            ConfigError: the run has not ended.
        """
        file = Folder(self.path).model
        if not file.exists():
            raise ConfigError(f"{self.path} has no final model yet; finish it: fedbonsai run --resume {self.path}")
        return Model(structure(self.info["arch"], Arch), tensors.load(file.read_bytes()))

    @property
    def measure(self) -> Measure:
        """By which its models are judged: `objective.metric`."""
        return self.config.objective.measure

    @property
    def score(self) -> float:
        """The measure that decides, on the test set, in the last evaluated round; not a number before the first."""
        return self._last(self.measure.name)

    @property
    def accuracy(self) -> float:
        """Test accuracy of the last evaluated round.

        Raises:
            ConfigError: what was learned has no right answers, as a regression.
        """
        if "accuracy" not in self.config.objective.measures:
            raise ConfigError(
                f"objective {self.config.objective.choice_name!r} has no accuracy: take `score`, which is {self.measure.name}"
            )
        return self._last("accuracy")

    def _last(self, column: str) -> float:
        return next((row[column] for row in reversed(self.metrics) if column in row), nan)

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes over the whole run, ``down`` and ``up``."""
        last: dict[str, Any] = self.metrics[-1] if self.metrics else {}
        return {way: int(last.get(f"total_bytes_{way}", 0)) for way in ("down", "up")}

    @property
    def seconds(self) -> float:
        """Simulated seconds of the whole run; not a number without a clock."""
        return float(self.metrics[-1].get("simulated_seconds", "nan")) if self.metrics else float("nan")

    @property
    def epsilon(self) -> float:
        """Epsilon of the whole run, at the delta of its method; not a number where it is not private."""
        return float(self.metrics[-1].get("epsilon", "nan")) if self.metrics else float("nan")

    @property
    def joules(self) -> float:
        """Joules of all devices over the whole run; not a number without a clock."""
        return float(self.metrics[-1].get("total_joules", "nan")) if self.metrics else float("nan")

    def costs(self) -> list[dict[str, Any]]:
        """What the virtual clock booked: seconds, joules, operations and memory by round, attempt and client."""
        return list(Folder(self.path).cost_rows())

    def ledger(self) -> list[dict[str, Any]]:
        """Rows of the ledger: bytes by round, attempt, client, direction and message class."""
        return list(Folder(self.path).ledger_rows())


def execute(
    config: RunConfig,
    folder: Path,
    resume: bool = False,
    observers: Iterable[Observer] = (),
    build: Callable[[RunConfig, Path | None, Path | None], RunContext] = run_context,
) -> Run:
    """Run a configuration in a folder, or resume what is there; ``build`` makes all that a loop needs.

    Raises:
        ConfigError: the folder holds a run already (and ``resume`` is not set), holds none to resume, is being written by
            another process, or cannot be written.
        NothingLearned: rounds in a row brought no update. A resumed run goes on after them, and counts anew.
    """
    files = Folder(folder)
    if resume:
        config = stored(folder)
        if _brought(config) and files.start.exists():  # what the file of the weights holds by now does not matter
            config = replace(config, model=replace(config.model, weights=str(files.start)))
    with (
        files.alone(),
        keeping(),
        torch.enable_grad(),
    ):  # Ctrl-C may leave gradients off, for the next run in this process
        _execute(config, files, resume, observers, build)
    return load(folder)


def _execute(
    config: RunConfig,
    files: Folder,
    resume: bool,
    observers: Iterable[Observer],
    build: Callable[[RunConfig, Path | None, Path | None], RunContext],
) -> None:
    folder = files.path
    if files.config.exists() and not resume and not _never_began(files):
        raise ConfigError(
            f"{folder} holds a run already; resume it (fedbonsai run --resume {folder}), "
            "choose another --name, or delete the folder"
        )
    # built before anything is written: a fault of the configuration must not leave a folder that blocks the name
    stage = build(config, files.split if resume and files.split.exists() else None, files.answers)
    if not resume:
        if config.fleet.batch == "auto":  # what was measured is part of the run: whoever repeats it gets the same bytes
            config = replace(config, fleet=replace(config.fleet, batch=stage.batch))
        text = tomli_w.dumps(unstructure(config)).encode()
        # the id comes from the configuration, so that two runs of one configuration are equal to the byte
        files.set_info(
            id=hashlib.blake2b(text, digest_size=4).hexdigest(),
            **provenance(),
            **described(stage.federation, stage.model.arch.objective),
            notes=_notes(stage),
            **({"given": given} if (given := note(stage.model.arch)) else {}),
        )
        write(files.config, text)
    run = str(files.noted()["id"])
    try:
        if (stage.model.arch.base or _brought(config)) and not (resume and files.start.exists()):
            write(files.start, _saved(stage.model))
        if not files.split.exists():
            write(files.split, stage.federation.split.text().encode())
        files.set_info(status=None, started=time.time())  # `Folder.facts` says that it goes on
        for text in stage.said:
            logging.getLogger("fedbonsai").warning(text)
        outcome = loop(config, stage, run, files, observers)
        if outcome.futile and all(map(fruitless, outcome.rows)):
            raise NothingLearned(outcome.futile)
        final = stage.method.model(outcome.state).whole()
        write(files.model, _saved(final))
        files.set_info(
            arch=unstructure(final.arch),
            confusion=confused(final, outcome.federation or stage.federation, config.fleet.device),
            kinds=[[way, kind, size] for (way, kind), size in sorted(stage.ledger.kinds.items())],
        )
        if outcome.futile:  # the model is that of the rounds before
            raise NothingLearned(outcome.futile)
        files.set_info(status="finished", reason=outcome.reason, ended=time.time())
    except KeyboardInterrupt:
        _note(files, status="interrupted")
        raise
    except Exception as raised:
        error = in_words(raised)
        _note(files, status="failed", reason=str(error))
        if isinstance(error, Unwritable) and (files.path / "checkpoint" / "manifest.json").exists():
            raise type(error)(f"{error}. What was finished is kept; then: fedbonsai run --resume {folder}") from None
        if error is not raised:
            raise error from None
        raise
    finally:
        stage.fleet.close()


def _saved(model: Model) -> bytes:
    """All weights of a model as a file holds them."""
    return tensors.save({name: value.contiguous() for name, value in model.whole().weights.items()})


def _brought(config: RunConfig) -> bool:
    """Whether weights that the run begins with came from outside of it, so that they are kept."""
    return bool(config.model.weights) or config.model.name.startswith(GIVEN)


def _note(files: Folder, **facts: Any) -> None:
    """Write how a run ended, if there is still a place for it: without, readers see that it died."""
    with suppress(Unwritable):
        files.set_info(**facts)


def _notes(stage: RunContext) -> dict[str, str]:
    """What a method wants told beside its numbers, and what was said before the first round."""
    told: dict[str, str] = dict(getattr(stage.method, "notes", dict)())
    return told | ({"warning": "; ".join(stage.said)} if stage.said else {})


def _never_began(files: Folder) -> bool:
    """Whether a run failed before its first checkpoint: nothing is lost when its name is used again."""
    return files.noted().get("status") == "failed" and not (files.path / "checkpoint").exists()


def stored(folder: Path) -> RunConfig:
    """Configuration of a run's folder.

    Raises:
        ConfigError: there is no run.
    """
    file = Folder(folder).config
    if not file.exists():
        raise ConfigError(f"{folder} holds no run (no config.toml); see `fedbonsai ls runs`")
    table = former.configuration(toml(text_of(file), str(file)))
    own_modules(table)
    return structure(table, RunConfig)


def load(folder: str | Path) -> Run:
    """A run from its folder.

    Raises:
        ConfigError: there is no run.
    """
    path = Path(folder)
    files = Folder(path)
    return Run(path, stored(path), files.facts(), files.rows())


def name_of(recipe: str, config: RunConfig) -> str:
    """Folder name of a run that was given none."""
    data = Path(config.data.path).resolve().name if config.data.path else config.data.name.replace("/", "-")
    return config.name or f"{Path(recipe).stem}-{data}-{config.seed}"


def floor(data: Federation, objective: Objective) -> dict[str, Any]:
    """What a model reaches on the test set that always answers the same; empty where nobody knows.

    Args:
        data: whose test set.
        objective: what is learned.
    """
    y = data.test.y
    answers = objective.constant(y) if len(y) else None
    value = nan if answers is None else objective.measured(answers, y).get(objective.metric, nan)
    if answers is None or isnan(value):
        return {}
    first = answers[0].flatten()
    answer = f"{float(first[0]):.4g}" if len(first) == 1 else "the same"
    if not answers.is_floating_point() and data.class_names:
        answer = repr(data.class_names[int(first[0])])
    return {"floor": {"answer": answer, "metric": objective.metric, "value": value}}


def confused(model: Model, data: Federation, device: str) -> list[list[int]]:
    """How often a model takes each class of the test set for each; empty where no classes are learned, or very many."""
    count = data.classes
    if not isinstance(model.arch.objective, Classification) or not 0 < count <= MOST:
        return []
    _, answers = answered(model, data.test, device)
    return confusion(answers, data.test.y, count).tolist()


def described(data: Federation, objective: Objective) -> dict[str, Any]:
    """What a device needs beside the model, and a reader beside the figures.

    How images were normalised, the names of the classes, which measure decides, and its floor.
    """
    return {
        "metric": objective.metric,
        "data": {
            "name": data.name,
            "tested": data.tested,
            "shape": list(data.samples.shape),
            "mean": list(data.mean),
            "std": list(data.std),
            "classes": list(data.class_names),
            **floor(data, objective),
        },
    }
