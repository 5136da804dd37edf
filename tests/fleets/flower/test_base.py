"""Devices keep what is not trained on their disks; one that lost it says so, and gets it once more."""

from contextlib import suppress

from fedbonsai import bases, model
from fedbonsai.core import Scope, scope
from fedbonsai.errors import Unanswered
from fedbonsai.fleets.based import Based
from fedbonsai.fleets.flower.fleet import FlowerFleet
from fedbonsai.fleets.flower.frames import Form
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.wrappers import Metered
from fedbonsai.runs import recipes
from fedbonsai.runs.setup import clients, run_context
from tests.fleets.flower.nodes import grid_of, workers

FORM = Form((1, 8, 8), tuple("0123456789"), (0.3,), (0.4,))
SETTINGS = {"data.clients": 1, "data.limit": 100, "model.name": "cnn-bn", "model.trainable": ["classifier.*"]}


def test_a_device_keeps_the_base_on_its_disk_and_says_when_it_is_lost(tmp_path):
    config = recipes.load("fedavg", "", SETTINGS)
    made = run_context(config)
    people, base = clients(made.federation), made.model.arch.base
    home = tmp_path / people[0].id / ".bases"
    held, ledger = bases.of(base), Ledger()
    fleet = Based(
        Metered(FlowerFleet(grid_of(workers(people, tmp_path)), FORM, expect=1, poll=0.01), ledger), base, ledger
    )
    state = config.method.begin(made.model, fleet, made.server)

    def kinds(t):
        """Messages that went down in a round in which the device's process is new."""
        nonlocal state
        for store in (bases._held, model._skeletons, model._forms):  # which the server shares here
            store.clear()
        with suppress(Unanswered), scope(fleet, Scope("run", 0, t, 0)) as there:
            state = config.method.round(state, t, there)
            there.commit()
        return [row["kind"] for row in ledger.take() if row["direction"] == "down"]

    assert kinds(0) == ["base/hold@1", "averaging/train@1"]
    assert [file.name for file in home.iterdir()] == [base]
    assert kinds(1) == ["averaging/train@1"]
    (home / base).write_bytes((home / base).read_bytes()[:-1] + b"x")  # a damaged disk
    assert kinds(2) == ["averaging/train@1"]  # it is silent, and says why
    (home / base).unlink()
    assert kinds(3) == ["base/hold@1", "averaging/train@1"]
    assert kinds(4) == ["averaging/train@1"]
    bases.adopt({base: held})
