"""LotteryFL: the rule with numbers, personal masks on both ends, and the average over keepers."""

from dataclasses import replace

import pytest
import torch

from fedbonsai import training
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.lotteryfl.method import LotteryFL, Rule, smaller
from fedbonsai.stages.pruning.masks import density, masked, prunable
from fedbonsai.stages.pruning.readjust import MaskedMean
from fedbonsai.training.optimizers import SGD
from tests.methods.rounds import MODEL, PEOPLE, dense, run, same

STEPS = SGD(lr=0.1, momentum=0.5, batch=8)
ALWAYS = LotteryFL(optimizer=STEPS, rule=Rule(threshold=0.0, target=0.1))
NAMES = prunable(MODEL)


def kept(masks):
    return [int(mask.sum()) for mask in masks.values()]


def test_a_fifth_of_each_layer_goes_by_magnitude():
    weights = {"w": torch.tensor([0.5, -0.1, 0.4, 0.0, -0.2, 0.3]), "v": torch.tensor([3.0, -2.0, 1.0])}
    masks = {"w": torch.tensor([True, True, True, False, True, True]), "v": torch.ones(3, dtype=torch.bool)}
    once = smaller(weights, masks, 0.2)
    assert once["w"].tolist() == [True, False, True, False, True, True]  # floor(0.2 * 5) = 1: the 0.1
    assert once["v"].tolist() == [True, True, False]  # floor(0.6) = 0, and one goes all the same
    for _ in range(9):
        once = smaller(weights, once, 0.2)
    assert kept(once) == [1, 1]  # no layer is emptied


@pytest.mark.slow
def test_the_rule_with_worked_numbers():
    # 0.8^10 = 0.107 is above a target of 0.1, so an eleventh pruning comes and leaves 0.086; then it stops
    states, _ = run(ALWAYS, rounds=16, people=PEOPLE[:1])
    densities = [density(state.devices["a"].masks) for state in states]
    reached = [accuracy > 0 for accuracy in (state.accuracy for state in states[1:])]
    prunings = 0
    for t, good in enumerate(reached):
        prunings += good and densities[t] > 0.1
        assert densities[t + 1] == pytest.approx(0.8**prunings, abs=2e-3)
    strict = LotteryFL(optimizer=STEPS, rule=Rule(threshold=1.0, target=0.1))
    assert kept(run(strict)[0][-1].devices["a"].masks) == [MODEL.weights[name].numel() for name in NAMES]


def test_without_pruning_it_is_fedavg():
    ours = run(LotteryFL(optimizer=STEPS, rule=Rule(threshold=1.0)))[0][-1].model.weights
    theirs = run(Averaging(optimizer=STEPS))[0][-1].model.weights
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)  # summed in another precision


def test_a_client_judges_prunes_rewinds_and_trains():
    states, fleet = run(ALWAYS, rounds=3)
    for t, id, value in fleet.heard:
        old = states[t].devices[id].masks
        shown = states[t].model.replace(masked(states[t].model.weights, old))
        person = next(person for person in PEOPLE if person.id == id)
        accuracy = training.evaluate(shown, person.valid).accuracy
        assert value.accuracy == accuracy
        assert (value.masks is not None) == (accuracy > 0)
        if value.masks is not None:
            assert same(value.masks, smaller(shown.weights, old, 0.2))
            still = training.train(
                MODEL.replace(masked(MODEL.weights, value.masks)),
                replace(person, seed=seed_in(fleet, t, id)),
                STEPS,
                mask=value.masks,
            )
            upload = dense(value.update, MODEL.weights, value.masks)
            assert same(upload, {name: still.weights[name] for name in upload})


def seed_in(fleet, t, id):
    from fedbonsai.tree import seed_of

    return seed_of(0, id, t, 0)


@pytest.mark.slow
def test_no_pruned_coordinate_of_any_upload_is_nonzero_and_others_keep_theirs():
    states, fleet = run(ALWAYS, rounds=5)
    for t in range(5):
        mean = MaskedMean()
        for at, id, value in fleet.heard:
            if at != t:
                continue
            masks = states[t + 1].devices[id].masks
            assert masks.keys() == states[t].devices[id].masks.keys()
            assert not any(bool((mask & ~states[t].devices[id].masks[name]).any()) for name, mask in masks.items())
            weights = dense(value.update, MODEL.weights, masks)
            assert not any(bool(weights[name][~mask].any()) for name, mask in masks.items())
            mean.add(weights, masks, value.update.examples)
        assert same(states[t + 1].model.weights, mean.result(states[t].model.weights))


def test_masks_come_with_the_first_message_only_and_initial_weights_to_those_who_come_late():
    method = replace(ALWAYS, cohort=2)
    states, fleet = run(method, rounds=5)
    met: set[str] = set()
    for t, id, request in fleet.sent:
        assert request.new == (id not in met) == (request.sent.masks is not None)
        assert (request.initial is not None) == (request.new and t > 0)
        met.add(id)
    assert len(met) == 3
    assert states[1].moved


def test_a_reply_that_is_lost_leaves_both_ends_with_the_old_mask():
    states, fleet = run(
        ALWAYS, rounds=4, change=lambda answer, t: None if (t, answer.device.id) == (1, "b") else answer
    )
    assert same(states[2].devices["b"].masks, states[1].devices["b"].masks)
    request = next(request for t, id, request in fleet.sent if (t, id) == (2, "b"))
    assert request.new  # it was silent, so it gets all again
    answers = [value for t, id, value in fleet.heard if id == "b" and t in (2, 3)]
    assert len(answers) == 2
    assert states[4].dropped == 0


def test_devices_that_lost_everything_get_it_again():
    states, fleet = run(ALWAYS, rounds=4, forget=2)
    assert same(states[3].model.weights, states[2].model.weights)
    assert all(request.initial is not None for t, _, request in fleet.sent if t == 3)
    assert kept(states[4].devices["a"].masks) <= kept(states[2].devices["a"].masks)


def test_answers_with_masks_that_grow_are_dropped():
    def spoil(answer, t):
        masks = {name: torch.ones_like(MODEL.weights[name], dtype=torch.bool) for name in NAMES}
        return replace(answer, value=replace(answer.value, masks=masks)) if answer.device.id == "a" else answer

    states, _ = run(ALWAYS, rounds=2, change=spoil)
    assert [state.dropped for state in states] == [0, 1, 1]


def test_figures_are_of_the_tickets():
    states, _ = run(ALWAYS, rounds=3)
    figures = ALWAYS.metrics(states[-1])
    masks = [held.masks for held in states[-1].devices.values()]
    assert figures["density"] == pytest.approx(sum(map(density, masks)) / 3)
    assert figures["kept"] == max(sum(kept(each)) for each in masks)


def test_what_is_no_share_is_refused():
    for values in ((1.1, 0.1, 0.2), (0.5, -0.1, 0.2), (0.5, 0.1, 0.0), (0.5, 0.1, 1.0)):
        with pytest.raises(ValueError, match="expected shares"):
            Rule(*values)
