"""FIARSE by hand: the slope of the threshold, who holds what, whole rounds against numpy, and few bytes."""

import numpy as np
import pytest
import torch

from fedbonsai.arch import Arch
from fedbonsai.core import Scope, scope
from fedbonsai.devices.clock import macs
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Metered
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.fiarse.client import Above, held
from fedbonsai.methods.fiarse.method import FIARSE, part_of
from fedbonsai.model import Model
from fedbonsai.stages.width.capacity import Clients
from fedbonsai.training.optimizers import SGD
from tests.methods import rounds
from tests.methods.hand import BODY, DATA, HEAD, NAMES, SINGLE, SINGLES, START, WHOLE, Played, close, loss_and_gradient

SETTINGS = {"lr": 0.3, "momentum": 0.5}
STEPS = SGD(**SETTINGS, batch=WHOLE, epochs=4)
RATIOS = {"a": 1.0, "b": 0.5, "c": 0.1}  # 35, floor(17.5) = 17 and 3 of 35 weights in two matrices
COUNTS = {"a": 35, "b": 17, "c": 3}


def test_the_threshold_and_its_slope():
    """Of tau = 1: w = 3 has the slope 1 + 2 * 3 / 16, w = -1 has 1 + 2 / 4, w = 0.5 is off and stays."""
    weight = torch.tensor([3.0, -1.0, 0.5], requires_grad=True)
    shown = Above.apply(weight, 1.0)
    assert shown.tolist() == [3.0, -1.0, 0.0]
    (shown * torch.tensor([2.0, 1.0, 7.0])).sum().backward()
    assert weight.grad.tolist() == [2 * (1 + 6 / 16), 1.5, 0.0]


def test_the_largest_of_all_layers_together():
    weights = {"x": torch.tensor([[4.0, -1.0], [0.5, 2.0]]), "y": torch.tensor([3.0, -0.25, -5.0, 0.0])}
    for ratio, x, y in (
        (0.5, [[4.0, 0.0], [0.0, 2.0]], [3.0, 0.0, -5.0, 0.0]),
        (0.3, [[4.0, 0.0], [0.0, 0.0]], [0.0, 0.0, -5.0, 0.0]),  # floor(2.4)
        (0.01, [[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0, -5.0, 0.0]),
        (1.0, [[4.0, -1.0], [0.5, 2.0]], [3.0, -0.25, -5.0, 0.0]),
    ):
        found, masks = held(part_of(weights, ratio, 0), weights)
        assert found["x"].tolist() == x
        assert found["y"].tolist() == y
        assert masks["y"].tolist() == [value != 0 for value in y]


def descended(w, masks, tau, x, y, through):
    """Steps of what a device holds; what falls below tau is off, and gets no gradient."""
    w, speed, losses, fell = dict(w), {name: np.zeros_like(w[name]) for name in NAMES}, [], 0
    for _ in range(4):
        size = {name: np.abs(w[name]) for name in masks}
        on = {name: masks[name] & (size[name] >= tau) if through else masks[name] for name in masks}
        fell += sum(int((masks[name] & ~on[name]).sum()) for name in masks)
        shown = {name: w[name] * on[name] if name in on else w[name] for name in NAMES}
        loss, gradient = loss_and_gradient(shown, x, y)
        losses.append(loss)
        for name in NAMES:
            slope = 1.0
            if name in on:
                slope = on[name] * (1 + 2 * tau * size[name] / (size[name] + tau) ** 2 if through else 1.0)
            speed[name] = SETTINGS["momentum"] * speed[name] + gradient[name] * slope
            w[name] = (w[name] - SETTINGS["lr"] * speed[name]) * masks.get(name, 1.0)
    return w, np.mean(losses), fell


@pytest.mark.parametrize(("through", "weigh"), [(True, "equal"), (False, "examples")])
def test_rounds_by_value(through, weigh):
    played = Played(FIARSE(STEPS, Clients(RATIOS), through, weigh=weigh), SINGLES, SINGLE)  # codes are of fp32
    w, fell = START, 0
    for t in range(3):
        sums, counts = ({name: np.zeros_like(w[name]) for name in NAMES} for _ in range(2))
        losses = []
        for id, (x, y) in DATA.items():
            sizes = np.sort(np.concatenate([np.abs(w[BODY]).ravel(), np.abs(w[HEAD]).ravel()]))
            tau = sizes[-COUNTS[id]]
            masks = {name: np.abs(w[name]) >= tau for name in (BODY, HEAD)}
            start = {name: w[name] * masks[name] if name in masks else w[name] for name in NAMES}
            end, loss, off = descended(start, masks, tau, x, y, through)
            fell += off
            losses.append(loss * len(y))
            for name in NAMES:
                share = (end[name] != start[name]) * (1.0 if weigh == "equal" else len(y))
                sums[name] += share * (end[name] - w[name])
                counts[name] += share
        w = {name: w[name] + sums[name] / np.maximum(counts[name], 1e-9) for name in NAMES}
        close(played.states[t + 1].model.weights, w, 1e-4)
        assert played.states[t + 1].loss == pytest.approx(sum(losses) / 31)
    assert bool(fell) == through, "no weight fell below the threshold: nothing was seen of it"


def test_full_devices_without_the_slope_are_fedavg():
    ours = Played(FIARSE(STEPS, Clients(), False, weigh="examples"), SINGLES, SINGLE)
    theirs = Played(Averaging(STEPS), SINGLES, SINGLE)
    for a, b in zip(ours.states, theirs.states, strict=True):
        close(a.model.weights, {name: value.numpy() for name, value in b.model.weights.items()}, 1e-6)


def test_few_weights_are_few_bytes_and_few_products_that_count():
    """A fiftieth of 23,760 weights, and 234 values that all hold: about five bytes each at their places, four without."""
    people, ledger, work = (rounds.PEOPLE[0], rounds.PEOPLE[1]), Ledger(), {}

    def seen(answer, t):
        work[answer.device.id] = macs(answer.work)
        return answer

    model = Model.init(Arch("cnn-bn", {"size": 8, "norm": "group"}), 1)
    method = FIARSE(SGD(lr=0.1, batch=8), Clients({"b": 0.02}))
    with scope(rounds.Watch(Metered(LocalFleet(people), ledger), seen), Scope("r", 0, 0, 0)) as open_:
        method.round(method.begin(model, open_, people[0]), 0, open_)
    rows = {(row["client"], row["direction"]): row["bytes"] for row in ledger.take()}
    kept = int(0.02 * (9 * 16 + 9 * 16 * 32 + 9 * 32 * 64 + 640))
    whole = 10 + 2 * (16 + 32 + 64)
    assert rows["b", "down"] < 5 * kept + 4 * whole + 1_200
    assert rows["b", "up"] < 4 * (kept + whole) + 600
    assert rows["a", "down"] > 4 * 24_058
    assert work["a"].kept == work["a"].done
    assert 0 < work["b"].kept < 0.2 * work["b"].done, "dense kernels do all of them"


def test_sparse_layers_are_refused_where_they_would_not_be_used():
    with pytest.raises(ValueError, match=r"optimizer.sparse = 'on'.*through = false"):
        FIARSE(SGD(sparse="on"))
    assert not FIARSE(SGD(sparse="on"), through=False).through
