"""Every method over Flower's own messages and ClientApp ends as it ends in process, to the byte."""

import pytest

from fedbonsai.fleets.flower.fleet import FlowerFleet
from fedbonsai.fleets.flower.frames import Form
from fedbonsai.runs.folder import Folder
from fedbonsai.runs.loop import loop
from fedbonsai.wire import encode
from tests.cases import CASES, ROUNDS
from tests.conformance import Killed, Mortal, people, stage, states
from tests.fleets.flower.nodes import fleet_of, grid_of, workers

SUITE = [pytest.param(case, marks=[pytest.mark.slow] if number else []) for number, case in enumerate(CASES)]
each = pytest.mark.parametrize("case", SUITE, ids=str)
FORM = Form((1, 8, 8), tuple("0123456789"), (0.3,), (0.4,))


@each
def test_same_state_over_flower(case, tmp_path):
    assert states(case, fleet_of(people(case), tmp_path, FORM)) == states(case)


@each
def test_a_server_that_is_killed_goes_on_with_the_memories_on_the_devices(case, tmp_path):
    held = people(case)
    hands = workers(held, tmp_path / "devices")
    whole = states(case)[-1]
    folder = Folder(tmp_path / "run")
    made = stage(case, Mortal(FlowerFleet(grid_of(hands), FORM, expect=len(held)), 1, after=1))
    with pytest.raises(Killed):
        loop(case.config(), made, "run", folder)
    # devices restarted too: what they know is what lies in their folders
    again = stage(case, FlowerFleet(grid_of(workers(held, tmp_path / "devices")), FORM, expect=len(held)))
    outcome = loop(case.config(), again, "run", folder)
    assert bytes(encode(outcome.state)) == whole
    assert [row["round"] for row in outcome.rows] == list(range(ROUNDS))
