"""Optuna's study of a plan: which settings were asked, where each stands, what was told; one file, which a kill cannot break.

A trial counts from the moment at which its number is written behind its labels; what a kill left half asked is marked as
failed, which no sampler looks at. Each trial is drawn by a sampler of its own, seeded by its number, from what was told
before: so what is asked does not depend on when, or in how many attempts.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedbonsai.disk import writing
from fedbonsai.errors import Missing
from fedbonsai.planning.space import Labels, Space
from fedbonsai.tree import seed_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

STARTUP = 18  # trials after which what was told decides what is asked: two brackets
TRIES = 60  # draws in a row that were there before, after which a space counts as exhausted
GUIDED = 10  # of these by the estimator, which comes back to what it knows; the others are by chance
NAME = "plan"

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Asked:
    """A setting that was asked.

    Attributes:
        number: of those that count, from 0.
        trial: Optuna's number.
        labels: what was chosen.
        notes: what was written down of it: its bracket, its probe, where it stood after each rung.
        over: whether it was told.
    """

    number: int
    trial: int
    labels: Labels
    notes: Mapping[str, Any]
    over: bool


class Journal:
    """The study."""

    def __init__(self, folder: Path, space: Space, directions: Sequence[Direction], seed: int) -> None:
        """Open the study of a folder, or begin it.

        Raises:
            Missing: Optuna is not installed.
            Unwritable: the disk refused.
        """
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            raise Missing("plans need Optuna: pip install 'fedbonsai[plan]'") from None
        self._optuna, self._space, self._seed = optuna, space, seed
        self._file = folder / "journal.log"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with writing(self._file):
            _mended(self._file)
            self._study: Study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(self._file))),
                study_name=NAME,
                directions=list(directions),
                load_if_exists=True,
            )
            for trial in self._study.get_trials(deepcopy=False):
                if "number" not in trial.user_attrs and not trial.state.is_finished():
                    self._drop(trial.number)
        self._single = len(directions) == 1

    def asked(self) -> list[Asked]:
        """All settings that count, in order."""
        return [
            Asked(
                trial.user_attrs["number"],
                trial.number,
                dict(trial.params),
                trial.user_attrs,
                trial.state.is_finished(),
            )
            for trial in self._study.get_trials(deepcopy=False)
            if "number" in trial.user_attrs
        ]

    def ask(self, notes: Mapping[str, Any]) -> Asked | None:
        """A setting that was not asked before; None where there seems to be none left.

        Args:
            notes: written down with it.
        """
        before = self.asked()
        number, seen = len(before), [each.labels for each in before]
        given = next((labels for labels in self._space.advice if labels not in seen), None)
        for attempt in range(TRIES):
            with writing(self._file):
                if (labels := self._draw(number, attempt, given, notes, seen)) is not None:
                    return labels
            given = None
        with writing(self._file):
            self._study.set_user_attr("exhausted", True)
        return None

    @property
    def exhausted(self) -> bool:
        """Whether no setting was left when one was asked last."""
        return bool(self._study.user_attrs.get("exhausted"))

    def _draw(
        self, number: int, attempt: int, given: Labels | None, notes: Mapping[str, Any], seen: Sequence[Labels]
    ) -> Asked | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # samplers by groups of parameters count as experimental for years
            samplers, seed = self._optuna.samplers, seed_of(self._seed, f"plan/{attempt}", number, 0) % 2**32
            drawn = samplers.RandomSampler(seed)
            if attempt < GUIDED:
                drawn = samplers.TPESampler(
                    seed=seed, n_startup_trials=STARTUP, multivariate=True, group=True, constant_liar=True
                )
            self._study.sampler = samplers.PartialFixedSampler(dict(given), drawn) if given is not None else drawn
            trial = self._study.ask()
            labels = self._space.choose(lambda name, values: str(trial.suggest_categorical(name, values)))
        if labels in seen:
            self._drop(trial.number)
            return None
        for name, value in notes.items():
            trial.set_user_attr(name, value)
        trial.set_user_attr("number", number)  # last: from now on it counts
        return Asked(number, trial.number, labels, {**notes, "number": number}, False)

    def note(self, asked: Asked, name: str, value: Any) -> None:
        """Write something down of a setting."""
        with writing(self._file):
            self._storage.set_trial_user_attr(self._frozen(asked)._trial_id, name, value)

    def report(self, asked: Asked, rounds: int, value: float) -> None:
        """Where a setting stood after some rounds, for a dashboard and the sampler; studies of several aims take none."""
        if self._single and not isnan(value):
            with writing(self._file):
                self._storage.set_trial_intermediate_value(self._frozen(asked)._trial_id, rounds, value)

    def tell(self, asked: Asked, values: Sequence[float] | None) -> None:
        """What became of a setting; None: it was dropped on its way."""
        state = self._optuna.trial.TrialState
        whole = values is not None and not any(map(isnan, values))
        with writing(self._file):
            if whole:
                self._study.tell(asked.trial, list(values or ()), state=state.COMPLETE)
            else:  # of several aims Optuna would not let a pruned trial be told by its last report
                self._storage.set_trial_state_values(self._frozen(asked)._trial_id, state.PRUNED, None)

    def _drop(self, trial: int) -> None:
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)

    @property
    def _storage(self) -> Any:
        return self._study._storage

    def _frozen(self, asked: Asked) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[asked.trial]


def _mended(file: Path) -> None:
    """Take away what a kill left: a lock that nobody holds (the plan's own lock says so), and a line without its end."""
    Path(f"{file}.lock").unlink(missing_ok=True)
    if file.exists():
        text = file.read_bytes()
        if not text.endswith(b"\n"):
            with file.open("r+b") as handle:
                handle.truncate(text.rfind(b"\n") + 1)
