"""Every method over Flower's own messages and ClientApp ends as it ends in process, to the byte."""

from dataclasses import replace

import pytest
import torch

from fedbonsai.fleets.flower.fleet import FlowerFleet
from fedbonsai.fleets.flower.frames import Form
from fedbonsai.runs.folder import Folder
from fedbonsai.runs.loop import loop
from fedbonsai.runs.setup import clients, run_context
from fedbonsai.wire import decode, encode
from tests.cases import ALIKE, CASES, ROUNDS, some
from tests.conformance import Killed, Mortal, people, stage, states
from tests.fleets.flower.nodes import fleet_of, grid_of, workers
from tests.runs.test_trouble import quick, uneven

SYSTEMS = {
    *("fedavg", "fl-pqsu", "prunefl", "fedtiny", "wireless-pruning"),
    *("sparse-collaborative", "sparse-collaborative-split"),
}
CRASH = some(CASES, {*map(str, CASES)} - SYSTEMS)
FORM = Form((1, 8, 8), tuple("0123456789"), (0.3,), (0.4,))


KNOWN = {}


def in_process(case):
    """States of a run without Flower, worked out once for both tests of a case."""
    if str(case) not in KNOWN:
        KNOWN[str(case)] = states(case)
    return KNOWN[str(case)]


@pytest.mark.parametrize("case", some(CASES, ALIKE), ids=str)
def test_same_state_over_flower(case, tmp_path):
    assert states(case, fleet_of(people(case), tmp_path, FORM)) == in_process(case)


@pytest.mark.parametrize("case", CRASH, ids=str)
def test_a_server_that_is_killed_goes_on_with_the_memories_on_the_devices(case, tmp_path):
    held = people(case)
    hands = workers(held, tmp_path / "devices")
    whole = in_process(case)[-1]
    folder = Folder(tmp_path / "run")
    made = stage(case, Mortal(FlowerFleet(grid_of(hands), FORM, expect=len(held)), 1, after=1))
    with pytest.raises(Killed):
        loop(case.config(), made, "run", folder)
    # devices restarted too: what they know is what lies in their folders
    again = stage(case, FlowerFleet(grid_of(workers(held, tmp_path / "devices")), FORM, expect=len(held)))
    outcome = loop(case.config(), again, "run", folder)
    assert bytes(encode(outcome.state)) == whole
    assert [row["round"] for row in outcome.rows] == list(range(ROUNDS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil",
    [
        lambda weights: {},
        lambda weights: {name: value[..., :1] for name, value in weights.items()},
        lambda weights: {**weights, "another": torch.zeros(1)},
        lambda weights: {name: value * float("nan") for name, value in weights.items()},
    ],
    ids=["empty", "other shapes", "one more", "not finite"],
)
def test_an_update_that_does_not_fit_the_model_is_left_out_of_the_mean(tmp_path, spoil):
    case = CASES[0]
    held = people(case)
    hands = workers(held, tmp_path)
    hand = next(hand for hand in hands.values() if hand.device == held[0].id)
    real = hand.perform

    def wrong(raw, payload):
        head, answer = real(raw, payload)
        value = decode(answer)
        return head, bytes(encode(replace(value, result=spoil(dict(value.result)))))

    hand.perform = wrong
    rows = loop(case.config(), stage(case, FlowerFleet(grid_of(hands), FORM, expect=len(held))), "run").rows
    assert [row["dropped"] for row in rows] == [1.0] * ROUNDS


@pytest.mark.slow
def test_a_device_that_cannot_train_leaves_what_such_a_client_leaves_in_process(tmp_path):
    config = quick(**uneven(tmp_path, {1}), rounds=2)
    made = run_context(config)
    local = loop(config, made, "run")
    over = loop(config, replace(made, fleet=fleet_of(clients(made.federation), tmp_path / "devices", FORM)), "run")
    assert bytes(encode(over.state)) == bytes(encode(local.state))
    columns = ("answered", "silent", "rejected", "reasons", "accuracy")
    assert [[row[name] for name in columns] for row in over.rows] == [
        [row[name] for name in columns] for row in local.rows
    ]
    assert local.rows[0]["silent"] == 1
