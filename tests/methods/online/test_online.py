"""Online choice of the size: what moves k, what travels, and values that pruned weights keep."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fedbonsai import training
from fedbonsai.core import Samples
from fedbonsai.errors import Unanswered
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.online.method import Online, sized
from fedbonsai.methods.online.rounds import seconds_of
from fedbonsai.stages.pruning.masks import masked, prunable
from fedbonsai.stages.pruning.time_model import Profiled
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import seed_of
from tests.methods.rounds import MODEL, PEOPLE, dense, run, same

STEPS = SGD(lr=0.1, batch=8, steps=4)
SOON = Online(optimizer=STEPS, warmup=2, samples=3)
NAMES = prunable(MODEL)
SIZES = {name: MODEL.weights[name].numel() for name in NAMES}
N = sum(SIZES.values())


def kept(masks):
    return sum(int(mask.sum()) for mask in masks.values())


def test_before_it_moves_it_is_fedavg_bit_for_bit():
    ours, fleet = run(replace(SOON, warmup=9))
    assert same(SOON.model(ours[-1]).weights, run(Averaging(optimizer=STEPS))[0][-1].model.weights)
    assert all(len(value.y) == 0 for _, _, value in fleet.heard)


@pytest.mark.slow
def test_the_mask_has_k_weights_at_the_same_rate_in_each_layer():
    states, fleet = run(SOON, rounds=8)
    assert len({state.search.k for state in states}) > 1
    for state in states:
        assert kept(state.held.masks) == state.search.k
        for name, mask in state.held.masks.items():
            assert abs(int(mask.sum()) - state.search.k / N * SIZES[name]) <= len(NAMES)
        assert same(state.held.masks, sized(state.model.weights, NAMES, state.search.k)) or state.search.k == N
    for t, _, value in fleet.heard:
        masks = states[t].held.masks
        weights = dense(value.update, MODEL.weights, masks)
        assert not any(bool(weights[name][~mask].any()) for name, mask in masks.items())
        shown = SOON.model(states[t + 1]).weights
        assert not any(bool(shown[name][~mask].any()) for name, mask in states[t + 1].held.masks.items())


@pytest.mark.slow
def test_pruned_weights_keep_their_value_on_the_server_and_may_come_back():
    states, _ = run(SOON, rounds=8)
    for before, after in pairwise(states):
        for name, mask in before.held.masks.items():
            assert torch.equal(after.model.weights[name][~mask], before.model.weights[name][~mask])


def test_k_moves_by_the_losses_of_the_samples_that_came():
    states, fleet = run(SOON, rounds=4)
    for t in (2, 3):
        before, after = states[t], states[t + 1]
        parts = [value for at, _, value in fleet.heard if at == t]
        assert all(len(part.y) == 3 for part in parts)
        samples = Samples(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))
        full = after.model.weights
        smaller = sized(full, NAMES, before.search.probe)
        models = [masked(w, m) for w, m in ((before.model.weights, before.held.masks), (full, before.held.masks))]
        losses = [training.evaluate(MODEL.replace(w), samples).loss for w in (*models, masked(full, smaller))]
        costs = tuple(seconds_of(before.seconds, SIZES, k) for k in (before.search.k, before.search.probe))
        want = before.search.after(t, *losses, costs, seed_of(before.seed, "online", t, 0))
        assert after.search == want


@pytest.mark.slow
def test_modelled_seconds_are_of_the_mask():
    states, _ = run(SOON, rounds=5)
    for state in states:
        assert SOON.metrics(state)["modelled_seconds"] == pytest.approx(
            seconds_of(state.seconds, SIZES, state.search.k)
        )
        assert SOON.metrics(state)["kept"] == state.search.k


def test_seconds_may_be_those_of_a_devices_profile():
    time = Profiled("raspberry-pi-4")
    states, _ = run(replace(SOON, time=time), rounds=0)
    assert states[0].seconds == time.seconds(MODEL, NAMES, PEOPLE[0].train.size, STEPS)


@pytest.mark.slow
def test_answers_with_samples_that_cannot_be_are_dropped():
    def spoil(answer, t):
        value = answer.value
        wrong = {
            "a": lambda: replace(value, y=value.y + 10),
            "b": lambda: replace(value, x=value.x[:, :, :4]),
            "c": lambda: value,
        }
        return replace(answer, value=wrong[answer.device.id]()) if t == 2 else answer

    states, _ = run(SOON, rounds=3, change=spoil)
    assert states[3].dropped == 2
    with pytest.raises(Unanswered):
        run(
            SOON,
            rounds=1,
            change=lambda answer, t: replace(answer, value=replace(answer.value, x=answer.value.x[:, :0])),
        )


@pytest.mark.slow
def test_devices_that_lost_the_mask_get_it_again():
    states, fleet = run(SOON, rounds=4, forget=2)
    assert same(states[3].model.weights, states[2].model.weights)
    assert [request.sent.masks is not None for t, _, request in fleet.sent if t == 3] == [True] * 3


def test_settings_without_meaning_are_refused():
    for settings in ({"optimizer": SGD()}, {"warmup": -1}, {"samples": 0}, {"least": 0.0}):
        with pytest.raises(ValueError, match=r"set E|expected at least 0"):
            Online(**settings)
