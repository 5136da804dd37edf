"""Training of what weights are made from: tied ones too, and what the books say of the bytes that it takes."""

import torch
from tests.methods.hand import SINGLE, SINGLES
from torch import nn

from fedbonsai import work
from fedbonsai.arch import Arch, network
from fedbonsai.model import Model
from fedbonsai.training.optimizers import SGD
from fedbonsai.training.through import train_through

ALL, STEP = 4 * 43, SGD(lr=0.1, momentum=0.5)  # bytes of all weights


def held(**how):
    with work.collecting() as done:
        train_through(SINGLE, SINGLES[0], STEP, **how)
    return done[0].held


def test_what_is_made_of_weights_is_in_the_books():
    """By hand: exp keeps its result, which is the weight; a sum keeps nothing, and is new."""
    plain = held()
    assert held(use=lambda w: w) == plain
    assert held(use=lambda w: {name: value + 1 for name, value in w.items()}) == plain + ALL
    assert held(use=lambda w: {name: value.exp() for name, value in w.items()}) == plain + ALL
    assert held(use=lambda w: {name: value.exp().sin() for name, value in w.items()}) == plain + 2 * ALL


def test_scores_that_are_trained_in_place_of_weights_are_in_the_books():
    """Frozen weights are the network's own; scores, what they keep or not, and the product are beside them."""
    scores = {name: torch.zeros_like(value) for name, value in SINGLE.weights.items()}
    found = held(use=lambda s: {n: v.sigmoid() * SINGLE.weights[n] for n, v in s.items()}, trained=scores)
    assert found == held() + 3 * ALL


@network("test-through-tied")
def tied():
    """A layer that is there twice, and another one with its weight."""
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    two.weight = one.weight
    return nn.Sequential(nn.Flatten(), one, nn.Tanh(), one, nn.Tanh(), two, nn.Tanh(), nn.Linear(4, 3))


def test_tied_weights_and_layers_that_are_there_twice_are_replaced_everywhere_and_come_back():
    """Halves that count twice move by a quarter of the rate as whole weights do."""
    model, me, sgd = Model.init(Arch("test-through-tied"), 3), SINGLES[0], SGD(lr=0.1, batch=4, epochs=3)
    halves, slow = model.replace({name: value / 2 for name, value in model.weights.items()}), sgd.but(lr=sgd.lr / 4)
    wanted = train_through(model, me, sgd).weights
    for _ in range(2):
        found = train_through(halves, me, slow, lambda w: {name: 2 * value for name, value in w.items()}).weights
        for name, value in wanted.items():
            torch.testing.assert_close(2 * found[name], value)
