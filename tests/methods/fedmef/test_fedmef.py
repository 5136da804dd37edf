"""FedMef by hand: what is marked, the pressed step, the rate within its budget, and what the server grows and prunes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedbonsai import tree
from fedbonsai.methods.fedmef.extrusion import Extrusion, Pressing, marked
from fedbonsai.methods.fedmef.method import FedMef, opened
from fedbonsai.methods.static_mask.method import StaticMask
from fedbonsai.objectives import Classification
from fedbonsai.stages.pruning.criteria import Magnitude
from fedbonsai.stages.pruning.grow_prune import adjust, mean_gradients
from fedbonsai.stages.pruning.readjust import Readjustment, counts_of
from fedbonsai.training.optimizers import SGD
from tests.methods.hand import BODY, DATA, HEAD, SINGLE, SINGLES, WHOLE, loss_and_gradient
from tests.methods.rounds import run, same

STEP = SGD(lr=0.5, batch=WHOLE)
OFTEN = FedMef(STEP, density=0.4, readjustment=Readjustment(1, 9, 0.5), extrusion=Extrusion(0.3), cut=0.0, batch=32)


def played(method, rounds=1, **more):
    return run(method, SINGLES, rounds, SINGLE, **more)


def counted(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def test_the_smallest_active_weights_are_marked():
    weights = {"w": torch.tensor([0.0, 0.5, -0.1, 0.0, 0.3, 0.1])}
    masks = {"w": torch.tensor([False, True, True, False, True, True])}
    assert marked(weights, masks, {"w": 2})["w"].tolist() == [False, False, True, False, False, True]
    assert marked(weights, masks, {"w": 0}) == {}


def test_how_many_weights_a_layer_trades():
    masks = {"half": torch.arange(10) < 5, "full": torch.ones(4, dtype=torch.bool), "most": torch.arange(10) < 9}
    assert counts_of(masks, 0.5) == {"half": 2, "full": 0, "most": 1}


def test_the_rate_rises_within_its_budget_by_hand():
    pressing = Pressing(Extrusion(factor=4.0), {}, Classification(), 4, 0.1)
    pressing._size = 2.0  # 2 sigmoid(2) - 1 = tanh(1)
    assert pressing.next_rate() == pytest.approx(4 * 1 * math.tanh(1) * 0.1)
    pressing._size = 4.0
    assert pressing.next_rate() == pytest.approx(4 * (6 / 7) * math.tanh(2) * 0.1)
    before, pressing._size = pressing.rate, 0.1
    assert pressing.next_rate() == before, "never below the present rate"
    limited = Pressing(Extrusion(factor=4.0, most=0.25), {}, Classification(), 4, 0.1)
    limited._size = 2.0
    assert limited.next_rate() == 0.25
    still = Pressing(Extrusion(), {}, Classification(), 4, 0.1)
    still._size = 100.0
    assert [still.next_rate() for _ in range(4)] == [0.1] * 4


def test_a_pressed_step_by_hand():
    """The gradient plus lambda w / |w| at what is marked, in each layer by itself."""
    states, fleet = played(OFTEN, 2)
    request = next(request for t, id, request in fleet.sent if (t, id) == (1, "b"))
    answer = next(value for t, id, value in fleet.heard if (t, id) == (1, "b"))
    masks = states[1].held.masks
    w = {name: value.double().numpy() for name, value in states[1].model.weights.items()}
    marks = marked(states[1].model.weights, masks, request.counts)
    assert set(marks) == {BODY, HEAD}
    loss, slope = loss_and_gradient(w, *DATA["b"])
    for name, mark in marks.items():
        mark = mark.numpy()
        size = np.sqrt((w[name][mark] ** 2).sum())
        slope[name] = slope[name] + 0.3 * np.where(mark, w[name], 0) / size
        loss += 0.3 * size
    found = answer.update.result.dense(SINGLE.weights, masks)
    for name, value in found.items():
        wanted = w[name] - 0.5 * slope[name]
        np.testing.assert_allclose(value.numpy(), wanted * masks[name].numpy() if name in masks else wanted, 1e-4, 1e-5)
    assert answer.update.loss == pytest.approx(loss, rel=1e-5)


def test_the_penalty_makes_smaller_what_goes():
    sizes = {}
    for penalty in (0.0, 0.3):
        method = replace(OFTEN, extrusion=Extrusion(penalty))
        states, fleet = played(method, 2)
        request = next(request for t, _, request in fleet.sent if t == 1)
        masks = states[1].held.masks
        marks = marked(states[1].model.weights, masks, request.counts)
        found = [value.update.result.dense(SINGLE.weights, masks) for t, _, value in fleet.heard if t == 1]
        sizes[penalty] = sum(
            float(weights[name][mark].abs().sum()) for weights in found for name, mark in marks.items()
        )
    assert sizes[0.3] < sizes[0.0]


def test_the_server_grows_by_mean_gradient_and_prunes_the_smallest():
    states, fleet = played(OFTEN, 2)
    before, after = states[1], states[2]
    request = next(request for t, _, request in fleet.sent if t == 1)
    assert request.counts == counts_of(before.held.masks, OFTEN.readjustment.fraction(1))
    mean, gradients = tree.Mean(), []
    for t, _, value in fleet.heard:
        if t == 1:
            weights, found = opened(value, SINGLE.weights, before.held.masks, request.counts)
            mean.add(weights, value.update.examples)
            gradients.append((value.update.examples / 31, found))
    wanted = adjust(mean.result(), before.held.masks, mean_gradients(gradients), request.counts)
    assert same(after.model.weights, wanted.weights)
    assert same(after.held.masks, wanted.masks)
    assert counted(after.held.masks) == counted(before.held.masks)
    assert after.traded == sum(request.counts.values()) > 0


def test_ordinary_rounds_ask_for_no_gradient_and_have_no_penalty():
    states, fleet = played(OFTEN, 1)
    assert [request.counts for _, _, request in fleet.sent] == [{}] * 3
    assert states[1].traded == 0
    masks = replace(OFTEN, readjustment=Readjustment(100, 100, 0.5))
    static = StaticMask(STEP, density=0.4, criterion=Magnitude(), distribution="erk")
    assert same(played(masks, 2)[0][-1].model.weights, played(static, 2)[0][-1].model.weights)


def test_growth_buffers_are_counted_in_adjusting_rounds_alone():
    states, _ = played(replace(OFTEN, readjustment=Readjustment(2, 9, 0.5)), 4)
    memory = [state.costs["training_memory"] for state in states]
    assert memory == [memory[0]] * 3 + [memory[0] + 8 * states[3].traded, memory[0]]


def test_inputs_are_cut():
    whole, part = (played(replace(OFTEN, cut=cut))[0][-1].model.weights for cut in (0.0, 0.5))
    assert not torch.equal(whole[BODY], part[BODY])


def test_answers_that_are_damaged_are_dropped():
    def spoil(answer, t):
        value = answer.value
        if t == 1 and answer.device.id == "a":
            return replace(answer, value=replace(value, pairs={}))
        if t == 1 and answer.device.id == "b":
            update = replace(value.update, result=replace(value.update.result, payload=b""))
            return replace(answer, value=replace(value, update=update))
        return answer

    states, _ = played(OFTEN, 2, change=spoil)
    assert states[2].dropped == 2


def test_devices_that_lost_the_masks_get_them_again():
    states, fleet = played(replace(OFTEN, readjustment=Readjustment(2, 9, 0.5)), 4, forget=2)
    assert same(states[3].model.weights, states[2].model.weights)
    assert [request.sent.masks is not None for t, _, request in fleet.sent if t == 3] == [True] * 3


def test_what_cannot_be_meant_is_refused():
    for wrong in ({"cut": 1.0}, {"batch": 1}, {"optimizer": SGD(precision="bf16")}, {"optimizer": SGD(sparse="on")}):
        with pytest.raises(ValueError, match=r"cut = 1|batch = 1|optimizer.precision|optimizer.sparse"):
            FedMef(**wrong)
    with pytest.raises(ValueError, match=r"most = 0.2 has no effect"):
        Extrusion(most=0.2)
