"""FjORD by hand: which widths are drawn, whole rounds against numpy, and what the books say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedbonsai import work
from fedbonsai.arch import Arch
from fedbonsai.core import Client, Samples
from fedbonsai.devices.clock import macs
from fedbonsai.errors import ConfigError
from fedbonsai.methods.fjord.client import OrderedDropout, Train, train
from fedbonsai.methods.fjord.method import FjORD
from fedbonsai.model import Model
from fedbonsai.objectives import Binary
from fedbonsai.stages.pruning.units import units
from fedbonsai.stages.width.capacity import Clients
from fedbonsai.stages.width.slices import window
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import generator, seed_of
from tests.methods import rounds, width_by_hand
from tests.methods.hand import BODY, DATA, HEAD, HEAD_BIAS, MODEL, NAMES, START, WHOLE, Played, close, norm

pytest.importorskip("torch_pruning")
SETTINGS = {"lr": 0.3, "momentum": 0.5}
STEPS = SGD(**SETTINGS, batch=WHOLE, epochs=4)
RATIOS = {"a": 1.0, "b": 0.5, "c": 0.2}
WIDTHS = {"a": [1, 3, 5], "b": [1, 3], "c": [1]}  # of five units: ceil(5 p) for p of .2, .5, 1, up to the ratio


def taught(w, units, x, y):
    """Cross-entropy of the whole, and of the part to the whole's probabilities, which are not moved for that."""
    loss, gradient = width_by_hand.loss_and_gradient(w, x, y)
    p = np.exp(np.tanh(x @ w[BODY].T + w["1.bias"]) @ w[HEAD].T + w[HEAD_BIAS])
    p /= p.sum(1, keepdims=True)
    small = width_by_hand.part(w, units)
    hidden = np.tanh(x @ small[BODY].T + small["1.bias"])
    q = np.exp(hidden @ small[HEAD].T + small[HEAD_BIAS])
    q /= q.sum(1, keepdims=True)
    by_z = (q - p) / len(y)
    by_sum = (by_z @ small[HEAD]) * (1 - hidden**2)
    gradient[BODY][units] += by_sum.T @ x
    gradient["1.bias"][units] += by_sum.sum(0)
    gradient[HEAD][:, units] += by_z.T @ hidden
    gradient[HEAD_BIAS] += by_z.sum(0)
    return loss - (p * np.log(q)).sum(1).mean(), gradient


def descended(w, x, y, widths, teach):
    """Steps of which each moves a part, and momentum all that was ever moved."""
    w, speed, losses = dict(w), {name: np.zeros_like(w[name]) for name in NAMES}, []
    for width in widths:
        units = list(range(width))
        if teach:
            loss, gradient = taught(w, units, x, y)
        else:
            loss, small = width_by_hand.loss_and_gradient(width_by_hand.part(w, units), x, y)
            gradient = {name: np.zeros_like(w[name]) for name in NAMES}
            gradient[BODY][units], gradient["1.bias"][units] = small[BODY], small["1.bias"]
            gradient[HEAD][:, units], gradient[HEAD_BIAS] = small[HEAD], small[HEAD_BIAS]
        losses.append(loss)
        for name in NAMES:
            speed[name] = SETTINGS["momentum"] * speed[name] + gradient[name]
            w[name] = w[name] - SETTINGS["lr"] * speed[name]
    return w, np.mean(losses)


@pytest.mark.parametrize(("teach", "weigh"), [(False, "examples"), (True, "equal")])
def test_rounds_by_value(teach, weigh):
    played = Played(FjORD(STEPS, Clients(RATIOS), (0.2, 0.5, 1.0), teach, weigh))
    w, drawn = START, set()
    for t in range(3):
        parts, losses = [], []
        for id, (x, y) in DATA.items():
            random = generator(seed_of(seed_of(0, id, t, 0), "widths", 0, 0))
            widths = WIDTHS[id] if len(WIDTHS[id]) == 1 else None
            widths = [
                WIDTHS[id][0 if widths else int(torch.randint(len(WIDTHS[id]), (), generator=random))] for _ in range(4)
            ]
            drawn |= {(id, width) for width in widths}
            units = list(range(WIDTHS[id][-1]))
            end, loss = descended(width_by_hand.part(w, units), x, y, widths, teach and len(WIDTHS[id]) > 1)
            parts.append((end, units, range(3), 1 if weigh == "equal" else len(y)))
            losses.append(loss * len(y))
        w = width_by_hand.over_holders(w, parts)
        close(played.states[t + 1].model.weights, w)
        assert played.states[t + 1].loss == pytest.approx(sum(losses) / 31)
    assert len(drawn) == 6, "a width was never drawn"
    assert norm({name: w[name] - START[name] for name in NAMES}) > 0.5


