"""The search: brackets of settings, asked of the journal, looked at, and trained rung by rung.

Everything that decides what is asked next stands in the journal before it is asked. So a search that was killed at any
moment goes through its brackets again, finds what was done, and goes on with the same settings as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Protocol

from fedbonsai.errors import ConfigError
from fedbonsai.planning import rungs
from fedbonsai.planning.journal import Asked, Direction, Journal
from fedbonsai.planning.order import counted, order, reached
from fedbonsai.planning.probe import Probe, told
from fedbonsai.planning.question import Question
from fedbonsai.planning.standing import Standing

WAVES = 3  # how often a bracket asks for others in the place of settings that are ruled out
_LOWER: Direction = "minimize"
BARREN = 2  # brackets in a row without any setting that meets the limits, after which a search gives up


class Runner(Protocol):
    """What carries settings out: processes on this machine, or a table of what they once gave."""

    def probe(self, labels: Sequence[Mapping[str, str]]) -> Sequence[Probe]:
        """Look at settings before they train."""
        ...

    def walk(
        self, legs: Sequence[tuple[int, Mapping[str, str], int, int]], came: Callable[[int, Standing], object]
    ) -> None:
        """Carry settings on: of each its number, labels, length and the rounds up to which it goes.

        Args:
            legs: what is to be done.
            came: told the number and the standing of each as it comes.
        """
        ...

    def left(self, number: int) -> Standing | None:
        """Where a setting stands whose leg was stopped; None where it has not begun."""
        ...


@dataclass
class Candidate:
    """A setting on its way.

    Attributes:
        asked: what the journal knows.
        length: rounds that it was given.
        standing: after its last rung; None before the first.
        out: why it was ruled out, in a few words and in full; empty where it was not.
        missed: limits that it exceeds, with how many times.
    """

    asked: Asked
    length: int = 0
    standing: Standing | None = None
    rung: int = -1
    out: tuple[str, str] = ("", "")
    missed: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def number(self) -> int:
        """As it was asked."""
        return self.asked.number

    @property
    def whole(self) -> bool:
        """Whether it trained as long as it was given, or its limits let it."""
        return self.standing is not None and (self.rung == rungs.RUNGS - 1 or self.standing.ended)


class Search:
    """A search, as far as it came."""

    def __init__(
        self,
        question: Question,
        journal: Journal,
        runner: Runner,
        trials: int = 0,
        say: Callable[[str], object] = print,
    ) -> None:
        """Begin.

        Args:
            question: what is searched for.
            journal: in which it is written down.
            runner: what carries settings out.
            trials: settings that train at most; 0: until time is up or none is left.
            say: told after each rung.
        """
        self.question, self.journal, self.runner, self.trials, self.say = question, journal, runner, trials, say
        self.candidates: dict[int, Candidate] = {}

    def run(self) -> None:
        """Go on until settings are used up; time ends it by what the runner raises.

        Raises:
            ConfigError: no setting meets the limits.
        """
        barren = bracket = 0
        while members := self._gathered(bracket):
            fit = [each for each in members if not each.out[0]]
            self._climb(bracket, fit)
            barren = 0 if self.feasible() else barren + 1
            if barren >= BARREN:
                break
            bracket += 1
        if not self.feasible():
            raise ConfigError(self.nothing())
        self._second_wind()

    def feasible(self) -> list[Candidate]:
        """Settings that meet the limits, as far as they trained, best first; those that trained whole before others."""
        fit = {
            each.number: each.standing
            for each in self.candidates.values()
            if each.standing is not None and not each.out[0] and self._rounds(each.standing)
        }
        measure, limits, aim = self.question.objective.measure, self.question.limits, self.question.aim
        whole = {number: standing for number, standing in fit.items() if self.candidates[number].whole}
        rest = {number: standing for number, standing in fit.items() if number not in whole}
        places = [number for part in (whole, rest) for number in order(part, aim, measure, limits)]
        return [self.candidates[number] for number in places]

    def ruled_out(self) -> dict[str, list[Candidate]]:
        """Settings that were ruled out, by reason."""
        found: dict[str, list[Candidate]] = {}
        for each in self.candidates.values():
            if each.out[0]:
                found.setdefault(each.out[0], []).append(each)
        return found

    def nothing(self) -> str:
        """Why no setting meets the limits: which limit binds, and by how much."""
        limits = self.question.limits
        near = [each for each in self.candidates.values() if each.missed]
        if not near:
            causes = "; ".join(f"{len(each)} times: {each[0].out[1]}" for each in self.ruled_out().values())
            return f"no setting of {len(self.candidates)} could be tried: {causes or 'none was trained for a round'}"
        nearest = min(near, key=lambda each: (max(each.missed.values()), each.number))
        name = max(nearest.missed, key=lambda each: nearest.missed[each])
        return (
            f"no setting of {len(self.candidates)} meets the limits. limit.{name} binds: the nearest, "
            f"{described(nearest.asked.labels)}, has {told({name: nearest.missed[name]}, limits)}. Raise it, or narrow "
            "--networks to smaller ones"
        )

    def unfinished(self) -> str:
        """Why there is no answer yet."""
        if any(each.missed for each in self.candidates.values()) and len(self.ruled_out()) and not self.feasible():
            return f"so far {self.nothing()}"
        return f"none of {len(self.candidates)} settings was trained for a round in this time"

    def salvage(self) -> None:
        """After a search was stopped: note where settings stand whose last leg did not come to its end."""
        for each in self.candidates.values():
            held = None if each.out[0] else self.runner.left(each.number)
            if held is not None and held.rounds > (each.standing.rounds if each.standing is not None else 0):
                self._arrived(each, held, each.rung)

    def _gathered(self, bracket: int) -> list[Candidate]:
        """Settings of a bracket, those that are ruled out before they train among them."""
        found: list[Candidate] = []
        for wave in range(WAVES):
            before = [each for each in self.journal.asked() if self._place(each) < (bracket, wave)]
            here = [each for each in self.journal.asked() if self._place(each) == (bracket, wave)]
            want = rungs.SIZE - sum(not each.out[0] for each in found)
            want = min(want, self.trials - sum(map(_fits, before))) if self.trials else want
            while len(here) < want and not self.journal.exhausted:
                if (asked := self.journal.ask({"bracket": bracket, "wave": wave})) is not None:
                    here.append(asked)
            found += self._looked_at(here)
            if len(here) < want or sum(not each.out[0] for each in found) >= rungs.SIZE:
                break
        return found

    @staticmethod
    def _place(asked: Asked) -> tuple[int, int]:
        return asked.notes["bracket"], asked.notes["wave"]

    def _looked_at(self, here: Sequence[Asked]) -> list[Candidate]:
        """Candidates of settings; those that cannot be are told so."""
        new = [each for each in here if "probe" not in each.notes]
        for each, probe in zip(new, self.runner.probe([each.labels for each in new]), strict=True):
            missed = probe.missed(self.question.limits)
            cause, text = probe.cause, probe.refusal
            if missed and not cause:
                cause, text = _over(missed), told(missed, self.question.limits)
            length = probe.rounds(self.question.limits, self.question.rounds)
            self.journal.note(each, "probe", {"out": [cause, text], "missed": missed, "length": length})
        known = {each.number: each for each in self.journal.asked()}
        found: list[Candidate] = []
        for number in sorted(each.number for each in here):
            notes = known[number].notes["probe"]
            made = Candidate(known[number], notes["length"], out=tuple(notes["out"]), missed=notes["missed"])
            self.candidates[number] = made
            found.append(made)
            if made.out[0] and not known[number].over:
                self.journal.tell(known[number], None)
        return found

    def _climb(self, bracket: int, members: Sequence[Candidate]) -> None:
        """Train the settings of a bracket, fewer and fewer."""
        alive = list(members)
        for rung in range(rungs.RUNGS):
            if not alive:
                break
            self._walked(alive, rung)
            alive = [each for each in alive if not each.out[0]]
            best = self._ordered(alive)
            self._told(bracket, rung, len(members), best)
            if rung < rungs.RUNGS - 1:
                alive = best[: rungs.going_on(len(alive))]
        for each in sorted(members, key=lambda each: each.number):
            if not self._over(each):
                self.journal.tell(each.asked, self._values(each))

    def _over(self, candidate: Candidate) -> bool:
        return next(each.over for each in self.journal.asked() if each.number == candidate.number)

    def _walked(self, alive: Sequence[Candidate], rung: int) -> None:
        """Carry candidates to a rung, and write down where they stand."""
        name = f"rung-{rung}"
        notes = {each.number: each.notes for each in self.journal.asked()}
        new = [each for each in alive if name not in notes[each.number]]
        legs = [(each.number, each.asked.labels, each.length, rungs.upto(each.length, rung)) for each in new]

        def came(number: int, standing: Standing) -> None:
            asked = self.candidates[number].asked
            self.journal.note(asked, name, standing.plain())
            self.journal.report(asked, standing.rounds, standing.value(standing.rounds))

        self.runner.walk(legs, came)
        notes = {each.number: each.notes for each in self.journal.asked()}
        for each in alive:
            self._arrived(each, Standing.of(notes[each.number][name]), rung)

    def _arrived(self, candidate: Candidate, standing: Standing, rung: int) -> None:
        """Note where a candidate stands, and whether that rules it out."""
        candidate.standing, candidate.rung = standing, rung
        limits, rounds = self.question.limits, self._rounds(standing)
        candidate.missed = limits.missed(standing.costs(max(1, rounds))) if standing.rounds else {}
        if standing.failed:
            candidate.out = ("fails in training", standing.failed)
        elif candidate.missed:
            candidate.out = (_over(candidate.missed), told(candidate.missed, limits))
        elif isnan(standing.value(rounds)):
            candidate.out = ("learns nothing that can be judged", "its validation measure is not a number")

    def _second_wind(self) -> None:
        """Where no setting is left to ask, carry those on that were left behind, the best first."""
        if self.trials and not self.journal.exhausted:
            return
        while left := [each for each in self.candidates.values() if not each.out[0] and not each.whole]:
            deepest = max(each.rung for each in left)
            best = self._ordered([each for each in left if each.rung == deepest])[: rungs.SHARE]
            legs = [(each.number, each.asked.labels, each.length, each.length) for each in best]
            self.runner.walk(legs, lambda number, held: self._arrived(self.candidates[number], held, rungs.RUNGS - 1))

    def _ordered(self, some: Sequence[Candidate]) -> list[Candidate]:
        held = {each.number: each.standing or Standing() for each in some}
        measure, limits = self.question.objective.measure, self.question.limits
        return [self.candidates[number] for number in order(held, self.question.aim, measure, limits)]

    def counted(self, candidate: Candidate) -> int:
        """Rounds of a candidate that count: all within the limits, or those to the target."""
        return 0 if candidate.standing is None else self._rounds(candidate.standing)

    def _rounds(self, standing: Standing) -> int:
        return counted(standing, self.question.aim, self.question.objective.measure, self.question.limits)

    def _values(self, candidate: Candidate) -> list[float] | None:
        """What the journal is told of a candidate that trained whole; None of others."""
        standing, aim, measure = candidate.standing, self.question.aim, self.question.objective.measure
        if standing is None or candidate.out[0] or candidate.rung < rungs.RUNGS - 1:
            return None
        rounds = self._rounds(standing)
        costs = standing.costs(rounds)
        if aim.target:
            return [costs[aim.cost]] if reached(standing, aim, measure, self.question.limits) else None
        return [standing.value(rounds), *(costs[name] for name in aim.lower)]

    def _told(self, bracket: int, rung: int, members: int, best: Sequence[Candidate]) -> None:
        measure, top = self.question.objective.measure, "none is left"
        if best and (standing := best[0].standing) is not None:
            value = standing.value(self._rounds(standing))
            top = f"best validation {measure.words} {measure.text(value)} by {described(best[0].asked.labels)}"
        self.say(f"bracket {bracket + 1}, rung {rung + 1} of {rungs.RUNGS}: {len(best)} of {members} settings; {top}")


def directions(question: Question) -> list[Direction]:
    """Of the journal's study."""
    if question.aim.target:
        return [_LOWER]
    first: Direction = "maximize" if question.objective.measure.better == "higher" else "minimize"
    return [first, *(_LOWER for _ in question.aim.lower)]


def described(labels: Mapping[str, str]) -> str:
    """Labels in a line.

    >>> described({"recipe": "fedavg", "network": "mlp", "lr": "0.1"})
    'fedavg, mlp, lr 0.1'
    """
    return ", ".join(value if name in ("recipe", "network") else f"{name} {value}" for name, value in labels.items())


def _fits(asked: Asked) -> bool:
    """Whether a setting that was looked at may train."""
    return not asked.notes["probe"]["out"][0]


def _over(missed: Mapping[str, float]) -> str:
    return f"above the limit of {', '.join(name.replace('_', ' ') for name in missed)}"
