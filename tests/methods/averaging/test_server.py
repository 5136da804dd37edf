"""The server's optimisers against algorithm 2 of Reddi et al. (ICLR 2021), in numpy."""

import numpy as np
import pytest
import torch

from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.averaging.server import Adagrad, Adam, Momentum, Plain, Yogi
from fedbonsai.stages.codec import parse


def by_hand(kind, changes, rate, beta1, beta2=0.99, tau=1e-3):
    w, m, v = np.zeros(3), np.zeros(3), np.full(3, tau**2)
    for d in changes:
        m = beta1 * m + (1 - beta1) * d
        if kind == "adagrad":
            v = v + d**2
        elif kind == "yogi":
            v = v - (1 - beta2) * d**2 * np.sign(v - d**2)
        else:
            v = beta2 * v + (1 - beta2) * d**2
        w = w + rate * m / (np.sqrt(v) + tau)
    return w


@pytest.mark.parametrize(("how", "beta1"), [(Adagrad(), 0.0), (Adam(), 0.9), (Yogi(), 0.9)])
def test_adaptive_steps_are_those_of_the_paper(how, beta1):
    changes = np.random.default_rng(0).normal(size=(5, 3)) * [1, 0.01, 1e-4]
    weights, moments = {"w": torch.zeros(3, dtype=torch.float64)}, {}
    for change in changes:
        weights, moments = how.step(weights, {"w": torch.from_numpy(change)}, 0.03, moments)
    want = by_hand(how.choice_name, changes, 0.03, beta1)
    np.testing.assert_allclose(weights["w"].numpy(), want, rtol=1e-9)


def test_momentum_keeps_a_part_of_the_last_step_and_statistics_move_by_their_change():
    weights, moments = {"w": torch.tensor([1.0]), "running_mean": torch.tensor([0.0])}, {}
    for change in (1.0, 2.0):
        change = {"w": torch.tensor([change]), "running_mean": torch.tensor([3.0])}
        weights, moments = Momentum(beta=0.5).step(weights, change, 0.1, moments)
    assert weights["w"].item() == pytest.approx(1 + 0.1 * 1 + 0.1 * (2 + 0.5))
    assert weights["running_mean"].item() == 6
    assert set(moments["v"]) == {"w"}


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ValueError, match="use ef14"):
        Averaging(uplink=parse(["ef21", {"topk": 0.1}]), server=Adam())
    with pytest.raises(ValueError, match="tau"):
        Adam(tau=0.0)
    assert Averaging().server == Plain()
