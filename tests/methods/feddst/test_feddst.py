"""FedDST: where it starts, what a readjusting round does on both ends, and that uploads stay sparse."""

from dataclasses import replace

import pytest
import torch

from fedbonsai import training, tree
from fedbonsai.methods.feddst.method import FedDST, Readjusted
from fedbonsai.methods.static_mask.method import StaticMask
from fedbonsai.stages.pruning.criteria import Magnitude
from fedbonsai.stages.pruning.distributions import erk, exactly
from fedbonsai.stages.pruning.masks import prunable
from fedbonsai.stages.pruning.readjust import MaskedMean, Readjustment, cut_back
from fedbonsai.training.optimizers import SGD
from tests.methods.rounds import MODEL, dense, run, same

STEPS = SGD(lr=0.1, momentum=0.5, batch=8, epochs=2)
FORMS = {name: MODEL.weights[name] for name in prunable(MODEL)}
OFTEN = FedDST(optimizer=STEPS, density=0.2, readjustment=Readjustment(2, 6, 0.4), batch=8)


def counts(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def test_it_starts_from_the_largest_weights_by_erdos_renyi_kernel():
    state = run(OFTEN, rounds=0)[0][0]
    total = int(0.2 * tree.size(FORMS))
    assert counts(state.held.masks) == exactly(erk(FORMS, total / tree.size(FORMS)), FORMS, total)
    for name, mask in state.held.masks.items():
        magnitude = MODEL.weights[name].abs()
        if not mask.all():
            assert float(magnitude[mask].min()) >= float(magnitude[~mask].max())
        assert not state.model.weights[name][~mask].any()


@pytest.mark.slow
def test_counts_never_change_and_only_readjusting_rounds_move_masks():
    states, fleet = run(OFTEN, rounds=8)
    assert all(counts(state.held.masks) == counts(states[0].held.masks) for state in states)
    moved = [t for t in range(8) if not same(states[t].held.masks, states[t + 1].held.masks)]
    assert moved == [2, 4]
    assert [states[t + 1].traded > 0 for t in range(8)] == [t in (2, 4) for t in range(8)]
    again = [t for t, _, request in fleet.sent if request.sent.masks is not None]
    assert again == [0, 0, 0, 3, 3, 3, 5, 5, 5]


@pytest.mark.slow
def test_no_coordinate_off_the_mask_is_nonzero_and_clients_keep_the_counts():
    states, fleet = run(OFTEN, rounds=8)
    for t, _, value in fleet.heard:
        masks, update = states[t].held.masks, value
        if isinstance(value, Readjusted):
            masks, update = value.masks, value.update
            assert counts(masks) == counts(states[t].held.masks)
        weights = dense(update, MODEL.weights, masks)
        assert not any(bool(weights[name][~mask].any()) for name, mask in masks.items())
    for state in states:
        assert not any(bool(state.model.weights[name][~mask].any()) for name, mask in state.held.masks.items())


def test_the_server_averages_over_keepers_and_cuts_back():
    states, fleet = run(OFTEN, rounds=3)
    before, mean = states[2], MaskedMean()
    for t, _, value in fleet.heard:
        if t == 2:
            mean.add(dense(value.update, MODEL.weights, value.masks), value.masks, value.update.examples)
    weights, masks = cut_back(mean.result(before.model.weights), before.held.masks)
    assert same(states[3].model.weights, weights)
    assert same(states[3].held.masks, masks)
    assert states[3].loss == pytest.approx(
        sum(v.update.examples * v.update.loss for t, _, v in fleet.heard if t == 2) / mean.weight
    )


def test_a_client_trades_by_its_own_gradient_and_trains_on():
    _, fleet = run(OFTEN, rounds=3)
    request = next(request for t, id, request in fleet.sent if t == 2 and id == "a")
    answer = next(value for t, id, value in fleet.heard if t == 2 and id == "a")
    assert request.fraction == pytest.approx(0.2 * (1 + torch.cos(torch.tensor(torch.pi * 2 / 6)).item()))
    steps = 2 * -(-20 // 8)  # two epochs in all, one before and one after
    assert answer.update.steps == steps
    ordinary = next(value for t, id, value in fleet.heard if t == 1 and id == "a")
    assert ordinary.steps == steps


def test_without_readjustment_it_is_a_static_mask_bit_for_bit():
    ours = run(replace(OFTEN, readjustment=Readjustment(100, 100, 0.4)), rounds=2)[0]
    static = StaticMask(optimizer=STEPS, density=0.2, criterion=Magnitude(), distribution="erk")
    assert same(ours[-1].model.weights, run(static, rounds=2)[0][-1].model.weights)


@pytest.mark.slow
def test_the_gradient_leaves_the_statistics_of_normalisation_alone(monkeypatch):
    plain = run(OFTEN, rounds=3)[1].heard[-1][2]
    real = training.gradient

    def twice(*args, **more):
        real(*args, **more)
        return real(*args, **more)

    monkeypatch.setattr(training, "gradient", twice)
    again = run(OFTEN, rounds=3)[1].heard[-1][2]
    assert again.update.result.payload == plain.update.result.payload


def test_answers_that_are_damaged_or_keep_too_much_are_dropped():
    def spoil(answer, t):
        value = answer.value
        if t != 2 or answer.device.id == "c":
            return answer
        if answer.device.id == "a":
            more = {name: torch.ones_like(mask) for name, mask in value.masks.items()}
            return replace(answer, value=replace(value, masks=more))
        packed = replace(value.update.result, payload=value.update.result.payload[:-2])
        return replace(answer, value=replace(value, update=replace(value.update, result=packed)))

    states, _ = run(OFTEN, rounds=3, change=spoil)
    assert states[3].dropped == 2
    assert counts(states[3].held.masks) == counts(states[0].held.masks)


def test_devices_that_lost_the_mask_before_a_readjusting_round_get_it_again():
    states, fleet = run(OFTEN, rounds=4, forget=2)
    assert same(states[3].model.weights, states[2].model.weights)
    assert [request.sent.masks is not None for t, _, request in fleet.sent if t == 3] == [True] * 3


def test_settings_without_meaning_are_refused():
    for settings in (
        {"optimizer": SGD()},
        {"optimizer": SGD(epochs=2, steps=5)},
        {"after": 0},
        {"density": 0.0},
        {"batch": 1},
    ):
        with pytest.raises(ValueError, match=r"readjusting round|expected a share"):
            FedDST(**settings)