def test_widths_of_normalised_groups_and_of_narrow_fleets():
    """Nobody has more than half: the global network has half, and widths are by that."""
    method = FjORD(SGD(batch=8), Clients({}, 0.5), (0.125, 0.25, 1.0))
    model = Model.init(Arch("cnn-bn", {"size": 8, "norm": "group"}), 1)  # groups of 16: 1, 2 and 4 of them
    states, fleet = rounds.run(method, rounds=1, model=model)
    assert states[0].widths == (0.25, 0.5)
    request = fleet.sent[0][2]
    assert [group.width for group in request.groups] == [8, 16, 32]
    assert request.widths == ((2, 4, 8), (4, 8, 16))


def test_the_books_have_the_networks_that_were_drawn():
    me, model = rounds.person("a", 80, 1), Model.init(Arch("cnn-bn", {"size": 8, "norm": "group"}), 1)
    method = FjORD(SGD(batch=8), Clients({}), (0.25, 1.0))
    _, fleet = rounds.run(method, (me,), rounds=1, model=model)
    request = fleet.sent[0][2]
    for teach in (False, True):
        with work.collecting() as done:
            train.run(replace(request, teach=teach), me, {})
        seen = {episode.shapes["stem.conv.weight"][0]: episode.backward for episode in done}
        assert set(seen) == {4, 16}
        assert sum(episode.steps for episode in done) == 10
        whole = 2 * 9 * 64 * 16 + 3 * (9 * 16 * 16 * 32 + 9 * 4 * 32 * 64 + 640)
        small = 2 * 9 * 64 * 4 + 3 * (9 * 16 * 4 * 8 + 9 * 4 * 8 * 16 + 160)
        assert macs(done).done == seen[16] * whole + seen[4] * small
        assert seen[16] == 80 if teach else 0 < seen[16] == 80 - seen[4] < 80
        held = {episode.shapes["stem.conv.weight"][0]: episode.held for episode in done}
        with work.collecting() as plain:
            train.run(replace(request, widths=()), me, {})
        drawn = OrderedDropout(request, me)
        quarter = 4 * sum(value.numel() for value in drawn.models[0].weights.values())
        assert held[16] == plain[0].held + 2 * quarter, "the quarter network, as it was cut out and as it runs"


KINDS = [
    ("gru", {"length": 6, "features": 3, "classes": 3, "hidden": 6}, (6, 3)),
    ("tiny-transformer", {"length": 6, "features": 3, "width": 8, "heads": 2, "layers": 1, "hidden": 6}, (6, 3)),
    pytest.param("resnet-tiny", {"channels": 1, "size": 8}, (1, 8, 8), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "options", "size"), KINDS)
def test_a_part_of_the_tensors_computes_what_the_network_of_that_width_does(name, options, size):
    """Recurrent units, heads, and layers that are added up; its gradient is of its part alone."""
    x, model = torch.randn(4, *size, generator=generator(0)), Model.init(Arch(name, options), 0)
    me = Client("a", 7, Samples(x, torch.tensor([0, 1, 2, 0])), Samples(x[:0], torch.tensor([])))
    groups = tuple(units(model, size))
    widths = tuple(len(index) for index in window(groups, 0.5))
    dropout = OrderedDropout(Train(model, SGD(), groups, (widths,), False), me)
    net, small = model.build().train(), dropout.models[0].build().train()
    scores = dropout._scores(0, net, x)
    torch.testing.assert_close(scores, small(x))
    scores.square().sum().backward()
    moved = sum(int((value.grad != 0).sum()) for value in net.parameters() if value.grad is not None)
    assert 0 < moved <= sum(value.numel() for value in small.parameters())


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="expected shares"):
        FjORD(widths=(0.0, 1.0))
    model = Model(Arch(MODEL.arch.name, objective=Binary()), MODEL.weights)
    with pytest.raises(ConfigError, match="teaches by the probabilities"):
        Played(FjORD(STEPS, teach=True), model=model, rounds=0)
