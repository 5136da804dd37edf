"""Parameters that are not trained go to each device once, before the first round.

Who holds them is what the ledger says of earlier answers, so a resumed run sends nothing again. A device that says it
lost them, as one whose disk was replaced, gets them once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from torch import Tensor

from fedbonsai import bases
from fedbonsai.core import Answer, Answers, Client, Device, Fleet, Memory, Scope, Silence, Task, task
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
    """Sends the base of a network to whoever does not hold it, before a round; who did not get it is not asked in it.

    Args:
        inner: a fleet that encodes its messages.
        base: name of what is sent.
        ledger: of the fleet inside.
    """

    def __init__(self, inner: Fleet, base: str, ledger: Ledger) -> None:
        super().__init__(inner)
        self._request, self._holders = Hold(base, bases.of(base)), ledger.senders(Held)
        self._silent: Mapping[Device, Silence] = {}

    def open(self, scope: Scope) -> None:
        """Begin a round. Its questions are counted, and seeds are drawn, as if the base had always been there."""
        super().open(scope)
        if without := [device for device in self.devices if device.id not in self._holders]:
            answers = self.inner.ask(hold, dict.fromkeys(without, self._request), 0)
            for _ in answers:
                pass
            self._silent = answers.silent
            self.inner.abort()
            self.inner.open(scope)

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Ask those who hold the base."""
        asked = self.inner.ask(task, {d: request for d, request in send.items() if d.id in self._holders}, 0)
        without = {device: self._silent.get(device) for device in send if device.id not in self._holders}

        def rest() -> Iterator[Answer[R] | Silence]:
            yield from asked
            for device, why in asked.silent.items():
                if why.reason.startswith(bases.LACKING):
                    self._holders.discard(device.id)
                yield why
            for device, why in without.items():
                reason = why.reason if why is not None else bases.LACKING
                yield Silence(device, f"without the base of the network: {reason}", lost=True)

        return Answers(rest(), at_least)
