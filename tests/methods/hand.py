"""A network of two layers with its gradient by hand, three unequal clients, and rounds that are looked at one by one.

What the simulations of methods share: they are numpy alone, from the papers or `docs/specs`, and take
nothing from the library but initial weights, samples and what was drawn.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from fedbonsai.arch import Arch, network
from fedbonsai.core import Client, Samples, Scope, scope
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.model import Model
from fedbonsai.stages.personal import Evaluated
from fedbonsai.wire import decode, encode
from tests.methods.rounds import Watch

INPUTS, HIDDEN, CLASSES = 4, 5, 3
BODY, BODY_BIAS, HEAD, HEAD_BIAS = NAMES = ("1.weight", "1.bias", "3.weight", "3.bias")


@network("test-by-hand")
def by_hand():
    """38 weights: tanh of five sums of four pixels, three scores."""
    return nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))


ARCH = Arch("test-by-hand")
_draw = np.random.default_rng(11)
_drawn = {
    BODY: _draw.normal(0, 0.6, (HIDDEN, INPUTS)),
    BODY_BIAS: _draw.normal(0, 0.2, HIDDEN),
    HEAD: _draw.normal(0, 0.6, (CLASSES, HIDDEN)),
    HEAD_BIAS: _draw.normal(0, 0.2, CLASSES),
}
START = {name: value.astype(np.float32).astype(float) for name, value in _drawn.items()}


def tensors(weights):
    """Arrays as tensors of double precision."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in weights.items()}


def arrays(weights):
    """Tensors as arrays."""
    return {name: value.numpy().copy() for name, value in weights.items()}


MODEL = Model(ARCH, tensors(START))
SINGLE = Model(ARCH, {name: value.float() for name, value in MODEL.weights.items()})  # where codes are of fp32


def samples(seed, count, classes):
    """Clouds around a place for each class; ``classes`` are the shares of the labels."""
    draw = np.random.default_rng(seed)
    y = draw.choice(CLASSES, count, p=classes)
    x = draw.normal(0, 0.7, (count, INPUTS)) + np.array([[1, 0, 0, -1], [0, 1, -1, 0], [-1, 1, 1, 0]])[y]
    return x, y


def client(id, seed, count, classes, valid):
    parts = (samples(seed, count, classes), samples(seed + 100, valid, classes))
    made = [Samples(torch.tensor(x).reshape(-1, 1, 2, 2), torch.tensor(y)) for x, y in parts]
    return Client(id, 7, *made)


# as many samples, labels and judges as no other
PEOPLE = (
    client("a", 1, 5, [0.8, 0.1, 0.1], 3),
    client("b", 2, 9, [0.1, 0.8, 0.1], 8),
    client("c", 3, 17, [0.2, 0.2, 0.6], 5),
)
DATA = {p.id: (p.train.x.reshape(-1, INPUTS).numpy(), p.train.y.numpy()) for p in PEOPLE}
JUDGES = {p.id: (p.valid.x.reshape(-1, INPUTS).numpy(), p.valid.y.numpy()) for p in PEOPLE}
SINGLES = tuple(
    replace(p, train=Samples(p.train.x.float(), p.train.y), valid=Samples(p.valid.x.float(), p.valid.y)) for p in PEOPLE
)
WHOLE = 64  # a batch that holds all samples of any client, so that their order is of no matter


def scores(weights, x):
    hidden = np.tanh(x @ weights[BODY].T + weights[BODY_BIAS])
    return hidden, hidden @ weights[HEAD].T + weights[HEAD_BIAS]


def loss_and_gradient(weights, x, y):
    """Mean cross-entropy, and its gradient by name."""
    hidden, z = scores(weights, x)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    right = np.eye(CLASSES)[y]
    by_z = (p - right) / len(y)
    by_sum = (by_z @ weights[HEAD]) * (1 - hidden**2)
    gradient = {BODY: by_sum.T @ x, BODY_BIAS: by_sum.sum(0), HEAD: by_z.T @ hidden, HEAD_BIAS: by_z.sum(0)}
    return -np.log(p[right.astype(bool)]).mean(), gradient


def judged(weights, x, y):
    """Accuracy and mean cross-entropy."""
    return (scores(weights, x)[1].argmax(1) == y).mean(), loss_and_gradient(weights, x, y)[0]


def descended(weights, x, y, steps, lr, momentum=0.0, decay=0.0, proximal=0.0, learn=NAMES, masks=None):
    """Heavy-ball steps on all samples at once, and the loss before each."""
    masks = masks or {}
    w = {name: value * masks.get(name, 1) for name, value in weights.items()}
    began, speed, losses = dict(w), {name: np.zeros_like(w[name]) for name in learn}, []
    for _ in range(steps):
        loss, gradient = loss_and_gradient(w, x, y)
        losses.append(loss)
        for name in learn:
            pull = gradient[name] + proximal * (w[name] - began[name]) + decay * w[name]
            speed[name] = momentum * speed[name] + pull
            w[name] = (w[name] - lr * speed[name]) * masks.get(name, 1)
    return w, np.array(losses)


def mean(values, shares):
    """Weighted mean of trees."""
    total = sum(shares)
    return {name: sum(s * v[name] for v, s in zip(values, shares, strict=True)) / total for name in values[0]}


def plus(left, right, scale=1.0):
    return {name: value + scale * right[name] for name, value in left.items()}


def minus(left, right):
    return {name: value - right[name] for name, value in left.items()}


def norm(values):
    return np.sqrt(sum((value**2).sum() for value in values.values()))


def close(found, want, tolerance=1e-9):
    """Whether tensors have the values of arrays, of the same names."""
    assert list(found) == [name for name in found if name in want]
    assert len(found) == len(want)
    for name, value in found.items():
        np.testing.assert_allclose(value.numpy(), want[name], rtol=tolerance, atol=tolerance, err_msg=name)


class Played:
    """A run round by round: ``states`` (the first is of begin), and what each client keeps after each round."""

    def __init__(self, method, people=PEOPLE, model=MODEL, rounds=3, lost=(), forged=None, fleet=None, seed=7, luck=0):
        """``lost`` are (round, id) of replies that get lost; ``forged`` sets memories before a round, by round;
        ``seed`` is the method's, ``luck`` the fleet's."""
        server = replace(people[0], seed=seed)

        def arrived(answer, t):
            gone = (t, answer.device.id) in lost and not isinstance(answer.value, Evaluated)
            return None if gone else answer

        self.fleet = Watch(fleet or LocalFleet(people), arrived)
        with scope(self.fleet, Scope("r", luck, -1, 0)) as open_:
            self.states = [method.begin(model, open_, server)]
            open_.commit()
        self.memories = [self.held()]
        for t in range(rounds):
            if forged and t in forged:
                self.fleet.restore(forged[t](self.memories))
            with scope(self.fleet, Scope("r", luck, t, 0)) as open_:
                self.states.append(method.round(decode(encode(self.states[-1])), t, open_))
                open_.commit()
            self.memories.append(self.held())

    def held(self):
        inner = self.fleet.inner
        while not isinstance(inner, LocalFleet):
            inner = inner.inner
        return dict(inner._slots._accepted)

    def sent(self, t, kind):
        """Requests of a kind in a round, by device."""
        return {id: request for at, id, request in self.fleet.sent if at == t and isinstance(request, kind)}
