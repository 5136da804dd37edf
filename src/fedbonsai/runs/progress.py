"""Progress of a run: a live line in a terminal, one plain line a round elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedbonsai import training
from fedbonsai.core import Client
from fedbonsai.fleets.envelope import failure
from fedbonsai.model import Model
from fedbonsai.runs.config import RunConfig, asked_of, local_training
from fedbonsai.runs.loop import Observer
from fedbonsai.runs.private import planned
from fedbonsai.runs.setup import RunContext, clients
from fedbonsai.runs.shown import Screen, span
from fedbonsai.runs.trouble import of_round
from fedbonsai.telling import doing
from fedbonsai.wire import encode


def progress(screen: Screen | None = None) -> Observer:
    """What suits standard output; a screen shows what happens between two rounds."""
    return Live(screen) if sys.stdout.isatty() else Plain(screen)


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def simulated(seconds: float) -> str:
    """Simulated seconds for people: short ones with two digits."""
    return f"{seconds:.2f} s" if seconds < 60 else span(seconds)


def energy(joules: float) -> str:
    """Joules for people."""
    for unit in ("J", "kJ", "MJ"):
        if joules < 1000 or unit == "MJ":
            return f"{joules:.1f} {unit}"
        joules /= 1000
    raise AssertionError("unreachable")


def training_seconds(config: RunConfig, scene: RunContext, rounds: int) -> float:
    """Seconds of training and testing here, by a few steps of the dense model: an upper guess.

    What a method does before its first round counts, where it says so in ``samples_before``.
    """
    method: Any = config.method
    people = clients(scene.federation, config.fleet.device)
    asked = asked_of(config, len(people))
    how = local_training(method)
    me: Client = max(people, key=lambda person: len(person.train))
    trial = how.but(steps=4)
    training.train(scene.model, me, trial)
    start = time.perf_counter()
    seen = training.train(scene.model, me, trial).steps * min(how.batch, len(me.train))
    rate = seen / (time.perf_counter() - start)
    each = how.steps * how.batch or how.epochs * sum(len(person.train) for person in people) / len(people)
    share = min(config.fleet.workers, asked) if config.fleet.kind == "pool" else 1
    start = time.perf_counter()
    training.evaluate(scene.model, scene.federation.test[:256], config.fleet.device)
    test = (time.perf_counter() - start) * len(scene.federation.test) / 256 / config.evaluate_every
    ahead = method.samples_before(people, scene.server, share) if hasattr(method, "samples_before") else 0
    return ahead / rate + rounds * (asked * each / rate / share + test)


@dataclass(frozen=True)
class Guess:
    """What a run may take at most, before it is begun."""

    seconds: float
    """Of training and testing here; not a number where that could not be tried."""
    bytes: float
    """Moved, if nothing is compressed."""
    disk: float
    """Bytes that its folder takes."""
    model: int
    """Bytes of the dense model as a message."""
    why: str = ""
    """Why the seconds are not known."""


def guess(config: RunConfig, scene: RunContext, rounds: int) -> Guess:
    """What rounds may take: measured on a few steps here, and from the dense model's size; all are upper guesses."""
    asked = asked_of(config, len(scene.federation.ids))
    dense, took, why = len(encode(scene.model)), float("nan"), ""
    try:
        with doing("estimate"):
            took = training_seconds(config, scene, rounds)
    except Exception as error:  # one client's trouble; the run will tell whether it is everybody's
        why = str(failure(error))
    return Guess(took, 2.0 * rounds * asked * dense, 2.0 * dense + 300 * rounds * asked, dense, why)


def estimate(config: RunConfig, scene: RunContext, first: int) -> str:
    """What the run may take, in a line."""
    asked = asked_of(config, len(scene.federation.ids))
    rounds = config.rounds - first
    found = guess(config, scene, rounds)
    took = f"an unknown time ({found.why})" if found.why else span(found.seconds)
    free = shutil.disk_usage(".").free
    return (
        f"estimate: {rounds} rounds of {asked} devices, about {took} of training here, with what comes before them; "
        f"about {size(found.bytes)} moved if nothing is compressed "
        f"(model {size(found.model)}); some {size(found.disk)} of disk, {size(free)} free"
        + (f"\n{told}" if (told := planned(config, len(scene.federation.ids))) else "")
    )


