import math

import pytest
import torch
import torch.nn.functional as F

from fedbonsai.arch import Arch, network
from fedbonsai.core import Client, Samples, Scope, scope
from fedbonsai.devices.clock import macs
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.moon.method import Moon, Train, contrast, objective, representation, train
from fedbonsai.model import Model
from fedbonsai.training.optimizers import SGD
from fedbonsai.work import collecting
from fedbonsai.zoo.parts import chain

MLP = Arch("mlp", {"widths": (5,), "size": 2, "classes": 3})


def person(id="a", count=12, seed=0):
    random = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 1, 2, 2, generator=random), torch.randint(0, 3, (count,), generator=random)
    return Client(id, 7, Samples(x, y), Samples(x[:0], y[:0]))


def run(method, people, rounds=2):
    fleet = LocalFleet(people)
    with scope(fleet, Scope("r", 0, -1, 0)) as open_:
        state = method.begin(Model.init(MLP, 1), open_, people[0])
        open_.commit()
    for t in range(rounds):
        with scope(fleet, Scope("r", 0, t, 0)) as open_:
            state = method.round(state, t, open_)
            open_.commit()
    return method.model(state).weights


@pytest.mark.parametrize(
    ("towards", "away", "temperature", "share"),
    [
        # the share of towards in the sum, by hand: e^(1/T) / (e^(1/T) + e^(0/T))
        ((1.0, 0.0), (0.0, 1.0), 0.5, math.exp(2) / (math.exp(2) + 1)),
        ((0.0, 3.0), (2.0, 0.0), 0.5, 1 / (1 + math.exp(2))),  # length does not count
        ((-1.0, 0.0), (1.0, 0.0), 1.0, math.exp(-1) / (math.exp(-1) + math.exp(1))),
        ((0.6, 0.8), (0.6, 0.8), 0.5, 0.5),
    ],
)
def test_the_contrastive_term_on_given_vectors(towards, away, temperature, share):
    found = contrast(torch.tensor([[1.0, 0.0]]), torch.tensor([towards]), torch.tensor([away]), temperature)
    assert float(found) == pytest.approx(-math.log(share), rel=1e-6)


def test_the_contrastive_term_is_a_mean_over_the_batch_and_never_overflows():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    towards, away = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2
    assert float(contrast(features, towards, away, 0.5)) == pytest.approx(by_hand, rel=1e-6)
    assert float(contrast(features, towards, away, 1e-4)) == pytest.approx(5e3)


def test_the_loss_is_cross_entropy_plus_mu_times_the_term():
    model, previous, me = Model.init(MLP, 1), Model.init(MLP, 2), person()
    net, x, y = Model.init(MLP, 3).build(), me.train.x, me.train.y
    found = objective(Train(model, SGD(), 5.0, 0.5), previous.weights, "cpu")(net, x, y)
    z, towards, away = (representation(module, x) for module in (net, model.build(), previous.build()))
    assert z.shape == (12, 5)
    assert torch.equal(net.get_submodule("classifier")(z), net(x))
    torch.testing.assert_close(found, F.cross_entropy(net(x), y) + 5 * contrast(z, towards, away, 0.5))


def test_leaving_the_term_out_has_the_gradient_of_the_global_model_as_the_previous_one():
    model, me = Model.init(MLP, 1), person()
    net = Model.init(MLP, 3).build()
    loss = objective(Train(model, SGD(), 5.0, 0.5), model.weights, "cpu")(net, me.train.x, me.train.y)
    plain = F.cross_entropy(net(me.train.x), me.train.y)
    for found, want in zip(
        torch.autograd.grad(loss, list(net.parameters())),
        torch.autograd.grad(plain, list(net.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)


def test_a_client_keeps_the_model_that_it_trained_last():
    request = Train(Model.init(MLP, 1), SGD(batch=5), 5.0, 0.5)
    first, memory = train.run(request, person(), {})
    second, after = train.run(request, person(), memory)
    for name, value in first.result.items():
        assert torch.equal(memory["previous"][name], value)
        assert torch.equal(after["previous"][name], second.result[name])
    assert second.loss > first.loss  # the term is there the second time


def test_without_the_term_it_is_fedavg_to_the_bit():
    people, sgd = [person("a"), person("b", 9, 1)], SGD(lr=0.2, batch=4, momentum=0.5)
    for mu, rounds in ((0.0, 2), (5.0, 1)):
        found, want = run(Moon(sgd, mu=mu), people, rounds), run(Averaging(sgd), people, rounds)
        assert all(torch.equal(found[name], want[name]) for name in want)
    found, want = run(Moon(sgd, mu=5.0), people, 2), run(Averaging(sgd), people, 2)
    assert not all(torch.equal(found[name], want[name]) for name in want)


def test_values_and_networks_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match="temperature"):
        Moon(temperature=0.0)
    with pytest.raises(ValueError, match="mu"):
        Moon(mu=-1.0)

    @network("moon-uncut")
    def uncut():
        return chain(flatten=torch.nn.Flatten(), fc=torch.nn.Linear(4, 3))

    with pytest.raises(ConfigError, match="stem, features and classifier"):
        Moon().begin(Model.init(Arch("moon-uncut"), 0), LocalFleet([person()]), person())


@pytest.mark.parametrize("sgd", [SGD(batch=5, epochs=2), SGD(batch=5, steps=4)])
def test_the_anchors_passes_are_reported(sgd):
    model = Model.init(MLP, 1)
    with collecting() as first:
        _, memory = train.run(Train(model, sgd, 5.0, 0.5), person(), {})
    assert [(each.forward, each.part) for each in first] == [(0, "")]
    with collecting() as second:
        train.run(Train(model, sgd, 5.0, 0.5), person(), memory)
    learnt, *anchors = second
    assert learnt == first[0]
    for each in anchors:
        assert (each.forward, each.backward, each.passes) == (2 * learnt.backward, 0, 2 * learnt.passes)
    # both anchors pass the 4 x 5 layer for every sample that is trained on, and not the classifier
    assert macs(anchors).done == 2 * learnt.backward * 4 * 5
