"""Losses of methods' own: what several clients learn by them together is what each learns alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from tests.training.test_stacked import NETS, apart, model, people

from fedbonsai import training
from fedbonsai.arch import keeping
from fedbonsai.core import Samples
from fedbonsai.fleets import crew
from fedbonsai.fleets.crew import side_by_side
from fedbonsai.methods.fedgkt.method import guided, taught
from fedbonsai.methods.moon import method as moon
from fedbonsai.stages.width import submodel
from fedbonsai.training import SGD, OwnLoss, train
from fedbonsai.training.stacked.fit import fit_together
from fedbonsai.training.stacked.orders import Order
from fedbonsai.training.stacked.stackable import refusal

SGD_ = SGD(lr=0.05, momentum=0.9, batch=8)


def others(begun, i):
    """Weights that the network had another time."""
    random = torch.Generator().manual_seed(i)
    return {n: w + 0.1 * torch.rand(w.shape, generator=random) for n, w in begun.weights.items()}


def by_moon(begun, clients):
    request = moon.Train(begun, SGD_, 5.0, 0.5)
    return [(c, moon.objective(request, others(begun, i), "cpu")) for i, c in enumerate(clients)]


def by_fedgkt(begun, clients):
    random = torch.Generator().manual_seed(0)
    logits = [torch.randn(len(c.train), 5, generator=random, dtype=torch.float64) for c in clients]
    told = [taught(c.train.y, teacher) for c, teacher in zip(clients, logits, strict=True)]
    return [(replace(c, train=Samples(c.train.x, y)), guided(0.7, 2.0)) for c, y in zip(clients, told, strict=True)]


def by_width(begun, clients):
    request = submodel.Train(begun, SGD_, 0.5, 5)
    return [(c, submodel.loss_of(request, [i % 5, (i + 1) % 5], "cpu")) for i, c in enumerate(clients)]


LOSSES = {"moon": by_moon, "fedgkt": by_fedgkt, "width": by_width}


@pytest.fixture(autouse=True)
def five(monkeypatch):
    """Networks of five classes."""
    for name in ("mlp", "cnn-bn"):
        arch, shape = NETS[name]
        monkeypatch.setitem(NETS, name, (replace(arch, options={**arch.options, "classes": 5}), shape))


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "mlp")) for n in ("mlp", "cnn-bn", "cnn1d, group", "gru")]
)
def test_each_learns_what_it_learns_alone(name, kind):
    arch, shape = NETS[name]
    begun = model(arch)
    given = LOSSES[kind](begun, people(shape, 5, (24, 17, 9, 24)))
    with keeping():
        alone = [train(begun, c, SGD_, loss=loss) for c, loss in given]
        orders = [Order(begun, c, SGD_, loss=loss) for c, loss in given]
        assert len({order.kind for order in orders}) == 1
        assert not refusal(orders[0])
        ended = fit_together(orders)
        plain = [
            train(begun, replace(c, train=Samples(c.train.x, c.train.x.new_zeros(len(c.train)).long())), SGD_)
            for c, _ in given
        ]
    assert apart(ended, alone) < 1e-9
    assert [e.loss / e.seen for e in ended] == pytest.approx([a.loss for a in alone], rel=1e-5)
    assert apart(plain, alone) > 1e-3, "the loss matters"


def test_losses_that_differ_in_more_than_what_they_hold_are_apart():
    begun = model(NETS["mlp"][0])
    (client,) = people((1, 8, 8), 5, (9,))
    request = moon.Train(begun, SGD_, 5.0, 0.5)
    losses = [
        None,
        *(moon.objective(replace(request, mu=mu), begun.weights, "cpu") for mu in (5.0, 1.0)),
        *(submodel.loss_of(submodel.Train(begun, SGD_, ratio, 5), [1], "cpu") for ratio in (1.0, 0.5)),
        submodel.loss_of(submodel.Train(begun, SGD_, 1.0, 0), [], "cpu"),
    ]
    assert len({Order(begun, client, SGD_, loss=loss).kind for loss in losses}) == len(losses)


def test_a_loss_that_looks_at_values_is_learned_one_after_another():
    def value(made, seen, y, held):
        return made[0].square().mean() * (2 if float(y[0]) else 1)

    begun, loss = model(NETS["mlp"][0]), OwnLoss("looks", training.outputs, value)
    clients = people((1, 8, 8), 5, (9, 9))
    with keeping():
        assert "torch.func refuses it" in refusal(Order(begun, clients[0], SGD_, loss=loss))
        ended = [each.get() for each in side_by_side([partial(train, begun, c, SGD_, loss=loss) for c in clients])]
        alone = [train(begun, c, SGD_, loss=loss) for c in clients]
    assert apart(ended, alone) == 0


def test_tasks_side_by_side_hand_over_their_losses(monkeypatch):
    begun = model(NETS["mlp"][0])
    given = by_moon(begun, people((1, 8, 8), 5, (9, 9, 8)))
    seen = []
    monkeypatch.setattr(crew, "_stacked", lambda orders: seen.append(len(orders)))
    with keeping():
        side_by_side([partial(train, begun, c, SGD_, loss=loss) for c, loss in given])
    assert seen == [3]
