"""Settings carried out on this machine: each look and each leg of a run in a process of the pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedbonsai.errors import ConfigError
from fedbonsai.planning.pool import Pool
from fedbonsai.planning.probe import Probe, probe
from fedbonsai.planning.question import Question
from fedbonsai.planning.standing import Standing
from fedbonsai.planning.trial import Leg, stands, walk
from fedbonsai.runs.config import RunConfig
from fedbonsai.runs.folder import Folder
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

    def walk(
        self, legs: Sequence[tuple[int, Mapping[str, str], int, int]], came: Callable[[int, Standing], object]
    ) -> None:
        """Carry settings on."""
        some = [
            Leg(self._question.config(labels, length), self._trials / f"{number:04d}", upto)
            for number, labels, length, upto in legs
        ]
        self.carry(some, lambda place, standing: came(legs[place][0], standing))

    def left(self, number: int) -> Standing | None:
        """Where a setting stands whose leg was stopped."""
        folder = self._trials / f"{number:04d}"
        return stands(folder) if Folder(folder).rows() else None

    def carry(self, legs: Sequence[Leg], came: Callable[[int, Standing], object]) -> None:
        """Carry runs on; those that take longest begin first.

        Args:
            legs: of runs.
            came: told the place and the standing of each as it comes.
        """
        places = sorted(range(len(legs)), key=lambda place: -legs[place].upto)
        with doing("training settings", len(legs)) as at:
            for done, (place, result) in enumerate(self._pool.each(walk, [legs[place] for place in places]), 1):
                came(places[place], result)
                at(done)
