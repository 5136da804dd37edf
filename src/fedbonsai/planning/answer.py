"""What a plan says: the front with its costs, a recommendation with its reason, what was ruled out, and the recipe to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import tomli_w

from fedbonsai.planning.finals import Finalist, best
from fedbonsai.planning.limits import KINDS, words
from fedbonsai.planning.order import point
from fedbonsai.planning.quantities import said
from fedbonsai.planning.question import Question
from fedbonsai.planning.search import Candidate, Search, described
from fedbonsai.reports.costs import Table
from fedbonsai.runs.limits import BudgetConfig, ClockConfig
from fedbonsai.runs.structure import unstructure
from fedbonsai.sweeps.statistics import Estimate, front, paired

HEADS = {  # costs as columns of a table
    "bytes": "bytes a device",
    "seconds": "time",
    "joules": "energy a device",
    "round_seconds": "longest round",
    "peak_memory": "memory",
    "model_bytes": "model",
    "latency": "an input",
}


@dataclass(frozen=True)
class Answer:
    """A plan's answer.

    Attributes:
        question: what was asked.
        search: all settings.
        finals: those that were run again.
    """

    question: Question
    search: Search
    finals: Sequence[Finalist]

    @property
    def winner(self) -> Finalist:
        """The finalist that is recommended."""
        return best(self.finals, self.question)

    @property
    def seeds(self) -> int:
        """Seeds that finalists ran with."""
        return max((len(each.runs) for each in self.finals), default=0)

    def front(self) -> list[Candidate]:
        """Settings that no other one beats in the measure and in bytes (and in what is to be lowered) at once, and finalists."""
        some = self.search.feasible()
        ran = [each.candidate.number for each in self.finals if each.runs]
        # what was left behind says little of what it would reach
        some = [each for each in some if each.whole or each.number in ran] or some
        aim = replace(self.question.aim, target=0.0, lower=tuple(dict.fromkeys(("bytes", *self.question.aim.lower))))
        measure, limits = self.question.objective.measure, self.question.limits
        points = [point(each.standing, aim, measure, limits) for each in some if each.standing is not None]
        there = {some[place].number for place in front(points, ["lower"] * (1 + len(aim.lower)))}
        there |= {each.candidate.number for each in self.finals if each.runs or not ran}
        return [each for each in self.search.feasible() if each.number in there]

    def rows(self) -> Table:
        """The front as a table."""
        measure, finals = self.question.objective.measure, {each.candidate.number: each for each in self.finals}
        known = [name for name in HEADS if any(name in self._costs(each) for each in self.front())]
        head = [
            "setting",
            "rounds",
            measure.headed(f"validation {measure.words}"),
            measure.headed(f"test {measure.words}"),
        ]
        rows: list[list[str]] = []
        for each in self.front():
            final = finals.get(each.number)
            own = each.standing.value(self._rounds(each)) if each.standing is not None else float("nan")
            runs = final is not None and bool(final.runs)
            valid = (
                _interval(final.valid(self.question), measure.cell)
                if final and runs
                else f"{measure.cell(own)} (1 run)"
            )
            test = _interval(final.test(self.question), measure.cell) if final and runs else ""
            costs = self._costs(each)
            cells = [said(costs[name], KINDS[name]) if name in costs else "" for name in known]
            rows.append([described(each.asked.labels), str(self._rounds(each)), valid, test, *cells])
        return Table("What can be had", [*head, *(HEADS[name] for name in known)], rows)

    def ruled_out(self) -> Table:
        """What was ruled out, by reason, with one example each."""
        found = self.search.ruled_out()
        rows = [
            [cause, str(len(some)), described(some[0].asked.labels), some[0].out[1]] for cause, some in found.items()
        ]
        return Table("What was ruled out", ["why", "settings", "such as", "which says"], rows)

    def sentence(self) -> str:
        """The recommendation with its reason."""
        winner, measure = self.winner, self.question.objective.measure
        costs = winner.costs(self.question)
        if winner.runs:
            test = winner.test(self.question)
            count = f"{test.n} seed{'s' * (test.n != 1)}"
            has = f"{measure.words} {_interval(test, measure.text)} on the test set ({count})"
        else:
            own = winner.candidate.standing
            value = own.value(winner.at(self.question, own)) if own is not None else float("nan")
            has = f"validation {measure.words} {measure.text(value)} (one run; no time was left to run it again on other seeds)"
        spends = ", ".join(words(name, costs[name]) for name in HEADS if name in costs and name in self._asked())
        reason = self._reason(winner)
        return f"Take {described(winner.candidate.asked.labels)}: {has}, with {spends}; {reason}."

    def recipe(self) -> str:
        """The recommended run as a recipe: without clock and target, so that it also runs on real devices."""
        winner = self.winner
        rounds = max(1, winner.kept(self.question))
        # with a seed that was run so far, so that the limits are known to be kept
        seed = None if winner.candidate.whole or not winner.runs else min(winner.runs)
        config = self.question.config(winner.candidate.asked.labels, winner.candidate.length, seed, rounds)
        moved = self.question.limits.set.get("bytes", 0)
        plain = replace(
            config,
            target=0.0,
            patience=0,
            clock=ClockConfig(),
            budget=BudgetConfig(device_bytes=int(moved)),
            name="best",
        )
        told = [self.sentence(), *self._costs_said()]
        return "".join(f"# {line}\n" for line in told) + "\n" + tomli_w.dumps(unstructure(plain))

    def markdown(self) -> str:
        """All of it as text."""
        parts = [f"# {self.sentence()}\n", self.rows().markdown()]
        if self.search.ruled_out():
            parts.append(self.ruled_out().markdown())
        parts.append("\n".join(f"- {note}" for note in self.notes()) + "\n")
        return "\n".join(parts)

    def notes(self) -> list[str]:
        """How the numbers came about."""
        tried = self.search.candidates
        whole = sum(each.whole for each in tried.values())
        seeds = f"{self.seeds} other seed{'s' * (self.seeds != 1)}"
        ran = sum(bool(each.runs) for each in self.finals)
        again = f"finalists run again: {ran}, with {seeds}; only for these the test set is shown"
        return [
            f"{len(tried)} settings were looked at, {sum(each.standing is not None for each in tried.values())} trained, "
            f"{whole} of them as long as limits and rounds allow",
            f"the choice is by the clients' validation parts; {again if ran else 'no time was left to run finalists again'}",
            "intervals are 95 % of Student's t over seeds; a cost is the largest over the runs of a setting",
            "bytes are counted; seconds, joules, memory and latency are those of the device profiles",
            *self.question.notes,
        ]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        finals = {each.candidate.number: each for each in self.finals}
        settings = [
            {
                "number": each.number,
                "labels": each.asked.labels,
                "length": each.length,
                "out": list(each.out),
                "whole": each.whole,
                "rounds": self._rounds(each) if each.standing is not None else 0,
                "value": _number(each.standing.value(self._rounds(each))) if each.standing is not None else None,
                "costs": self._costs(each),
                "finals": {
                    seed: {"valid": run.value(rounds), "test": run.test(rounds), "rounds": rounds}
                    for seed, run in (finals[each.number].runs.items() if each.number in finals else ())
                    for rounds in (finals[each.number].at(self.question, run),)
                },
            }
            for each in self.search.candidates.values()
        ]
        front = [each.number for each in self.front()]
        return {"best": self.winner.candidate.number, "front": front, "sentence": self.sentence(), "settings": settings}

    def _asked(self) -> list[str]:
        """Costs that are told in a sentence: those with limits, to be lowered, and bytes."""
        return ["bytes", *self.question.limits.set, *self.question.aim.lower]

    def _rounds(self, candidate: Candidate) -> int:
        final = next((each for each in self.finals if each.candidate.number == candidate.number), None)
        if final is not None and final.runs:
            return final.kept(self.question)
        return self.search.counted(candidate)

    def _costs(self, candidate: Candidate) -> dict[str, float]:
        final = next((each for each in self.finals if each.candidate.number == candidate.number), None)
        if final is not None:
            return final.costs(self.question)
        return candidate.standing.costs(self._rounds(candidate)) if candidate.standing is not None else {}

    def _costs_said(self) -> list[str]:
        winner = self.winner
        clock = self.question.base.get("clock", {})
        costs = ", ".join(words(name, value) for name, value in winner.costs(self.question).items())
        on = (
            f"On {clock['devices']} over {clock.get('link') or 'their own links'}: "
            if clock.get("devices")
            else "It costs "
        )
        return [f"{on}{costs}."]

    def _reason(self, winner: Finalist) -> str:
        """Why this one: what was compared, and how far the next one is."""
        aim, measure = self.question.aim, self.question.objective.measure
        count = len(self.search.feasible())
        within = " within the limits" if self.question.limits.set else ""
        what = (
            f"the least {aim.cost} to {measure.words} {measure.text(aim.target)}"
            if aim.target
            else (f"the best validation {measure.words}")
        )
        reason = f"it has {what} of {count} settings{within}"
        others = [each for each in self.finals if each is not winner and each.runs]
        if aim.target or not others or len(winner.runs) < 2:
            return reason
        second = best(others, self.question)
        gap = paired(
            {seed: run.value(winner.at(self.question, run)) for seed, run in winner.runs.items()},
            {seed: run.value(second.at(self.question, run)) for seed, run in second.runs.items()},
        )
        sure = "beyond" if abs(gap.mean) > gap.half else "not beyond"
        other = described(second.candidate.asked.labels)
        by = f"{measure.cell(abs(gap.mean))} ± {measure.cell(gap.half)}"
        return f"{reason}, by {by} better than {other} on the same {gap.n} seeds, which is {sure} the interval"


def _interval(value: Estimate, text: Any) -> str:
    """A mean with half of its interval, as the measure is written."""
    return f"{text(value.mean)} ± {text(value.half)}" if isfinite(value.half) else f"{text(value.mean)}"


def _number(value: float) -> float | None:
    return value if isfinite(value) else None