def opening(config: RunConfig, scene: RunContext, first: int) -> str:
    """First line: an estimate, or where a resumed run goes on."""
    if first >= config.rounds:
        return "nothing left to do: all rounds are done"
    return f"resuming at round {first + 1}" if first else estimate(config, scene, first)


def line(config: RunConfig, row: Mapping[str, Any], left: float) -> str:
    """One round in one line."""
    parts = [f"round {row['round'] + 1}/{config.rounds}"]
    if row["skipped"]:
        parts.append("skipped: too few answers")
    parts += [said] if (said := of_round(row)) else []
    measure = config.objective.measure
    parts += [f"{measure.words} {measure.plain(row[measure.name])}"] if measure.name in row else []
    parts += [f"loss {row['train_loss']:.4f}"] if "train_loss" in row else []
    parts += [f"epsilon {row['epsilon']:.3g}"] if "epsilon" in row else []
    parts += [f"up {size(row['total_bytes_up'])}", f"down {size(row['total_bytes_down'])}"]
    if "simulated_seconds" in row:
        parts += [f"simulated {simulated(row['simulated_seconds'])}", energy(row["total_joules"])]
    parts.append(f"left {span(left)}")
    return "  ".join(parts)


class _Clock:
    """Seconds left, from the rounds of this process; what came before the first is over."""

    def begin(self, config: RunConfig, first: int) -> None:
        self.config, self.first, self.start = config, first, 0.0

    def left(self, row: Mapping[str, Any]) -> float:
        done = row["round"] - self.first + 1
        if done == 1:
            self.start = time.perf_counter() - row["seconds"]
        return (time.perf_counter() - self.start) / done * (self.config.rounds - row["round"] - 1)


def _say(text: str) -> None:
    """Print a line, for as long as somebody reads: a run does not end with its reader, as behind ``| head``."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Plain:
    """One line a round."""

    def __init__(self, screen: Screen | None = None) -> None:
        self._clock, self._screen = _Clock(), screen

    def begin(self, config: RunConfig, scene: RunContext, first: int) -> None:
        """Print the estimate."""
        _say(opening(config, scene, first))
        self._clock.begin(config, first)

    def round(self, row: Mapping[str, Any], model: Model) -> None:
        """Print the round."""
        _say(line(self._clock.config, row, self._clock.left(row)))
        if self._screen is not None:
            self._screen.said()

    def end(self, rows: list[dict[str, Any]]) -> None:
        """Nothing to close."""


class Live:
    """A bar that stays in place, by rich."""

    def __init__(self, screen: Screen | None = None) -> None:
        from rich.console import RenderableType
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.text import Text

        class Bar(Progress):
            """Below it what happens between two rounds, once that takes long."""

            def get_renderables(self) -> Iterable[RenderableType]:
                yield from super().get_renderables()
                if screen is not None and (text := screen.line()):
                    yield Text(text, overflow="ellipsis", no_wrap=True)

        self._clock, self._screen = _Clock(), screen
        self._bar = Bar(TextColumn("{task.description}"), BarColumn())
        self._task: Any = None

    def begin(self, config: RunConfig, scene: RunContext, first: int) -> None:
        """Print the estimate and start the bar."""
        self._bar.console.print(opening(config, scene, first))
        self._clock.begin(config, first)
        self._task = self._bar.add_task(f"round {first + 1}/{config.rounds}", total=config.rounds, completed=first)
        if self._screen is not None:
            self._screen.drawn = True
        self._bar.start()

    def round(self, row: Mapping[str, Any], model: Model) -> None:
        """Move the bar."""
        text = line(self._clock.config, row, self._clock.left(row))
        self._bar.update(self._task, completed=row["round"] + 1, description=text)

    def end(self, rows: list[dict[str, Any]]) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()
        if self._screen is not None:
            self._screen.drawn = False
