"""A plan's folder: one writer, one question, and the time that was spent in it."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedbonsai.disk import writing
from fedbonsai.errors import ConfigError
from fedbonsai.lock import hold, holder
from fedbonsai.planning.question import Question
from fedbonsai.runs.folder import reading, write

FORMAT = 1  # raise it when folders of earlier versions cannot go on
AGAIN = "choose another --name, or delete the folder"


class Home:
    """Files of one plan."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = path / "best.toml"
        self._plan, self._spent = path / "plan.json", path / "spent.json"
        self._before = 0.0
        self._begun = time.monotonic()

    @contextmanager
    def alone(self, question: Question) -> Generator[None]:
        """Make the folder, or go on in it, as its only writer; a folder that nothing came into is taken away again.

        Raises:
            ConfigError: another process plans here, or it holds the plan of another question or version.
            Unwritable: the disk refused.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            held = hold(self.path / "plan.lock")
        if held is None:
            raise ConfigError(
                f"{self.path} is in use by {holder(self.path / 'plan.lock')}; wait for its end, end it, or choose another --name"
            )
        with held:
            self._same(question)
            self._before, self._begun = self._held(), time.monotonic()
            yield

    def _same(self, question: Question) -> None:
        asked = json.loads(json.dumps({"format": FORMAT, **told(question)}))
        if not self._plan.exists():
            if any((self.path / name).exists() for name in ("trials", "journal.log", "config.toml", "run.json")):
                raise ConfigError(f"{self.path} holds something else than a plan; {AGAIN}")
            write(self._plan, json.dumps(asked, indent=2).encode())
            return
        with reading(self._plan, AGAIN):
            known = dict(json.loads(self._plan.read_text(encoding="utf-8")))
        if known.get("format") != FORMAT:
            raise ConfigError(
                f"{self.path} is a plan of format {known.get('format', '?')}, this version writes {FORMAT} and cannot go on "
                f"with it; {AGAIN}"
            )
        if other := [name for name in asked if known.get(name) != asked[name]]:
            raise ConfigError(
                f"{self.path} holds a plan with another {', '.join(other)}: {_short(known.get(other[0]))} there, "
                f"{_short(asked[other[0]])} now; give the same, {AGAIN}"
            )

    def _held(self) -> float:
        if not self._spent.exists():
            return 0.0
        with reading(self._spent, f"delete it, or {AGAIN}"):
            return float(json.loads(self._spent.read_text(encoding="utf-8"))["seconds"])

    @property
    def spent(self) -> float:
        """Seconds that all commands in this folder took so far."""
        return self._before + time.monotonic() - self._begun

    def note(self) -> None:
        """Write down how much time was spent."""
        write(self._spent, json.dumps({"seconds": round(self.spent, 1)}).encode())

    def write(self, files: Mapping[str, str]) -> None:
        """Write files of the answer.

        Raises:
            Unwritable: the disk refused.
        """
        for name, text in files.items():
            write(self.path / name, text.encode())


def told(question: Question) -> dict[str, Any]:
    """What decides a plan, as JSON takes it."""
    space = question.space
    return {
        "base": dict(question.base),
        "limits": question.limits.set,
        "aim": {"target": question.aim.target, "lower": list(question.aim.lower)},
        "rounds": question.rounds,
        "space": {
            "recipes": dict(space.recipes),
            "networks": dict(space.networks),
            "knobs": {knob.name: [list(knob.recipes), dict(knob.values)] for knob in space.knobs},
            "advice": list(space.advice),
        },
    }


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "..."
