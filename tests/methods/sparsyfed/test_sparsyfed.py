"""SparsyFed by hand: powers and their slopes, one step and one cut, and the mean over those that kept a coordinate."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedbonsai.methods.sparsyfed.client import NONZERO, cut, powers, train
from fedbonsai.methods.sparsyfed.method import SparsyFed
from fedbonsai.training.optimizers import SGD
from tests.methods.hand import BODY, CLASSES, DATA, HEAD, NAMES, SINGLE, SINGLES, WHOLE, loss_and_gradient, scores
from tests.methods.rounds import run

STEP = SGD(lr=0.5, batch=WHOLE)
PLAIN = SparsyFed(STEP, density=0.4, activations=False)
KEPT = 14  # floor(0.4 x 35)


def played(method, rounds=1, **more):
    return run(method, SINGLES, rounds, SINGLE, **more)


def dense(update):
    return update.result.dense(SINGLE.weights)


def zeros(weights):
    return sum(int((weights[name] == 0).sum()) for name in (BODY, HEAD))


def test_powers_and_their_slopes_by_hand():
    theta = torch.tensor([16.0, -1.0, 0.0], requires_grad=True)
    found = powers({"w": theta}, ["w"], 1.25)["w"]
    assert found.tolist() == [32.0, -1.0, 0.0]
    (slope,) = torch.autograd.grad(found.sum(), [theta])
    assert slope.tolist() == [2.5, 1.25, 0.0]
    assert torch.autograd.grad(powers({"w": theta}, ["w"], 1.0)["w"].sum(), [theta])[0].tolist() == [1.0, 1.0, 1.0]


def test_the_cut_is_over_all_layers_together():
    weights = {"a": torch.tensor([3.0, -1.0]), "b": torch.tensor([0.5, -4.0, 2.0]), "bias": torch.tensor([0.1])}
    assert {n: v.tolist() for n, v in cut(weights, ["a", "b"], 0.5).items()} == {
        "a": [3.0, 0.0],
        "b": [0.0, -4.0, 0.0],
        "bias": [pytest.approx(0.1)],
    }


def test_it_begins_with_the_networks_own_weights():
    state = played(PLAIN, 0)[0][0]
    for name, value in PLAIN.model(state).weights.items():
        torch.testing.assert_close(value, SINGLE.weights[name])
    assert not torch.allclose(state.theta.weights[BODY], SINGLE.weights[BODY])


def test_a_step_is_along_the_power_and_ends_with_a_cut():
    _, fleet = played(PLAIN)
    answer = next(value for _, id, value in fleet.heard if id == "b")
    theta = {name: value.double().numpy() for name, value in played(PLAIN, 0)[0][0].theta.weights.items()}
    w = {n: np.sign(v) * np.abs(v) ** 1.25 if n in (BODY, HEAD) else v for n, v in theta.items()}
    loss, slope = loss_and_gradient(w, *DATA["b"])
    for name in (BODY, HEAD):
        slope[name] = slope[name] * 1.25 * np.abs(theta[name]) ** 0.25
    after = {name: theta[name] - 0.5 * slope[name] for name in NAMES}
    least = np.sort(np.abs(np.concatenate([after[BODY].ravel(), after[HEAD].ravel()])))[-KEPT]
    for name, value in dense(answer).items():
        wanted = np.where(np.abs(after[name]) >= least, after[name], 0) if name in (BODY, HEAD) else after[name]
        np.testing.assert_allclose(value.numpy(), wanted, 1e-4, 1e-5)
    assert answer.loss == pytest.approx(loss, rel=1e-5)
    assert zeros(dense(answer)) == 35 - KEPT


def test_inputs_are_cut_to_the_share_of_weights_that_are_not_zero():
    """By hand: the slope of the first layer is of the floor(share x values) largest inputs alone."""
    method = replace(PLAIN, activations=True, power=1.0, density=1.0)
    _, fleet = played(method)
    request = next(request for _, id, request in fleet.sent if id == "b")
    theta = {name: value.clone() for name, value in SINGLE.weights.items()}
    theta[BODY][:, :2] = 0  # half of the first layer; the second is whole
    answer, _ = train.run(replace(request, packed=NONZERO.pack(theta, 0)), SINGLES[1], {})
    x, y = DATA["b"]
    w = {name: value.double().numpy() for name, value in theta.items()}
    hidden, z = scores(w, x)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    by_sum = ((p - np.eye(CLASSES)[y]) / len(y)) @ w[HEAD] * (1 - hidden**2)
    least = np.sort(np.abs(x).ravel())[-(x.size // 2)]
    part = np.where(np.abs(x) >= least, x, 0)
    found = answer.result.dense(SINGLE.weights)
    np.testing.assert_allclose(found[BODY].numpy(), w[BODY] - 0.5 * by_sum.T @ part, 1e-4, 1e-5)
    _, slope = loss_and_gradient(w, x, y)
    np.testing.assert_allclose(found[HEAD].numpy(), w[HEAD] - 0.5 * slope[HEAD], 1e-4, 1e-5)


def test_a_coordinate_is_averaged_over_those_that_kept_it():
    states, fleet = played(PLAIN, 2)
    for t in range(2):
        answers = [value for at, _, value in fleet.heard if at == t]
        shares = torch.tensor([float(answer.examples) for answer in answers], dtype=torch.float64)
        for name in NAMES:
            values = torch.stack([dense(answer)[name].double() for answer in answers])
            held = (values != 0) | (name not in (BODY, HEAD))
            weight = (shares.reshape(-1, *[1] * (values.ndim - 1)) * held).sum(0)
            total = (shares.reshape(-1, *[1] * (values.ndim - 1)) * values).sum(0)
            wanted = torch.where(weight > 0, total / weight.clamp(min=1e-9), 0).float()
            torch.testing.assert_close(states[t + 1].theta.weights[name], wanted)
    assert zeros(states[2].theta.weights) > 0
    model = PLAIN.model(states[2])
    assert zeros(model.weights) == zeros(states[2].theta.weights)


def test_what_is_zero_costs_next_to_nothing():
    _, fleet = played(replace(PLAIN, density=0.1), 2)
    first, later = (len(fleet.sent[place][2].packed.payload) for place in (0, -1))
    assert later < first - 4 * 10


def test_answers_that_are_damaged_or_keep_too_much_are_dropped():
    def spoil(answer, t):
        value = answer.value
        if answer.device.id == "a":
            return replace(answer, value=replace(value, result=replace(value.result, payload=b"")))
        if answer.device.id == "b":
            return replace(answer, value=replace(value, result=NONZERO.pack(SINGLE.weights, 0)))
        return answer

    states, _ = played(PLAIN, change=spoil)
    assert states[1].dropped == 2
    assert PLAIN.metrics(states[1])["kept"] == KEPT


def test_what_cannot_be_meant_is_refused():
    for wrong in (
        {"density": 0.0},
        {"power": 0.5},
        {"optimizer": SGD(precision="bf16")},
        {"optimizer": SGD(sparse="on")},
    ):
        with pytest.raises(ValueError, match=r"density = 0|power = 0.5|optimizer.precision|optimizer.sparse"):
            SparsyFed(**wrong)
    SparsyFed(SGD(precision="bf16"), activations=False)
