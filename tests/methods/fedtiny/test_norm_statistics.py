"""Statistics of batch normalisation: the merge's numbers (specs/fedtiny §8), and what PyTorch itself measures."""

import pytest
import torch

from fedbonsai.methods.fedtiny.selection import candidates, measure
from fedbonsai.model import Model
from fedbonsai.stages.norm_statistics import measured, merged
from tests.methods.fedtiny.pools import CNN, drawn, person, request


def test_the_numbers_of_the_merge():
    names = ("n.running_mean", "n.running_var")
    parts = [
        (30, dict(zip(names, (torch.tensor([0.2, 1.0]), torch.tensor([1.0, 0.5])), strict=True))),
        (10, dict(zip(names, (torch.tensor([0.6, 2.0]), torch.tensor([2.0, 1.5])), strict=True))),
    ]
    for how, variance in (("averaged", [1.25, 0.75]), ("pooled", [1.28, 0.9375])):
        found = merged(parts, how)
        assert found["n.running_mean"].tolist() == pytest.approx([0.3, 1.25])
        assert found["n.running_var"].tolist() == pytest.approx(variance)
        again = merged(parts[::-1], how)  # in any order
        assert all(torch.equal(found[name], again[name]) for name in names)


def test_one_device_has_the_centralised_statistics():
    model, me = Model.init(CNN, 0), person(count=40)
    sent = request(model, drawn(model))
    answer, _ = measure.run(sent, me, {})
    for found, (candidate, _) in zip(answer.statistics, candidates(sent), strict=True):
        net = candidate.build().train()
        for layer in net.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None
                layer.reset_running_stats()
        net(me.train.x)
        for name, value in found.items():
            torch.testing.assert_close(value, net.state_dict()[name], rtol=1e-5, atol=1e-5)


def test_batches_count_by_their_samples_and_a_single_one_joins():
    model, me = Model.init(CNN, 0), person(count=33)
    found = measured(model, me.train, 16)
    first = (me.train[:16], me.train[16:])
    mean = sum(len(part) * model.build().train()[0][0](part.x).mean((0, 2, 3)) for part in first) / 33
    torch.testing.assert_close(found["stem.norm.running_mean"], mean.detach(), rtol=1e-4, atol=1e-6)
    plain = torch.nn.functional.conv2d(me.train.x, model.weights["stem.conv.weight"], padding=1)
    # the first layer sees the images themselves: batches pooled are the whole, but for Bessel's correction
    torch.testing.assert_close(found["stem.norm.running_var"], plain.var((0, 2, 3)), rtol=1e-3, atol=1e-5)


def test_the_exponential_average_starts_from_the_models_own_statistics_and_goes_batch_by_batch():
    model, me = Model.init(CNN, 0), person(count=30)
    found = measured(model, me.train, 10, momentum=0.25)
    plain = torch.nn.functional.conv2d(me.train.x, model.weights["stem.conv.weight"], padding=1)
    mean, var = torch.zeros(16), torch.ones(16)
    for part in plain.split(10):
        mean, var = 0.75 * mean + 0.25 * part.mean((0, 2, 3)), 0.75 * var + 0.25 * part.var((0, 2, 3))
    torch.testing.assert_close(found["stem.norm.running_mean"], mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["stem.norm.running_var"], var, rtol=1e-4, atol=1e-6)
