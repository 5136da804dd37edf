"""Personal parts: which weights, training of a part, and the judging of personal models, with other methods too."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Scope, scope
from fedbonsai.errors import ConfigError, Forgotten
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.model import Model
from fedbonsai.stages.personal import (
    Evaluate,
    evaluate,
    evaluated,
    merged,
    owned,
    personal_names,
    split,
    tenth,
    trained_part,
)
from fedbonsai.stages.pruning.derived_masks import Derived, Rule, derived
from fedbonsai.stages.pruning.masks import masked
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import seed_of
from tests.methods.rounds import CNN, MODEL, PEOPLE, run, same

HEAD = ("classifier.weight", "classifier.bias")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn-bn", "lenet5", "mlp", "cnn-mnist", "resnet18"])
def test_the_head_is_the_last_linear_layer_of_every_network(name):
    model = Model.init(Arch(name, {"size": 28} if name != "resnet18" else {}), 0)
    assert personal_names(model, ["head"]) == HEAD
    body = personal_names(model, ["body"])
    assert body + HEAD == tuple(model.weights)
    assert personal_names(model, ["head", "body"]) == tuple(model.weights)
    assert personal_names(model, []) == ()


def test_cnn_mnist_has_the_specifications_counts():  # specs/wireless §5
    model = Model.init(Arch("cnn-mnist"), 0)
    shared, own = split(model.weights, personal_names(model, ["head"]))
    counts = {
        layer: sum(v.numel() for n, v in model.weights.items() if n.startswith(layer))
        for layer in ("stem.conv.", "features.conv.", "features.fc.", "classifier.")
    }
    assert list(counts.values()) == [832, 51_264, 1_606_144, 5_130]
    assert sum(v.numel() for v in own.values()) == 5_130
    assert sum(v.numel() for v in shared.values()) == 1_663_370 - 5_130


def test_patterns_take_layers_by_name():
    assert personal_names(MODEL, ["features.norm*"]) == tuple(n for n in MODEL.weights if n.startswith("features.norm"))
    assert personal_names(MODEL, ["*.bias", "head"])[-2:] == HEAD
    with pytest.raises(ConfigError, match="adapter"):
        personal_names(MODEL, ["*adapter*"])


def test_split_and_merge_are_inverse():
    shared, own = split(MODEL.weights, HEAD)
    whole = merged(MODEL.arch, shared, own)
    assert same(dict(whole.weights), dict(MODEL.weights))
    assert list(whole.weights) == list(MODEL.weights)
    for wrong in ({}, {**own, "stem.conv.weight": shared["stem.conv.weight"]}):
        with pytest.raises(Forgotten):
            merged(MODEL.arch, shared, wrong)


def test_a_new_device_begins_with_what_came_and_goes_on_with_its_own():
    shared, own = split(MODEL.weights, HEAD)
    assert same(owned({}, MODEL.arch, shared, own), own)
    mine = {name: value + 1 for name, value in own.items()}
    assert same(owned({"personal": mine}, MODEL.arch, shared, own), mine)
    assert owned({}, MODEL.arch, MODEL.weights, None) == {}
    with pytest.raises(Forgotten):
        owned({}, MODEL.arch, shared, None)


@pytest.mark.parametrize("names", [HEAD, tuple(n for n in MODEL.weights if n not in HEAD)])
@pytest.mark.parametrize("sgd", [SGD(lr=0.1, momentum=0.9, batch=8, epochs=2), SGD(lr=0.1, batch=8, clip=0.5)])
def test_a_part_learns_and_the_rest_stays(names, sgd):
    found = trained_part(MODEL, PEOPLE[0], sgd, names).weights
    learned = [n for n in MODEL.weights if not torch.equal(found[n], MODEL.weights[n])]
    parameters = dict(MODEL.build().named_parameters())
    assert {n for n in learned if n in parameters} == set(names) & set(parameters)


def test_the_head_alone_by_hand():
    """One step of the head is the step of a linear layer on fixed features."""
    me, sgd = PEOPLE[0], SGD(lr=0.1, batch=64)
    net = MODEL.build().train()
    features = net.get_submodule("features")(net.get_submodule("stem")(me.train.x)).detach()
    weight, bias = (MODEL.weights[n].clone().requires_grad_() for n in HEAD)
    torch.nn.functional.cross_entropy(features @ weight.T + bias, me.train.y).backward()
    found = trained_part(MODEL, me, sgd, HEAD).weights
    assert torch.allclose(found[HEAD[0]], MODEL.weights[HEAD[0]] - 0.1 * weight.grad, atol=1e-6)
    assert torch.allclose(found[HEAD[1]], MODEL.weights[HEAD[1]] - 0.1 * bias.grad, atol=1e-6)


BODY = tuple(n for n in MODEL.weights if n not in HEAD)
MASKS = {n: MODEL.weights[n].abs() > 0.05 for n in BODY if "conv" in n}


@pytest.mark.parametrize(("names", "masks"), [(HEAD, None), (BODY, None), (BODY, MASKS)])
@pytest.mark.parametrize("sgd", [SGD(lr=0.1, batch=8), SGD(lr=0.1, momentum=0.9, batch=8, epochs=3)])
def test_a_part_learns_as_with_the_others_gradients_at_zero(names, masks, sgd):
    """Bit for bit, though no gradient of the rest is taken."""

    def still(gradients):
        for name in set(gradients) - set(names):
            gradients[name].zero_()

    ours = trained_part(MODEL, PEOPLE[0], sgd, names, masks)
    theirs = training.train(MODEL, PEOPLE[0], sgd, mask=masks, hook=still)
    assert same(ours.weights, theirs.weights)
    assert (ours.loss, ours.steps) == (theirs.loss, theirs.steps)


@pytest.mark.parametrize("sgd", [SGD(weight_decay=0.1, batch=64), SGD(proximal=0.1, batch=64, epochs=3)])
def test_decay_and_proximal_term_do_not_move_what_is_frozen(sgd):
    found = trained_part(MODEL, PEOPLE[0], sgd, HEAD).weights
    plain = trained_part(MODEL, PEOPLE[0], replace(sgd, weight_decay=0.0, proximal=0.0), HEAD).weights
    for name in dict(MODEL.build().named_parameters()):
        assert torch.equal(found[name], MODEL.weights[name]) == (name not in HEAD)
    assert not torch.equal(found[HEAD[0]], plain[HEAD[0]])
    if sgd.weight_decay:  # one step: lr times 0.1 w further
        assert torch.allclose(found[HEAD[0]], plain[HEAD[0]] - 0.1 * 0.1 * MODEL.weights[HEAD[0]], atol=1e-7)
    whole = trained_part(MODEL, PEOPLE[0], sgd, MODEL.weights).weights
    assert same(whole, training.train(MODEL, PEOPLE[0], sgd).weights)


def test_a_part_of_statistics_alone_follows_its_inputs():
    names = [name for name in MODEL.weights if "running" in name]
    found = trained_part(MODEL, PEOPLE[0], SGD(momentum=0.9, weight_decay=0.1, batch=8), names).weights
    assert {n for n in found if not torch.equal(found[n], MODEL.weights[n])} == set(names)


def test_any_method_can_have_its_model_judged_on_each_device():
    """FedAvg's model on each client's validation part, before and after local fine-tuning."""
    states, fleet = run(Averaging(optimizer=SGD(lr=0.1, batch=8)), rounds=2)
    model = states[-1].model
    with scope(fleet.inner, Scope("r", 0, 2, 0)) as open_:
        request = Evaluate(model.arch, model.weights, None, Rule(), Derived())
        found = evaluated(open_, dict.fromkeys(open_.devices, request))
        tuned = evaluated(open_, dict.fromkeys(open_.devices, replace(request, tune=SGD(lr=0.1, steps=10, batch=8))))
    scores = [training.evaluate(model, person.valid) for person in PEOPLE]
    assert found is not None
    assert found.devices == 3
    assert found.dense == pytest.approx(np.mean([score.accuracy for score in scores])) == found.masked
    assert found.dense_p10 == min(score.accuracy for score in scores)
    assert tuned is not None
    assert tuned.loss < found.loss


def test_a_model_that_is_judged_under_its_mask_is_tuned_under_it():
    with scope(LocalFleet(PEOPLE), Scope("r", 0, 0, 0)) as open_:
        tune, how = SGD(lr=0.1, steps=3, batch=8), Derived(0.9)
        answers = open_.ask(
            evaluate, dict.fromkeys(open_.devices, Evaluate(CNN, MODEL.weights, None, Rule(), how, tune))
        )
        found = {answer.device.id: answer.value for answer in answers}
    masks = derived(CNN, MODEL.weights, Rule(), how)
    for who in PEOPLE:
        me = replace(who, seed=seed_of(0, who.id, 0, 0))
        tuned = training.train(MODEL.replace(masked(MODEL.weights, masks)), me, tune, mask=masks)
        assert all(bool((tuned.weights[name][~mask] == 0).all()) for name, mask in masks.items())
        assert found[who.id].masked == training.evaluate(MODEL.replace(tuned.weights), who.valid).accuracy


def test_means_are_weighted_by_samples_and_devices_without_any_do_not_count():
    people = (PEOPLE[0], replace(PEOPLE[1], valid=PEOPLE[1].train), replace(PEOPLE[2], valid=PEOPLE[2].valid[:0]))
    fleet = LocalFleet(people)
    request = Evaluate(MODEL.arch, MODEL.weights, None, Rule(), Derived())
    with scope(fleet, Scope("r", 0, 0, 0)) as open_:
        found = evaluated(open_, dict.fromkeys(open_.devices, request))
        nobody = evaluated(open_, {open_.devices[2]: request})
    accuracy = [training.evaluate(MODEL, person.valid).accuracy for person in people[:2]]
    assert found is not None
    assert found.devices == 2
    assert nobody is None
    assert found.dense == pytest.approx((4 * accuracy[0] + 12 * accuracy[1]) / 16)


def test_the_tenth_percentile_is_a_device():
    assert tenth([0.3, 0.9, 0.5]) == 0.3
    assert tenth([i / 20 for i in range(20)]) == 0.05
    assert tenth([i / 100 for i in range(100)]) == 0.09
