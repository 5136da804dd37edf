"""Parameters that are not trained go to each device once, before the first question that needs them.

Who holds them is what the ledger says of earlier answers, so a resumed run sends nothing again. A device that says it
lost them, as one whose disk was replaced, gets them once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from torch import Tensor

from fedbonsai import bases
from fedbonsai.core import Answer, Answers, Client, Device, Fleet, Memory, Silence, Task, task
from fedbonsai.errors import BadMessage
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.wire import message

M = TypeVar("M")
R = TypeVar("R")


@message("base/hold@1")
class Hold:
    """Tensors to be held under their digest."""

    name: str
    tensors: Mapping[str, Tensor]


@message("base/held@1")
class Held:
    """They are held."""

    name: str


@task("base/hold")
def hold(request: Hold, me: Client, memory: Memory) -> tuple[Held, Memory]:
    """Hold them; the memory stays as it is."""
    if not bases.has(request.name) and bases.hold(request.tensors) != request.name:
        raise BadMessage(f"the base that came is not {request.name[:40]}")
    return Held(request.name), memory


class Based(Wrapper):
    """Sends the base of a network ahead to whoever is asked for the first time; who does not get it is not asked.

    Args:
        inner: a fleet that encodes its messages.
        base: name of what is sent.
        ledger: of the fleet inside.
    """

    def __init__(self, inner: Fleet, base: str, ledger: Ledger) -> None:
        super().__init__(inner)
        self._request, self._ledger = Hold(base, bases.of(base)), ledger

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Ask those who hold the base by then."""
        holders = self._ledger.senders(Held)
        silent: dict[Device, Silence] = {}
        if without := [device for device in send if device.id not in holders]:
            answers = self.inner.ask(hold, dict.fromkeys(without, self._request), 0)
            for _ in answers:
                pass
            silent = {device: why for device, why in answers.silent.items() if device.id not in holders}
        asked = self.inner.ask(task, {device: sent for device, sent in send.items() if device not in silent}, 0)

        def rest() -> Iterator[Answer[R] | Silence]:
            yield from asked
            for device, why in asked.silent.items():
                if why.reason.startswith(bases.LACKING):
                    holders.discard(device.id)
                yield why
            for device, why in silent.items():
                yield Silence(device, f"the base of the network did not reach it: {why.reason}", lost=why.lost)

        return Answers(rest(), at_least)
