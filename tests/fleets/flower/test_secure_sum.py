"""Drop-outs in each step over worker processes and over an in-process Grid end as they do within one process (`test_sum`)."""

from itertools import product

import pytest
import torch

from fedbonsai.core import Client, Samples
from fedbonsai.errors import Unanswered
from fedbonsai.fleets.pool import PoolFleet
from tests.fleets.flower.nodes import fleet_of as grid_fleet
from tests.stages.secure.test_sum import NEAREST, STEPS, Dropping, plain, total

COUNT = 8  # each has 7 neighbours, of which 5 are needed: two may go
GONE = ((), ("3",), ("3", "6"))
TOO_MANY = ("2", "4", "6")
FLEETS = ("pool", "grid")
CHOSEN = (  # all others are left to `make test-all`
    ("pool", "secure/mask", 2, "request"),
    ("pool", "secure/reveal", 1, "reply"),
    ("grid", "secure/share", 1, "request"),
    ("grid", "secure/agree", 2, "reply"),
)


def people():
    one = Samples(torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64))
    return [Client(str(i + 1), i, one, one) for i in range(COUNT)]


@pytest.fixture(scope="module")
def pool():
    fleet = PoolFleet(people(), 2)
    yield fleet
    fleet.close()


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return grid_fleet(people(), tmp_path_factory.mktemp("grid"))


def cell(*values, chosen):
    marks = [pytest.mark.slow, *[pytest.mark.exhaustive] * (not chosen)]
    return pytest.param(*values, marks=marks, id="-".join(map(str, values)))


@pytest.mark.parametrize(
    ("which", "step", "count", "lost"),
    [
        cell(*values, chosen=values in CHOSEN)
        for values in product(FLEETS, STEPS, (0, 1, 2), ("request", "reply"))
        if values[2] or values[1:] == (STEPS[0], 0, "request")  # nobody is lost in no step
    ],
)
def test_drop_outs_at_any_step_leave_the_sum_of_who_sent_codes(which, step, count, lost, request):
    gone = GONE[count]
    fleet = Dropping(request.getfixturevalue(which), {step: gone}, lost == "reply")
    done, _ = total(fleet, NEAREST)
    counted = STEPS.index(step) > STEPS.index("secure/mask")
    assert torch.equal(done.combined.mean["w"], plain(COUNT, () if counted else gone))
    assert {one.id for one in done.silent} == set(gone)
    assert done.combined.devices == tuple(str(i + 1) for i in range(COUNT) if str(i + 1) not in gone)


@pytest.mark.parametrize(
    ("which", "step"),
    [cell(*values, chosen=values[1] == "secure/agree") for values in product(FLEETS, STEPS[1:])],
)
def test_below_the_threshold_there_is_no_sum_and_nothing_is_revealed(which, step, request):
    fleet = Dropping(request.getfixturevalue(which), {step: TOO_MANY})
    with pytest.raises(Unanswered, match="needed"):
        total(fleet, NEAREST)
    revealed = [value for name, _, value in fleet.seen if name == "secure/reveal"]
    assert len(revealed) <= (5 if step == "secure/reveal" else 0)
