"""A task that does nothing, so that what is measured is the way to it and back; workers import it by name."""

from __future__ import annotations

from torch import Tensor

from fedbonsai.core import Client, Memory, task
from fedbonsai.wire import message


@message("bench/echo@1")
class Echo:
    """Some bytes."""

    value: Tensor


@task("bench/echo")
def echo(request: Echo, me: Client, memory: Memory) -> tuple[Echo, Memory]:
    """The same again."""
    return request, memory
