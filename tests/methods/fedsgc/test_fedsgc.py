"""FedSGC by hand: what goes against the global direction and what comes along it, the direction itself, and the server's cut."""

from dataclasses import replace

import pytest
import torch

from fedbonsai import training, tree
from fedbonsai.methods.fedsgc.client import SIGNS
from fedbonsai.methods.fedsgc.congruity import congruent, two_parts
from fedbonsai.methods.fedsgc.method import FedSGC
from fedbonsai.stages.pruning.readjust import Readjustment, cut_back
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import seed_of
from tests.methods.hand import BODY, SINGLE, SINGLES
from tests.methods.rounds import run, same

STEP = SGD(lr=0.3, batch=8, epochs=2)
OFTEN = FedSGC(STEP, density=0.4, readjustment=Readjustment(2, 9, 0.8), batch=32)


def played(method, rounds=3, **more):
    return run(method, SINGLES, rounds, SINGLE, **more)


def counted(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def places(mask):
    return mask.nonzero().flatten().tolist()


def test_two_sets_give_their_shares_and_what_the_other_lacks():
    score = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0, 4.0])
    first, second = torch.arange(6) >= 4, torch.arange(6) < 4
    assert places(two_parts(score, first, second, 4, 0.25)) == [0, 1, 2, 4]
    assert places(two_parts(score, first, second, 4, 1.0)) == [0, 1, 4, 5]
    assert places(two_parts(score, first, torch.arange(6) < 1, 3, 0.0)) == [0, 4, 5]
    assert places(two_parts(score, first, second, 0, 0.5)) == []


def test_what_goes_and_what_comes_by_hand():
    """Eight weights, four kept, two traded: what moved against d goes before smaller ones, what leads along it comes first."""
    mask = torch.tensor([True, True, True, True, False, False, False, False])
    start = torch.tensor([0.5, 0.4, 0.1, 0.3, 0.0, 0.0, 0.0, 0.0])
    after = torch.tensor([0.6, 0.3, 0.2, 0.2, 0.0, 0.0, 0.0, 0.0])  # moved up, down, up, down
    d = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, -1.0, 0.0, 0.0])  # the second alone moved against it
    slope = torch.tensor([9.0, 9.0, 9.0, 9.0, -0.1, -0.2, 0.3, -0.4])  # a step would move the fifth alone along it
    weights, masks = congruent({"w": after}, {"w": start}, {"w": mask}, {"w": slope}, {"w": d}, 0.5, 0.5, 0.5)
    # of two that go the smallest of those against d is the second; of the others the third and fourth tie, the third goes
    assert places(~masks["w"] & mask) == [1, 2]
    assert places(masks["w"] & ~mask) == [4, 7]
    assert weights["w"].tolist() == pytest.approx([0.6, 0.0, 0.0, 0.2, 0.0, 0.0, 0.0, 0.0])
    _, plain = congruent({"w": after}, {"w": start}, {"w": mask}, {"w": slope}, {"w": d * 0}, 0.5, 0.5, 0.5)
    assert places(plain["w"]) == [0, 1, 6, 7], "with no direction it is by size alone"


def test_signs_travel_exactly():
    found = {"w": torch.tensor([[0.0, 1.0, -1.0], [1.0, 0.0, 0.0]]), "still": torch.zeros(3)}
    assert same(SIGNS.pack(found, 0).dense(found), found)


def test_the_direction_is_that_of_the_last_step():
    states, fleet = played(OFTEN)
    assert not any(value.any() for value in states[0].direction.values())
    for t in range(3):
        for name, value in states[t + 1].direction.items():
            assert torch.equal(value, (states[t + 1].model.weights[name] - states[t].model.weights[name]).sign())
    request = next(request for t, _, request in fleet.sent if t == 2)
    assert same(request.direction.dense(states[2].direction), states[2].direction)


def test_a_device_trades_in_the_middle_of_a_round():
    states, fleet = played(OFTEN)
    answer = next(value for t, id, value in fleet.heard if (t, id) == (2, "c"))
    before, masks = states[2].model, states[2].held.masks
    me = replace(SINGLES[2], seed=seed_of(0, "c", 2, 0), round=2)
    first = training.train(before, me, STEP.but(epochs=1), mask=masks).weights
    samples = next(training.batches(replace(me, seed=seed_of(me.seed, "growth", 0, 0)), SGD(batch=32)))
    slopes = training.gradient(before.replace(first), samples, training=True)
    fraction = OFTEN.readjustment.fraction(2)
    weights, wanted = congruent(first, before.weights, masks, slopes, states[2].direction, fraction, 0.5, 0.5)
    assert same(answer.masks, wanted)
    then = replace(me, seed=seed_of(me.seed, "after", 0, 0))
    last = training.train(before.replace(weights), then, STEP.but(epochs=1), mask=wanted).weights
    assert same(answer.update.result.dense(SINGLE.weights, wanted), last)
    assert counted(answer.masks) == counted(masks)


def test_the_server_averages_over_all_and_cuts_back():
    states, fleet = played(OFTEN)
    mean, masks = tree.Mean(), states[2].held.masks
    for t, _, value in fleet.heard:
        if t == 2:
            mean.add(value.update.result.dense(SINGLE.weights, value.masks or masks), value.update.examples)
    weights, new = cut_back(mean.result(), masks)
    assert same(states[3].model.weights, weights)
    assert same(states[3].held.masks, new)
    assert states[3].traded > 0


def test_answers_that_are_damaged_or_keep_too_much_are_dropped():
    def spoil(answer, t):
        value = answer.value
        if t == 2 and answer.device.id == "a":
            more = {name: torch.ones_like(mask) for name, mask in value.masks.items()}
            return replace(answer, value=replace(value, masks=more))
        if t == 2 and answer.device.id == "b":
            update = replace(value.update, result=replace(value.update.result, payload=b""))
            return replace(answer, value=replace(value, update=update))
        return answer

    assert played(OFTEN, change=spoil)[0][3].dropped == 2


def test_devices_that_lost_the_masks_get_them_again():
    states, fleet = played(OFTEN, 4, forget=2)
    assert same(states[3].model.weights, states[2].model.weights)
    assert [request.sent.masks is not None for t, _, request in fleet.sent if t == 3] == [True] * 3
    assert states[3].direction[BODY].any()


def test_what_cannot_be_meant_is_refused():
    for wrong in ({"opposed": 1.5}, {"agreed": -0.1}, {"after": 2}, {"optimizer": SGD()}, {"batch": 1}):
        with pytest.raises(ValueError, match=r"opposed = 1|agreed = -0|readjusting round|batch = 1"):
            FedSGC(**wrong)
