"""What a server refuses of an answer before any method looks at it: too many bytes, too many samples claimed.

Each refusal counts as a rejected answer, with its reason, in the line of the round, on the screen and in the report.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TypeVar

from fedbonsai.core import Answer, Answers, Device, Fleet, Silence, Task
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.settings import NOT_NEGATIVE, out_of_range, raise_all, when

M = TypeVar("M")
R = TypeVar("R")

DEEP = 3  # messages inside each other in which a claim is looked for
ENOUGH = 3  # claims, among which one liar does not make the median


@dataclass(frozen=True)
class GuardConfig:
    """What is refused of a device's answer; 0 is no limit."""

    bytes: int = 0
    """Most bytes of an answer. Over Flower it is refused before it is decoded."""
    examples: int = 0
    """Most samples that a device may claim."""
    claims: float = 0.0
    """Most that a device may claim, by the median claim of the answers to one question, all of which are then held."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        faults = out_of_range(self, bytes=NOT_NEGATIVE, examples=NOT_NEGATIVE, claims=NOT_NEGATIVE)
        text = f"claims = {self.claims:g}: expected 0, or at least 1 time the median"
        raise_all(faults + when((0 < self.claims < 1, text)))

    @property
    def idle(self) -> bool:
        """Whether nothing is refused."""
        return not (self.bytes or self.examples or self.claims)


class Guard(Wrapper):
    """Passes on the answers that are plausible.

    Args:
        inner: the fleet.
        limits: what is not.
    """

    def __init__(self, inner: Fleet, limits: GuardConfig) -> None:
        super().__init__(inner)
        self._limits = limits

    def ask(self, task: Task[M, R], send: Mapping[Device, M], at_least: int = 1) -> Answers[R]:
        """Ask; with a limit by the median claim, answers are passed on once all came."""
        answers = self.inner.ask(task, send, 0)

        def passed() -> Iterator[Answer[R] | Silence]:
            held: list[Answer[R]] = []
            for answer in answers:
                if why := self._implausible(answer):
                    yield self._refused(answer, why)
                elif self._limits.claims:
                    held.append(answer)
                else:
                    yield answer
            told = [claim for answer in held if (claim := claim_of(answer.value))]
            most = self._limits.claims * statistics.median(told) if len(told) >= ENOUGH else float("inf")
            for answer in held:
                claim = claim_of(answer.value)
                if claim > most:
                    text = f"{claim} samples claimed, more than {most:g} (fleet.guard.claims = {self._limits.claims:g})"
                    yield self._refused(answer, text)
                else:
                    yield answer
            yield from answers.silent.values()

        return Answers(passed(), at_least)

    def _implausible(self, answer: Answer[R]) -> str:
        """Why an answer is refused by itself; empty if it is not."""
        limits = self._limits
        if limits.bytes and answer.up > limits.bytes:
            return f"{answer.up} bytes came, more than fleet.guard.bytes = {limits.bytes}"
        if limits.examples and (claim := claim_of(answer.value)) > limits.examples:
            return f"{claim} samples claimed, more than fleet.guard.examples = {limits.examples}"
        return ""

    def _refused(self, answer: Answer[R], why: str) -> Silence:
        self.inner.reject(answer.device, why)
        return Silence(answer.device, why, answer.down, answer.up, work=answer.work, refused=True)


def claim_of(value: object, depth: int = DEEP) -> int:
    """The most samples that a message claims in a field ``examples``, its own or that of a message in it; 0 for none."""
    if not depth or not is_dataclass(value) or isinstance(value, type):
        return 0
    found = [claim_of(getattr(value, each.name), depth - 1) for each in fields(value)]
    own = getattr(value, "examples", 0)
    return max([own if isinstance(own, int) else 0, *found])
