"""A narrower network: as wide as the share allows, drawn anew for its shapes, trained by FedAvg."""

import pytest
import torch

from fedbonsai import tree
from fedbonsai.arch import Arch
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.small_dense.method import SmallDense
from fedbonsai.methods.small_dense.narrow import narrow
from fedbonsai.model import Model, cached_module
from fedbonsai.stages.pruning.count import parameters, training_flops
from fedbonsai.training.optimizers import SGD
from tests.methods.rounds import MODEL, run, same

pytest.importorskip("torch_pruning")
STEPS = SGD(lr=0.1, momentum=0.5, batch=8)


def widths(model):
    return [value.shape[0] for name, value in cached_module(model).parameters.items() if value.ndim > 1]


def test_the_widest_that_fits_by_hand():
    # a, b, c wide: 9 a + 9 a b + 9 b c + 10 c + 10 weights and biases, 2 (a + b + c) of normalisation
    def size(a, b, c):
        return 9 * a + 9 * a * b + 9 * b * c + 10 * c + 10 + 2 * (a + b + c)

    assert size(16, 32, 64) == parameters(MODEL) == 24_058
    small = narrow(MODEL, 0.1, (1, 8, 8), 0)
    a, b, c, _ = widths(small)
    # a common share of 0.297 gives 5, 9 and 19 of 16, 32 and 64; the rest is enough for one more of the last
    assert (a, b, c) == (5, 9, 20)
    assert parameters(small) == size(a, b, c) == 2_348
    assert min(size(6, 9, 20), size(5, 10, 20), size(5, 9, 21)) > 0.1 * 24_058


@pytest.mark.parametrize("arch", ["lenet5", "resnet-tiny", "cnn-bn"])
@pytest.mark.parametrize("share", [0.2, 0.05])
def test_every_network_is_within_its_share_and_near_it(arch, share):
    model = Model.init(Arch(arch, {"channels": 1, "size": 28}), 0)
    small = narrow(model, share, (1, 28, 28), 0)
    assert 0.85 * share < parameters(small) / parameters(model) <= share
    assert small.build().eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_weights_are_drawn_for_the_new_shapes_by_the_seed():
    one, again, other = (narrow(MODEL, 0.1, (1, 8, 8), seed) for seed in (1, 1, 2))
    assert same(one.weights, again.weights)
    assert not same(one.weights, other.weights)
    wide = narrow(Model.init(Arch("mlp", {"size": 8, "widths": [400, 400]}), 0), 0.3, (1, 8, 8), 0)
    for name in ("features.fc2.weight", "classifier.weight"):
        fan = wide.weights[name].shape[1]
        assert float(wide.weights[name].abs().max()) == pytest.approx(
            fan**-0.5, rel=0.01
        )  # of U(-1/sqrt(fan), 1/sqrt(fan))


def test_rounds_are_fedavg_of_the_small_model():
    states, fleet = run(SmallDense(optimizer=STEPS, density=0.1), rounds=1)
    mean = tree.Mean()
    for _, _, answer in fleet.heard:
        assert {n: v.shape for n, v in answer.result.items()} == {
            n: v.shape for n, v in states[0].model.weights.items()
        }
        mean.add(answer.result, answer.examples)
    assert same(states[1].model.weights, mean.result())
    figures = SmallDense(optimizer=STEPS).metrics(states[1])
    assert figures["parameters"] == 2_348
    assert figures["density"] == pytest.approx(2_348 / 24_058)
    assert figures["training_flops"] == training_flops(states[1].model, (1, 8, 8))


def test_the_whole_share_is_the_whole_network():
    states, _ = run(SmallDense(optimizer=STEPS, density=1.0), rounds=0)
    assert widths(states[0].model) == widths(MODEL)
    ours, _ = run(SmallDense(optimizer=STEPS, density=1.0), rounds=2)
    theirs, _ = run(Averaging(optimizer=STEPS), rounds=2, model=Model(MODEL.arch, states[0].model.weights))
    assert same(ours[-1].model.weights, theirs[-1].model.weights)


def test_what_is_no_share_is_refused():
    with pytest.raises(ValueError, match="expected a share"):
        SmallDense(density=0.0)
