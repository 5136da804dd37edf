"""What an app and the resident worker know of each other; nothing of Flower, which a worker's process does without."""

from __future__ import annotations

from typing import Protocol

SETTING = "fedbonsai"  # of the node's configuration: the device's file
PLAIN = "FEDBONSAI_PLAIN"  # environment: work in the app's own process though a worker is there


class Hand(Protocol):
    """Who does the work: a `worker.Worker` of this process, or a process that keeps one."""

    def hello(self, raw: bytes, payload: bytes) -> bytes:
        """Answer a `Hello`, whose payload is a form that its head has no room for."""
        ...

    def perform(self, raw: bytes, payload: bytes) -> tuple[bytes, bytes]:
        """Run a task."""
        ...
