"""Which weights of networks of one's own masks may touch, and SynFlow's flow through them."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from fedbonsai.arch import Arch, network
from fedbonsai.errors import ConfigError
from fedbonsai.methods.fedtiny.method import FedTiny
from fedbonsai.model import Model, cached_module
from fedbonsai.stages.pruning import scores
from fedbonsai.stages.pruning.masks import prunable


class Odd(nn.Module):
    """Weights of every make, each of which may or may not be pruned."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 1)  # one channel and one pixel, a kernel all the same
        self.made = parametrizations.weight_norm(nn.Linear(36, 8))
        with warnings.catch_warnings(action="ignore"):  # torch's older way, which networks still take
            self.older = weight_norm(nn.Linear(8, 8))
        self.still = nn.Linear(8, 8).requires_grad_(False)
        self.again = nn.Linear(8, 8)
        self.twice = nn.Linear(8, 8)
        self.twice.weight = self.again.weight
        self.norm = nn.LayerNorm((2, 8))
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)
        self.gain = nn.Parameter(torch.ones(1, 1, 8))
        self.matrix = nn.Parameter(torch.rand(8, 8))
        self.out = nn.Linear(8, 1)


@network("test-own-odd")
def odd():
    return Odd()


def test_masks_touch_matrices_and_kernels_that_are_trained_and_nothing_else():
    assert prunable(Model.init(Arch("test-own-odd"), 0)) == [
        "matrix",
        "first.weight",
        "again.weight",
        "mix.in_proj_weight",
        "mix.out_proj.weight",
        "out.weight",
    ]


class Flow(nn.Module):
    """A recurrent network, attention, a transposed convolution and a tied layer, in any type."""

    def __init__(self, dtype, saturates):
        super().__init__()
        self.up = nn.ConvTranspose1d(4, 6, 2)
        self.rnn = nn.GRU(6, 6, batch_first=True)
        self.mix = nn.TransformerEncoderLayer(6, 2, 7, batch_first=True)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.unused = nn.Linear(3, 3)
        self.out = nn.Linear(6, 5)
        self.register_buffer("order", torch.arange(5, -1, -1))
        self.register_buffer("keep", torch.ones(6, dtype=torch.bool))
        self.saturates = saturates
        self.to(dtype)

    def forward(self, x):
        x = self.up(x.to(self.up.weight.dtype)).transpose(1, 2)
        x = self.mix(self.rnn(x)[0]).mean(1)[:, self.order].masked_fill(~self.keep, 0)
        x = torch.tanh(1e6 * x) if self.saturates else x
        return self.out(self.b(self.a(x)))


@network("test-own-flow")
def flow(kind="float32", saturates=False):
    return Flow(getattr(torch, kind), saturates)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_synflow_scores_layers_of_every_kind_and_type(kind):
    model = Model.init(Arch("test-own-flow", {"kind": kind}), 0)
    names = prunable(model)
    found = scores.synflow(model, names, (4, 5))
    assert {name: value.shape for name, value in found.items()} == {n: model.weights[n].shape for n in names}
    idle = {name for name, value in found.items() if not value.any()}
    assert idle == {"unused.weight"}
    assert "b.weight" not in found


def test_synflow_says_what_stops_the_flow():
    model = Model.init(Arch("test-own-flow", {"saturates": True}), 0)
    with pytest.raises(ConfigError, match=r"cannot score 'up.weight' of network 'test-own-flow': its flow is 0.0"):
        scores.synflow(model, prunable(model), (4, 5))


def test_synflow_passes_by_a_normalisation_that_takes_no_sample_alone():
    found = []
    for still in (True, False):
        norm = nn.BatchNorm1d(6, track_running_stats=still)
        network(f"synflow-alone-{still}")(
            lambda norm=norm: nn.Sequential(nn.Flatten(), nn.Linear(16, 6), copy.deepcopy(norm), nn.Linear(6, 3))
        )
        model = Model.init(Arch(f"synflow-alone-{still}"), 0)
        found.append(scores.synflow(model, ["1.weight", "3.weight"], (1, 4, 4)))
        assert not any("forward" in vars(layer) for layer in cached_module(model).module.modules())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("strict", [True, False])
def test_a_density_that_leaves_a_layer_nothing_says_the_least_one(strict):
    network("own-little")(lambda: nn.Sequential(nn.Flatten(), *[nn.Linear(16, 16) for _ in range(4)]))
    model = Model.init(Arch("own-little"), 0)
    with pytest.raises(ConfigError, match=r"own-little.*not one for each of the 2 layers.*at least") as caught:
        FedTiny(density=0.003, strict=strict).allowed(model)
    least = float(str(caught.value).split("at least ")[1].split(",")[0])
    assert FedTiny(density=least, strict=strict, input_layer="dense").allowed(model)[1] in (2, 3)
    with pytest.raises(ConfigError):
        FedTiny(density=least - 0.002, strict=strict, input_layer="dense").allowed(model)
