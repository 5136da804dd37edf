"""Training of what weights are made from: what the books say of the bytes that it takes."""

import torch
from tests.methods.hand import SINGLE, SINGLES

from fedbonsai import work
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
