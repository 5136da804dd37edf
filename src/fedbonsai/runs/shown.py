"""Long work on standard error: a line that stays in its place in a terminal or notebook, elsewhere one every ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TextIO

from fedbonsai.telling import AFTER, Progress, Teller, listening

LOOK = 0.25  # seconds between looks at what is being done
GAP = 10.0  # seconds between lines where lines stay

Shown = bool | Callable[[Progress], object]


def span(seconds: float) -> str:
    """Seconds for people."""
    whole = int(seconds + 0.5)
    return (
        f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )


class Screen:
    """Shows what a teller knows.

    Args:
        stream: where to; standard error as it is then.
        clock: seconds.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.teller = Teller(clock=clock)
        self._stream, self._clock = stream or sys.stderr, clock
        self._live: Any = None
        self._last, self._gap, self._phase = clock(), AFTER, ""
        self._notebook, self._width = type(self._stream).__module__.startswith("ipykernel."), 0
        self.drawn = False
        """Whether somebody else draws `line`, such as a run's bar."""

    def line(self) -> str:
        """What is being done, for how long, and how long still; empty where it began just now."""
        return self._words(self.teller.now())

    def _words(self, now: Progress | None) -> str:
        if now is None:
            return ""
        left = f", about {span(now.left)} left" if now.left == now.left else ""
        return f"{now.text}: {span(now.seconds)}{left}"

    def said(self) -> None:
        """Something else was just shown, so that there is no silence to break."""
        self._last = self._clock()

    def tick(self) -> None:
        """Show the line, if it is time."""
        if self.drawn:
            self.close()
        elif self._stream.isatty():
            self._draw(self.line())
        elif self._notebook:
            self._over(self.line())
        elif (now := self.teller.now()) is not None:
            self._write(now)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._notebook:
            self._over("")

    def _over(self, text: str) -> None:
        """Write a line over the one before, as a notebook shows it: no line stays in the notebook's file."""
        if (text or self._width) and (self._clock() - self._last >= 4 * LOOK or not text):
            shown = f"\r{text:<{self._width}}" if text else f"\r{'':<{self._width}}\r"
            print(shown, end="", file=self._stream, flush=True)
            self._last, self._width = self._clock(), max(self._width, len(text)) if text else 0

    def _draw(self, text: str) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        if not text:
            self.close()
            return
        if self._live is None:
            console = Console(file=self._stream)
            self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=sys.stdout.isatty())
            self._live.start()
        self._live.update(Text(text, overflow="ellipsis", no_wrap=True), refresh=True)

    def _write(self, now: Progress) -> None:
        if now.phase != self._phase:
            self._phase, self._gap = now.phase, AFTER
        if self._clock() - self._last >= self._gap:
            print(self._words(now), file=self._stream, flush=True)
            self._last, self._gap = self._clock(), GAP


@contextmanager
def shown(progress: Shown) -> Generator[Screen | None]:
    """Inside which long work is shown: on a screen, by calling what is given, or not at all."""
    if not isinstance(progress, bool):
        with listening(Teller(progress)):
            yield None
        return
    if not progress:
        yield None
        return
    screen, over = Screen(), threading.Event()

    def look() -> None:
        while not over.wait(LOOK):
            try:
                screen.tick()
            except (OSError, ValueError):  # the stream was closed: nobody looks any more
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        with listening(screen.teller):
            yield screen
    finally:
        over.set()
        thread.join()
        screen.close()
