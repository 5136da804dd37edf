"""What goes to each device once, before a round: parameters that are not trained, and what normalises the data.

Who holds it is what the ledger says of earlier answers, so a resumed run sends nothing again. A device that says it
lost it, as one whose disk was replaced, gets it once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from fedbonsai import bases
from fedbonsai.core import Answer, Answers, Client, Device, Fleet, Memory, Scale, Scope, Silence, Task, task
from fedbonsai.errors import BadMessage
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.tree import Weights
from fedbonsai.wire import message

M = TypeVar("M")
R = TypeVar("R")

UNSCALED = "what normalises the data is not here"


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
    return Held(_held(request.name, request.tensors)), memory


@message("scale/hold@1")
class HoldScale:
    """Mean and deviation of stored inputs, to be held under their digest, by which requests name them."""

    name: str
    mean: Tensor
    std: Tensor


@message("scale/held@1")
class ScaleHeld:
    """They are held."""

    name: str


@task("scale/hold")
def hold_scale(request: HoldScale, me: Client, memory: Memory) -> tuple[ScaleHeld, Memory]:
    """Hold them; the memory stays as it is."""
    return ScaleHeld(_held(request.name, {"mean": request.mean, "std": request.std})), memory


GIVEN: tuple[Task[Any, Any], ...] = (hold, hold_scale)
"""Tasks that give something to be held; devices know them whatever the method."""


def _held(name: str, tensors: Mapping[str, Tensor]) -> str:
    if not bases.has(name) and bases.hold(tensors) != name:
        raise BadMessage(f"the base that came is not {name[:40]}")
    return name


def tensors_of(scale: Scale) -> Weights:
    """A scale as tensors under a digest."""
    return {"mean": scale.mean, "std": scale.std}


@dataclass
class _Thing:
    """What is given, to whom it is known to have come, and why not to others in the round that is open."""

    task: Task[Any, Any]
    request: Hold | HoldScale
    holders: set[str]
    lacking: str
    without: str
    silent: Mapping[Device, Silence] = field(default_factory=dict[Device, Silence])


class Based(Wrapper):
    """Sends what is to be held to whoever does not hold it, before a round; who did not get it is not asked in it.

    Args:
        inner: a fleet that encodes its messages.
        base: name of the base of a network; empty where there is none.
        ledger: of the fleet inside.
    """

    def __init__(self, inner: Fleet, base: str, ledger: Ledger) -> None:
        super().__init__(inner)
        self._ledger = ledger
        self._base, self._scale = list[_Thing](), list[_Thing]()
        if base:
            request = Hold(base, bases.of(base))
            self._base = [self._thing(hold, request, Held, bases.LACKING, "the base of the network")]

    def _thing(self, task: Task[Any, Any], request: Any, held: type[Any], lacking: str, without: str) -> _Thing:
        return _Thing(task, request, self._ledger.senders(held), lacking, without)

    def normalise(self, scale: Scale) -> None:
        """Set the scale of the clients' inputs, which they are sent when the next round opens."""
        super().normalise(scale)
        request = HoldScale(bases.hold(tensors_of(scale)), scale.mean, scale.std)
        self._scale = [self._thing(hold_scale, request, ScaleHeld, UNSCALED, "what normalises the data")]

    def open(self, scope: Scope) -> None:
        """Begin a round. Its questions are counted, and seeds are drawn, as if all had always been there."""
        super().open(scope)
        asked = False
        for each in (*self._base, *self._scale):
            if without := [device for device in self.devices if device.id not in each.holders]:
                answers = self.inner.ask(each.task, dict.fromkeys(without, each.request), 0)
                for _ in answers:
                    pass
                each.silent, asked = answers.silent, True
        if asked:
            self.inner.abort()
            self.inner.open(scope)

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Ask those who hold all of it."""
        things = (*self._base, *self._scale)
        lacking = {d: each for each in reversed(things) for d in send if d.id not in each.holders}
        asked = self.inner.ask(task, {d: request for d, request in send.items() if d not in lacking}, 0)

        def rest() -> Iterator[Answer[R] | Silence]:
            yield from asked
            for device, silence in asked.silent.items():
                for each in things:
                    if silence.reason.startswith(each.lacking):
                        each.holders.discard(device.id)
                yield silence
            for device, each in lacking.items():
                why = each.silent.get(device)
                reason = why.reason if why is not None else each.lacking
                yield Silence(device, f"without {each.without}: {reason}", lost=True)

        return Answers(rest(), at_least)
