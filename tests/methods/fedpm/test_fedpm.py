"""FedPM by hand: frozen signs, the straight-through step, counts of masks, and what a mask and probabilities cost."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import PCG64
from torch import nn

from fedbonsai.arch import Arch
from fedbonsai.arch import network as built
from fedbonsai.errors import BadMessage, ConfigError, Unanswered
from fedbonsai.fleets.flower.hello import needed
from fedbonsai.methods.fedpm import client
from fedbonsai.methods.fedpm.drawn import draw_of, packed_draw
from fedbonsai.methods.fedpm.frozen import frozen, names_of
from fedbonsai.methods.fedpm.levels import levels_of, packed_levels, rounded
from fedbonsai.methods.fedpm.method import FedPM
from fedbonsai.model import Model
from fedbonsai.stages.codec import ranges
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import generator, seed_of
from tests.methods.hand import ARCH, BODY, DATA, SINGLES, WHOLE, loss_and_gradient
from tests.methods.rounds import CNN, run

STEP = SGD(lr=3.0, batch=WHOLE)
DRAWN = Model.init(ARCH, 5)
SIZE = 43  # 5 x 4 + 5 + 3 x 5 + 3


def played(method, rounds=1, **more):
    return run(method, SINGLES, rounds, DRAWN, **more)


def test_frozen_weights_are_signs_of_one_size_a_layer():
    weights, stream = frozen(ARCH, 9), PCG64(9)
    for name, inputs in {"1.weight": 4, "1.bias": 4, "3.weight": 5, "3.bias": 5}.items():
        word = int(stream.random_raw())
        bits = [word >> place & 1 for place in range(weights[name].numel())]
        wanted = [(2 * bit - 1) * math.e / math.sqrt(inputs) for bit in bits]
        assert weights[name].flatten().tolist() == pytest.approx(wanted)
    assert not torch.equal(weights[BODY], frozen(ARCH, 10)[BODY])


def test_normalisation_has_no_mask():
    assert not [name for name in names_of(CNN) if "norm" in name]


@built("test-fedpm-zero-gains")
def zero_gains():
    """A normalisation that begins with gains of 0 and biases of 3, and counts on their training."""
    norm = nn.LayerNorm(4)
    nn.init.zeros_(norm.weight)
    nn.init.constant_(norm.bias, 3)
    return nn.Sequential(nn.Flatten(), norm, nn.Linear(4, 3))


def test_gains_that_nobody_trains_are_one_and_biases_zero():
    arch = Arch("test-fedpm-zero-gains")
    states, _ = run(FedPM(STEP), SINGLES, 1, Model.init(arch, 5))
    end = FedPM(STEP).model(states[1]).weights
    assert end["1.weight"].tolist() == [1] * 4
    assert end["1.bias"].tolist() == [0] * 4


def test_whole_steps_by_hand():
    assert rounded(torch.tensor([0, 1, 2, 3, 4]), 4, 4).tolist() == [0, 1, 2, 3, 4]
    assert rounded(torch.tensor([0, 1, 2, 3, 4]), 4, 2).tolist() == [0, 1, 1, 2, 2]
    assert client.probability(torch.tensor([0, 1, 2]), 2, 0.01).tolist() == pytest.approx([0.01, 0.5, 0.99])


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(1, 255), st.sampled_from(["portable", "range"]), st.data())
def test_levels_travel(steps, coder, data):
    drawn = data.draw(st.lists(st.integers(0, steps), min_size=1, max_size=200))
    levels = {"w": torch.tensor(drawn), "b": torch.full((2, 3), steps)}
    packed = packed_levels(levels, steps, coder)
    found = levels_of(packed, steps, levels)
    assert all(torch.equal(found[name], value) for name, value in levels.items())
    for wrong in ({**packed, "w": packed["w"] + b"\0"}, {"w": packed["w"]}, {**packed, "w": packed["w"][:-1]}):
        with pytest.raises(BadMessage):
            levels_of(wrong, steps, levels)


def test_levels_beyond_the_scale_are_refused():
    packed = packed_levels({"w": torch.tensor([3, 0, 1])}, 3, "portable")
    with pytest.raises(BadMessage, match="whole numbers up to 2"):
        levels_of(packed, 2, {"w": torch.zeros(3)})


def test_a_step_goes_straight_through_the_draw_and_along_the_sigmoid():
    """By hand: s - lr w g theta (1 - theta), where g is the gradient under the mask that was drawn."""
    _, fleet = played(FedPM(STEP), rounds=1)
    request = fleet.sent[0][2]
    weights = frozen(ARCH, request.seed)
    me = replace(SINGLES[1], seed=77)
    random = generator(seed_of(77, "masks", 0, 0))
    drawn = {name: torch.bernoulli(torch.full_like(value, 0.5), generator=random) for name, value in weights.items()}
    under = {name: (weights[name] * drawn[name]).double().numpy() for name in weights}
    loss, slope = loss_and_gradient(under, *DATA["b"])
    theta = {n: 1 / (1 + np.exp(3.0 * w.numpy() * slope[n] / 4)) for n, w in weights.items()}
    wanted = client.draw({n: torch.from_numpy(v).float() for n, v in theta.items()}, seed_of(77, "sent", 0, 0))
    sent, _ = client.train.run(request, me, {})
    assert sent.loss == pytest.approx(loss, rel=1e-5)
    found = draw_of(sent.masks, levels_of(request.levels, 2, weights), 2)
    assert all(torch.equal(found[name], mask) for name, mask in wanted.items())
    assert max(abs(value - 0.5).max() for value in theta.values()) > 0.1, "nothing was learned"


def test_the_server_counts_masks_and_sends_the_mode_of_the_posterior():
    states, fleet = played(FedPM(STEP), rounds=2)
    for t in range(2):
        request = next(request for at, _, request in fleet.sent if at == t)
        levels = levels_of(request.levels, request.steps, states[0].ones)
        masks = [draw_of(answer.masks, levels, request.steps) for at, _, answer in fleet.heard if at == t]
        assert states[t + 1].total == len(masks) == 3
        for name, ones in states[t + 1].ones.items():
            assert torch.equal(ones, sum(mask[name].long() for mask in masks))
    request = fleet.sent[-1][2]
    assert request.steps == 3
    levels = levels_of(request.levels, 3, states[1].ones)
    for name, ones in states[1].ones.items():
        alpha, beta = 1 + ones, 1 + 3 - ones
        torch.testing.assert_close(levels[name] / 3, (alpha - 1) / (alpha + beta - 2))


def test_counts_go_on_until_the_prior_begins_anew():
    states, _ = played(FedPM(STEP, reset=2), rounds=4)
    assert [state.total for state in states] == [2, 3, 6, 3, 6]


def test_coarser_levels_are_fewer_bytes():
    sizes = {}
    for levels in (0, 2):
        states, fleet = played(FedPM(STEP, levels=levels), rounds=2)
        request = fleet.sent[-1][2]
        assert request.steps == (levels or 3)
        sizes[levels] = set(levels_of(request.levels, request.steps, states[0].ones)[BODY].flatten().tolist())
    assert sizes[2] <= {0, 1, 2}
    assert sizes[0] <= {0, 1, 2, 3}


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(1, 9), st.sampled_from(["portable", "range"]), st.data())
def test_draws_travel(steps, coder, data):
    count = data.draw(st.integers(1, 80))
    levels = {"w": torch.tensor(data.draw(st.lists(st.integers(0, steps), min_size=count, max_size=count)))}
    masks = {"w": torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))}
    packed = packed_draw(masks, levels, steps, coder)
    assert torch.equal(draw_of(packed, levels, steps)["w"], masks["w"])
    for wrong in (packed[:-1], (*packed[:-1], packed[-1] + b"\0")):
        with pytest.raises(BadMessage):
            draw_of(wrong, levels, steps)


def test_a_draw_costs_the_entropy_of_each_weight_given_what_both_ends_hold():
    """By hand: of four equal parts kept with .01, .2, .5 and .99, a mask is (.081 + .722 + 1 + .081) / 4 bits a weight."""
    shares = torch.tensor([0.01, 0.2, 0.5, 0.99])
    level = torch.arange(4).repeat(25_000)
    masks = {"w": torch.rand(100_000, generator=generator(3)) < shares[level]}
    bits = {c: 8 * sum(map(len, packed_draw(masks, {"w": level}, 3, c))) / 100_000 for c in ("range", "portable")}
    assert bits["range"] == pytest.approx(0.471, rel=0.02)
    assert bits["range"] < bits["portable"] < 0.56


def test_the_model_is_the_frozen_weights_under_a_mask():
    for network in ("sampled", "likely"):
        method = FedPM(STEP, network=network)
        state = played(method, rounds=3)[0][-1]
        model, weights = method.model(state), frozen(ARCH, seed_of(state.seed, "frozen", -1, 0))
        for name, value in model.weights.items():
            kept = value != 0
            assert torch.equal(value[kept], weights[name][kept])
            if network == "likely":
                assert torch.equal(kept, 2 * state.ones[name] >= state.total)
        kept = sum(int((value != 0).sum()) for value in model.weights.values())
        assert method.metrics(state)["density"] == pytest.approx(kept / SIZE)


def test_bits_of_a_mask_by_hand():
    method = FedPM(STEP)
    state = method.begin(DRAWN, None, SINGLES[0])
    assert method.metrics(state)["mask_bits"] == pytest.approx(1.0)
    ones = {name: torch.zeros_like(value) for name, value in state.ones.items()}
    assert method.metrics(replace(state, ones=ones))["mask_bits"] == 0


def test_running_statistics_travel_and_are_averaged():
    model = Model.init(CNN, 1)
    method = FedPM(SGD(lr=1.0, batch=16))
    states, fleet = run(method, rounds=1, model=model)
    answers = [value for _, _, value in fleet.heard]
    name = next(name for name in model.weights if name.endswith("running_mean"))
    wanted = sum(a.examples * a.statistics[name] for a in answers) / sum(a.examples for a in answers)
    torch.testing.assert_close(states[1].statistics[name], wanted)
    assert torch.equal(method.model(states[1]).weights[name], states[1].statistics[name])


def test_answers_that_are_damaged_are_dropped():
    def spoil(answer, t):
        value = answer.value
        if answer.device.id == "a":
            return replace(answer, value=replace(value, masks=(b"", b"\7", b"")))
        if answer.device.id == "b":
            return replace(answer, value=replace(value, masks=value.masks[:2]))
        return answer

    states, _ = played(FedPM(STEP), change=spoil)
    assert (states[1].total, states[1].dropped) == (1, 2)
    with pytest.raises(Unanswered, match="no mask could be used"):
        played(FedPM(STEP), change=lambda answer, t: replace(answer, value=replace(answer.value, examples=0)))


def test_what_cannot_be_meant_is_refused(monkeypatch):
    sparse = {"optimizer": SGD(sparse="on")}
    for wrong in ({"levels": 1}, {"levels": 256}, {"margin": 0.5}, {"margin": 0.0}, {"reset": 0}, sparse):
        with pytest.raises(ValueError, match=r"levels = |margin = |reset = |optimizer.sparse = "):
            FedPM(**wrong)
    with pytest.raises(ConfigError, match=r"model.weights: fedpm learns masks"):
        FedPM().begin(DRAWN.replace(DRAWN.weights), None, SINGLES[0])
    assert needed(FedPM(coder="range")) == {"range"}
    assert not needed(FedPM())
    monkeypatch.setattr(ranges, "available", lambda: False)
    with pytest.raises(ConfigError, match=r"method.coder = 'range' needs constriction"):
        FedPM(coder="range").begin(DRAWN, None, SINGLES[0])
