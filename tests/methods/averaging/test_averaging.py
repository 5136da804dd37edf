"""FedAvg by hand on two weights; damaged and infinite updates; EF21 and warm-up as settings."""

import pytest
import torch
from torch import nn

from fedbonsai.arch import Arch, network
from fedbonsai.core import Client, Samples, Scope, scope
from fedbonsai.errors import Unanswered
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.methods.averaging.method import Averaging, warmed
from fedbonsai.model import Model
from fedbonsai.stages.codec import TopK, parse
from fedbonsai.training.optimizers import SGD


@network("test-two-weights")
def two():
    """One pixel, two classes, no bias: scores are (w0 x, w1 x)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))


ARCH = Arch("test-two-weights")
START = Model(ARCH, {"1.weight": torch.zeros(2, 1, dtype=torch.float64)})
EMPTY = Samples(torch.zeros(0, 1, 1, 1, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))


def person(id, pixels, labels):
    x = torch.tensor(pixels, dtype=torch.float64).reshape(-1, 1, 1, 1)
    return Client(id, 0, Samples(x, torch.tensor(labels)), EMPTY)


PEOPLE = [person("a", [1.0, 1.0, 1.0], [0, 0, 0]), person("b", [2.0], [1])]
SERVER = Client("server", 0, EMPTY, EMPTY)


def play(method, people=PEOPLE, rounds=1, fleet=None):
    fleet = fleet or LocalFleet(people)
    with scope(fleet, Scope("r", 0, -1, 0)):
        state = method.begin(START, fleet, SERVER)
        fleet.commit()
    for t in range(rounds):
        with scope(fleet, Scope("r", 0, t, 0)):
            state = method.round(state, t, fleet)
            fleet.commit()
    return state


def test_one_round_by_hand():
    # at w = 0 both classes have probability 1/2: the gradient of a sample is x * (p - onehot)
    # a: one full batch, gradient 1 * (-1/2, 1/2), step 0.4: (0.2, -0.2); b: 2 * (1/2, -1/2): (-0.4, 0.4)
    # mean by 3 and 1 samples: (3 * 0.2 - 0.4) / 4 = 0.05
    state = play(Averaging(SGD(lr=0.4, batch=8)))
    assert state.model.weights["1.weight"].flatten().tolist() == pytest.approx([0.05, -0.05])
    assert state.loss == pytest.approx(torch.log(torch.tensor(2.0)).item())


def test_the_servers_rate_scales_the_change():
    state = play(Averaging(SGD(lr=0.4, batch=8), rate=0.5))
    assert state.model.weights["1.weight"].flatten().tolist() == pytest.approx([0.025, -0.025])


class Poison(Wrapper):
    """Puts something else into the answer of client a."""

    def __init__(self, inner, value):
        super().__init__(inner)
        self.value = value

    def ask(self, task, send, at_least=1):
        from dataclasses import replace

        from fedbonsai.core import Answers

        def spoiled():
            for answer in self.inner.ask(task, send, 0):
                yield (
                    replace(answer, value=replace(answer.value, result=self.value))
                    if answer.device.id == "a"
                    else answer
                )

        return Answers(spoiled(), at_least)


@pytest.mark.parametrize(
    "poison",
    [
        {"1.weight": torch.full((2, 1), float("nan"), dtype=torch.float64)},
        {"1.weight": torch.full((2, 1), float("inf"), dtype=torch.float64)},
        {"1.weight": torch.zeros(3, 1, dtype=torch.float64)},
        {"other": torch.zeros(2, 1, dtype=torch.float64)},
    ],
)
def test_what_is_not_finite_or_does_not_fit_never_enters_the_mean(poison):
    state = play(Averaging(SGD(lr=0.4, batch=8)), fleet=Poison(LocalFleet(PEOPLE), poison))
    assert state.dropped == 1
    assert state.model.weights["1.weight"].flatten().tolist() == pytest.approx([-0.4, 0.4])


def test_a_damaged_packed_update_is_dropped_and_its_residual_does_not_count():
    from fedbonsai.stages.codec import Packed

    fleet = Poison(LocalFleet(PEOPLE), Packed(b"damaged"))
    method = Averaging(SGD(lr=0.4, batch=8), uplink=parse(["ef14", {"topk": {"count": 1, "min_numel": 0}}]))
    with scope(fleet, Scope("r", 0, -1, 0)):
        state = method.begin(START, fleet, SERVER)
    with scope(fleet, Scope("r", 0, 0, 0)):
        state = method.round(state, 0, fleet)
        assert set(fleet.pending()) == {"b"}
    assert state.dropped == 1


def test_a_client_whose_training_explodes_is_silent_and_the_others_go_on():
    state = play(
        Averaging(SGD(lr=1e306, batch=1, epochs=3)), people=[person("a", [1e6, 1e6, -1e6], [0, 1, 1]), PEOPLE[1]]
    )
    assert torch.isfinite(state.model.weights["1.weight"]).all()
    with pytest.raises(Unanswered, match="not finite"):
        play(Averaging(SGD(lr=1e306, batch=1, epochs=3)), people=[person("a", [1e6, 1e6, -1e6], [0, 1, 1])])


@pytest.mark.parametrize(
    "uplink", [[{"topk": {"fraction": 1.0, "min_numel": 0}}], ["ef21", {"topk": {"fraction": 1.0, "min_numel": 0}}]]
)
def test_a_chain_that_sends_everything_is_fedavg(uplink):
    plain = play(Averaging(SGD(lr=0.4, batch=2)), rounds=4)
    packed = play(Averaging(SGD(lr=0.4, batch=2), uplink=parse(uplink)), rounds=4)
    torch.testing.assert_close(
        packed.model.weights["1.weight"], plain.model.weights["1.weight"], rtol=1e-12, atol=1e-12
    )


def test_warm_up_falls_from_a_quarter_to_the_share():
    chain = parse(["ef14", {"topk": 0.001}])
    shares = [warmed(chain, 4, t).parts["sparsifier"].fraction for t in range(6)]
    assert shares == pytest.approx([0.082861, 0.027464, 0.0091028, 0.0030171, 0.001, 0.001], rel=1e-3)
    assert isinstance(warmed(chain, 4, 0).parts["sparsifier"], TopK)
    with pytest.raises(ValueError, match="no effect"):
        Averaging(warmup=3)
