"""Tasks that raise on clients: each client is silent with its reason; where all fail alike, the task is at fault."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from typing import TypeVar

from fedbonsai.core import Answer, Silence
from fedbonsai.errors import TaskFailed

R = TypeVar("R")

ENOUGH = 3  # clients that fail alike, where nobody was ever seen to do the task: no accident of theirs

log = logging.getLogger("fedbonsai")


class Faults:
    """Who failed at which task since somebody last did it."""

    def __init__(self) -> None:
        self._failed: dict[str, dict[str, Silence]] = {}
        self._done: set[str] = set()

    def watched(self, task: str, items: Iterator[Answer[R] | Silence], clients: int) -> Iterator[Answer[R] | Silence]:
        """Pass on what came of an ask, of a fleet of so many clients.

        Raises:
            TaskFailed: all that were asked failed alike, and since somebody last did this task all clients of the
                fleet did, or at least three of those that were asked together where nobody ever did it.
        """
        failed = self._failed.setdefault(task, {})
        asked, here = 0, dict[str, Silence]()
        for item in items:
            asked += 1
            if isinstance(item, Answer):
                failed.clear()
                self._done.add(task)
            elif item.fault:
                here[item.device.id] = item
                log.info("task %r failed on client %s: %s\n%s", task, item.device.id, item.reason, item.fault)
            yield item
        failed |= here
        one_by_one = asked == 1  # a method that tries them in turn goes on to the next
        needed = clients if one_by_one or task in self._done else min(clients, ENOUGH)
        if here and len(here) == asked and len(failed) >= needed and alike(failed.values()):
            first = next(iter(here.values()))
            error = TaskFailed(
                f"task {task!r} fails alike on all {len(failed)} clients that tried it; on client {first.device.id}: "
                f"{first.reason}; mend what it runs there (network, data or the task itself), and start again"
            )
            error.add_note(first.fault)
            raise error


def alike(failed: Collection[Silence]) -> bool:
    """Whether clients failed with one type of exception, and with one text (but for numbers) or at one place."""
    kinds = {silence.reason.partition(":")[0] for silence in failed}
    texts = {unnumbered(silence.reason) for silence in failed}
    places = {_place(silence.fault) for silence in failed}
    return len(kinds) == 1 and (len(texts) == 1 or len(places) == 1)


def unnumbered(reason: str) -> str:
    """A reason without its numbers, which are often those of one client."""
    return re.sub(r"[+-]?\b(\d+(\.\d+)?(e[+-]?\d+)?|nan|inf)\b", "#", reason)


def _place(fault: str) -> str:
    """Where a traceback ends: file without its folder, and line."""
    found = re.findall(r'File "(?:[^"]*[\\/])?([^"]+)", line (\d+)', fault)
    return ":".join(found[-1]) if found else fault
