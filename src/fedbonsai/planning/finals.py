"""Finalists: the best settings once more, at full length over other seeds; only now the test set is looked at."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedbonsai.planning.order import reached
from fedbonsai.planning.pool import OutOfTime, Pool
from fedbonsai.planning.question import Question
from fedbonsai.planning.runner import Processes
from fedbonsai.planning.search import Candidate
from fedbonsai.planning.standing import Standing
from fedbonsai.planning.trial import Leg
from fedbonsai.sweeps.statistics import Estimate, estimate


@dataclass
class Finalist:
    """A setting with its runs.

    Attributes:
        candidate: as the search left it.
        rounds: of its final runs at most.
        runs: standings of the runs that ended, by seed.
    """

    candidate: Candidate
    rounds: int
    runs: dict[int, Standing] = field(default_factory=dict[int, Standing])

    def kept(self, question: Question) -> int:
        """Rounds that all of its runs bear within the limits, the search's own among them; with a target the most it took."""
        own = self.candidate.standing
        every = [*self.runs.values(), *([own] if own is not None else [])]
        if question.aim.target:
            measure = question.objective.measure
            took = [reached(each, question.aim, measure, question.limits) for each in every]
            return max(took) or min(each.within(question.limits) for each in every)
        # a run of the search that was paused bears more rounds than it has done
        whole = [each for each in every if each.ended or each is not own]
        return min((each.within(question.limits) for each in whole or every), default=0)

    def at(self, question: Question, standing: Standing) -> int:
        """Rounds at which one of its runs is judged."""
        if question.aim.target:
            measure = question.objective.measure
            return reached(standing, question.aim, measure, question.limits) or standing.within(question.limits)
        return min(self.kept(question), standing.rounds)

    def valid(self, question: Question) -> Estimate:
        """The measure on the clients' validation parts, over seeds."""
        return estimate([each.value(self.at(question, each)) for each in self.runs.values()])

    def test(self, question: Question) -> Estimate:
        """The measure on the test set, over seeds."""
        return estimate([each.test(self.at(question, each)) for each in self.runs.values()])

    def costs(self, question: Question) -> dict[str, float]:
        """The largest of each cost over its runs, the search's own among them."""
        own = self.candidate.standing
        every = [*self.runs.values(), *([own] if own is not None and not self.runs else [])]
        found: dict[str, float] = {}
        for each in every:
            for name, value in each.costs(self.at(question, each)).items():
                found[name] = max(found.get(name, value), value)
        return found


def finalists(candidates: Sequence[Candidate], question: Question, count: int) -> list[Finalist]:
    """The first few of what the search found, with the rounds that they run."""
    found: list[Finalist] = []
    for each in candidates[:count]:
        assert each.standing is not None
        free = question.aim.target or not each.whole
        found.append(Finalist(each, each.length if free else each.standing.within(question.limits)))
    return found


def rerun(
    some: Sequence[Finalist],
    question: Question,
    folder: Path,
    runner: Processes,
    pool: Pool,
    seeds: int,
    say: Callable[[str], object],
) -> None:
    """Run finalists over seeds, all of them with one seed before any with the next; as many seeds as time allows."""
    first = int(question.base.get("seed", 0)) + 1
    chosen = _affordable(some, pool)
    longest = 0.0
    for seed in range(first, first + seeds):
        if not chosen or time.monotonic() + longest > pool.until:
            say(f"no time is left to run finalists with seed {seed}")
            return
        begun, came = time.monotonic(), dict[int, Standing]()
        try:
            runner.carry([_leg(each, question, folder, seed) for each in chosen], came.__setitem__)
        except OutOfTime:
            say(f"no time was left to finish finalists with seed {seed}")
            return
        longest = max(longest, time.monotonic() - begun)
        for place, each in enumerate(chosen):
            if came[place].ended and not came[place].failed:
                each.runs[seed] = came[place]
        say(f"finalists run again: {len(chosen)}, seed {seed - first + 1} of {seeds}")


def _affordable(some: Sequence[Finalist], pool: Pool) -> Sequence[Finalist]:
    """As many of the first as one more run of each seems to fit into the time, by what their rounds took; one at least."""
    left, took, kept = pool.until - time.monotonic(), 0.0, list[Finalist]()
    for each in some if left > 0 else ():
        own = each.candidate.standing
        took += own.took / max(1, own.rounds) * each.rounds / pool.workers if own is not None else 0.0
        if not kept or took <= left:
            kept.append(each)
    return kept


def _leg(finalist: Finalist, question: Question, folder: Path, seed: int) -> Leg:
    config = question.config(finalist.candidate.asked.labels, finalist.candidate.length, seed, finalist.rounds)
    return Leg(config, folder / "finals" / f"{finalist.candidate.number:04d}-{seed}", finalist.rounds)


def best(some: Sequence[Finalist], question: Question) -> Finalist:
    """The finalist to take: by its validation measure, mean over seeds; with a target by its mean cost."""
    measure = question.objective.measure

    def worth(each: Finalist) -> tuple[float, ...]:
        own = each.candidate.standing
        runs: Mapping[int, Standing] = each.runs or ({-1: own} if own is not None else {})
        value = estimate([run.value(each.at(question, run)) for run in runs.values()]).mean
        short = -value if measure.better == "higher" else value
        if not question.aim.target:
            return (short,)
        missed = sum(not reached(run, question.aim, measure, question.limits) for run in runs.values())
        cost = estimate([run.costs(each.at(question, run))[question.aim.cost] for run in runs.values()]).mean
        return (missed, cost, short)

    with_runs = [each for each in some if each.runs] or list(some)
    return min(with_runs, key=worth)
