"""Settings carried out on this machine: each look and each leg of a run in a process of the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedbonsai.errors import ConfigError
from fedbonsai.planning.pool import Pool
from fedbonsai.planning.probe import Probe, probe
from fedbonsai.planning.question import Question
from fedbonsai.planning.standing import Standing
from fedbonsai.planning.trial import Leg, walk
from fedbonsai.runs.config import RunConfig
from fedbonsai.telling import doing

REFUSED = "does not go with the data, the network or the method"


class Processes:
    """What carries settings out.

    Args:
        question: that makes runs of labels.
        folder: of the plan.
        pool: of processes.
    """

    def __init__(self, question: Question, folder: Path, pool: Pool) -> None:
        self._question, self._trials, self._pool = question, folder / "trials", pool

    def probe(self, labels: Sequence[Mapping[str, str]]) -> Sequence[Probe]:
        """Look at settings before they train."""
        found: dict[int, Probe] = {}
        configs: dict[int, RunConfig] = {}
        for place, each in enumerate(labels):
            try:
                configs[place] = self._question.config(each)
            except ConfigError as error:
                found[place] = Probe(str(error), REFUSED)
        places = list(configs)
        with doing("looking at settings before they train", len(places)) as at:
            for place, result in self._pool.each(probe, list(configs.values())):
                found[places[place]] = result
                at(len(found))
        return [found[place] for place in range(len(labels))]

    def walk(self, legs: Sequence[tuple[int, Mapping[str, str], int, int]]) -> Sequence[Standing]:
        """Carry settings on."""
        return self.carry(
            [
                Leg(self._question.config(labels, length), self._trials / f"{number:04d}", upto)
                for number, labels, length, upto in legs
            ]
        )

    def carry(self, legs: Sequence[Leg]) -> Sequence[Standing]:
        """Carry runs on; those that take longest begin first."""
        places = sorted(range(len(legs)), key=lambda place: -legs[place].upto)
        found: dict[int, Standing] = {}
        with doing("training settings", len(legs)) as at:
            for place, result in self._pool.each(walk, [legs[place] for place in places]):
                found[places[place]] = result
                at(len(found))
        return [found[place] for place in range(len(legs))]
