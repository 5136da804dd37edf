"""FedRTS by hand: outcomes of weights, what Beta learns of them, and masks that are drawn from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedbonsai.methods.fedrts.method import FedRTS
from fedbonsai.methods.fedrts.thompson import Posterior, core, weighed
from fedbonsai.methods.static_mask.method import StaticMask
from fedbonsai.stages.pruning.criteria import Magnitude
from fedbonsai.stages.pruning.places import masks_of, packed_masks
from fedbonsai.stages.pruning.readjust import Readjustment, counts_of
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import seed_of
from tests.methods.hand import BODY, HEAD, SINGLE, SINGLES, WHOLE
from tests.methods.rounds import run, same

STEP = SGD(lr=0.5, batch=WHOLE)
OFTEN = FedRTS(STEP, density=0.4, readjustment=Readjustment(2, 9, 0.8), batch=32)
SHARES = {"a": 5 / 31, "b": 9 / 31, "c": 17 / 31}


def played(method, rounds=3, **more):
    return run(method, SINGLES, rounds, SINGLE, **more)


def counted(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def test_the_core_is_what_would_stay():
    weights, masks = {"w": torch.tensor([0.0, -3.0, 1.0, 2.0])}, {"w": torch.tensor([False, True, True, True])}
    assert core(weights, masks, {"w": 1})["w"].tolist() == [0, 1, 0, 1]
    assert core(weights, masks, {"w": 0})["w"].tolist() == [0, 1, 1, 1]


def test_outcomes_and_beta_by_hand():
    """Weight 10: X = .5 x 1 + .5 x .25 = .625 gives alpha 1 + 6.25 and beta 1 + 3.75, at active places alone."""
    masks = {"w": torch.tensor([True, True, False])}
    outcome = weighed({"w": torch.tensor([1.0, 0.0, 1.0])}, {"w": torch.tensor([0.25, 0.25, 1.0])}, 0.5)
    assert outcome["w"].tolist() == [0.625, 0.125, 1.0]
    known = Posterior.flat(masks).told(outcome, masks, 10.0)
    assert known.alpha["w"].tolist() == [7.25, 2.25, 1.0]
    assert known.beta["w"].tolist() == [4.75, 9.75, 1.0]
    assert weighed({"w": torch.full((2,), 0.5)}, {"w": torch.tensor([0.0, 1.0])}, 0.5)["w"].tolist() == [0.25, 0.75]


def test_masks_are_drawn_by_seed_and_what_is_known_decides():
    alpha, beta = torch.ones(6, 5), torch.ones(6, 5)
    alpha[0], beta[1:] = 1e6, 1e6
    sure = Posterior({"w": alpha}, {"w": beta})
    for seed in range(3):
        assert sure.masks({"w": 5}, seed)["w"].nonzero()[:, 0].tolist() == [0] * 5
    flat = Posterior.flat({"w": alpha})
    first, again, other = (flat.masks({"w": 5}, seed)["w"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    kept = sum(flat.masks({"w": 5}, seed)["w"].double() for seed in range(400)) / 400
    np.testing.assert_allclose(kept, 5 / 30, atol=0.08)


def test_a_round_tells_of_each_active_weight():
    states, fleet = played(OFTEN, 1)
    masks, doubtful = states[0].held.masks, counts_of(states[0].held.masks, OFTEN.readjustment.fraction_now(0))
    assert all(doubtful.values())
    cores = {name: torch.zeros(mask.shape) for name, mask in masks.items()}
    for _, id, value in fleet.heard:
        assert value.places == {}
        found = core(value.update.result.dense(SINGLE.weights, masks), masks, doubtful)
        cores = {name: cores[name] + SHARES[id] * found[name] for name in masks}
    of_all = core(states[1].model.weights, masks, doubtful)
    for name, mask in masks.items():
        outcome = 0.5 * of_all[name] + 0.5 * cores[name]
        torch.testing.assert_close(states[1].posterior.alpha[name], torch.where(mask, 1 + 10 * outcome, 1.0))
        torch.testing.assert_close(states[1].posterior.beta[name], torch.where(mask, 1 + 10 * (1 - outcome), 1.0))


def test_an_adjusting_round_tells_of_pruned_places_and_draws():
    states, fleet = played(OFTEN)
    request = next(request for t, _, request in fleet.sent if t == 2)
    masks, after = states[2].held.masks, states[3]
    assert request.counts == counts_of(masks, OFTEN.readjustment.fraction(2))
    named = {name: torch.zeros(mask.shape) for name, mask in masks.items()}
    for t, id, value in fleet.heard:
        if t == 2:
            for name, places in masks_of(value.places, masks).items():
                assert int(places.sum()) == request.counts[name]
                assert not bool((places & masks[name]).any())
                named[name] += SHARES[id] * places
    for name in (BODY, HEAD):
        outcome = 0.25 + 0.5 * named[name]
        pruned = ~masks[name]
        torch.testing.assert_close(
            after.posterior.alpha[name][pruned], (states[2].posterior.alpha[name] + 10 * outcome)[pruned]
        )
        torch.testing.assert_close(
            after.posterior.beta[name][pruned], (states[2].posterior.beta[name] + 10 * (1 - outcome))[pruned]
        )
    assert counted(after.held.masks) == counted(masks)
    assert same(after.held.masks, after.posterior.masks(counted(masks), seed_of(states[0].seed, "masks", 2, 0)))
    assert after.traded > 0
    assert not any(bool(after.model.weights[name][~mask].any()) for name, mask in after.held.masks.items())


def test_after_the_last_draw_it_is_a_static_mask_that_learns_nothing_of_its_weights():
    method = replace(OFTEN, readjustment=Readjustment(9, 1, 0.8))
    states, _ = played(method)
    assert same(states[3].posterior.alpha, states[1].posterior.alpha)
    static = StaticMask(STEP, density=0.4, criterion=Magnitude(), distribution="erk")
    assert same(states[3].model.weights, played(static)[0][3].model.weights)


def test_answers_that_are_damaged_or_name_other_places_are_dropped():
    def spoil(answer, t):
        value = answer.value
        if t == 2 and answer.device.id == "a":
            return replace(answer, value=replace(value, places={}))
        if t == 2 and answer.device.id == "b":
            active = packed_masks({name: SINGLE.weights[name] == 1e9 for name in value.places})
            return replace(answer, value=replace(value, places=active))
        return answer

    states, _ = played(OFTEN, change=spoil)
    assert states[3].dropped == 2


def test_devices_that_lost_the_masks_get_them_again():
    states, fleet = played(OFTEN, 4, forget=2)
    assert same(states[3].model.weights, states[2].model.weights)
    assert [request.sent.masks is not None for t, _, request in fleet.sent if t == 3] == [True] * 3


def test_what_cannot_be_meant_is_refused():
    for wrong in ({"gamma": 1.5}, {"weight": 0.0}, {"batch": 1}, {"density": 0.0}):
        with pytest.raises(ValueError, match=r"gamma = 1|weight = 0|batch = 1|density = 0"):
            FedRTS(**wrong)
