"""Processes for trials, one each, until a moment: what is not done by then is stopped, and goes on when it is asked again."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from math import inf
from types import TracebackType
from typing import TypeVar

from fedbonsai import forked
from fedbonsai.errors import ConfigError
from fedbonsai.runs.jobs import settle_in

A = TypeVar("A")
R = TypeVar("R")

LOOK = 1.0  # seconds between looks at the time


def _begun() -> None:
    """A process of a plan: what runs say of their data is the same for all of them, and was said."""
    settle_in()
    logging.getLogger("fedbonsai").setLevel(logging.ERROR)


class OutOfTime(Exception):
    """The moment came."""


class Pool:
    """Worker processes, started when they are needed."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.until = inf
        """Moment of the monotonic clock at which work stops."""
        self._held: ProcessPoolExecutor | None = None

    def each(self, function: Callable[[A], R], items: Sequence[A]) -> Iterator[tuple[int, R]]:
        """Place and result of each item, as they come.

        Raises:
            OutOfTime: the moment came; processes were stopped.
            ConfigError: a process was killed from outside, as by a system that is out of memory.
            Exception: what the function raised.
        """
        if not items:
            return
        if self._held is None:
            made, given = (
                forked.context(["fedbonsai.planning.probe", "fedbonsai.planning.trial"]),
                (dict(os.environ), _begun),
            )
            self._held = ProcessPoolExecutor(self.workers, made, forked.begun, given)
        going: dict[Future[R], int] = {self._held.submit(function, item): place for place, item in enumerate(items)}
        try:
            while going:
                if time.monotonic() >= self.until:
                    raise OutOfTime
                for future in wait(going, min(LOOK, max(0.0, self.until - time.monotonic())), FIRST_COMPLETED).done:
                    yield going.pop(future), future.result()
        except BrokenProcessPool:
            self.close()
            raise ConfigError(
                f"one of {self.workers} processes was killed, as a system does that runs out of memory; take fewer --workers: "
                "the same command goes on"
            ) from None
        except BaseException:  # Ctrl-C too, and a caller that stops to listen
            self.close()
            raise

    def close(self) -> None:
        """Stop the processes; runs note that they were interrupted."""
        if self._held is None:
            return
        for process in list((getattr(self._held, "_processes", None) or {}).values()):  # a shutdown forgets them
            process.terminate()
        self._held.shutdown(wait=True, cancel_futures=True)
        self._held = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
