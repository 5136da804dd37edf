"""Operations of networks of every make against formulas; the shipped ones are what they always were."""

import copy
import zlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from fedbonsai.arch import Arch, network
from fedbonsai.devices.clock import macs
from fedbonsai.devices.networks import all_known, counted
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model, parameter_specs
from fedbonsai.stages.pruning import count
from fedbonsai.work import Episode

SHIPPED = {  # for images of 3x32x32: multiply-accumulates, values, modules, and a checksum of all rows
    "alexnet": (223_993_856, 331_530, 18, 3_684_585_796),
    "cnn-bn": (2_802_304, 92_234, 13, 361_791_379),
    "cnn-mnist": (17_667_072, 111_626, 9, 1_291_208_486),
    "conv2": (23_973_888, 114_698, 9, 1_640_586_396),
    "lenet5": (651_720, 14_602, 11, 906_113_888),
    "mlp": (198_976, 202, 5, 533_857_848),
    "resnet-tiny": (26_657_408, 417_866, 45, 1_833_295_084),
    "resnet18": (555_422_720, 1_786_378, 59, 211_464_018),
    "resnet18-7x7": (37_016_576, 153_098, 60, 3_766_135_238),
    "vgg11": (153_293_824, 336_394, 26, 740_359_303),
    "vgg11-bn": (152_769_536, 485_898, 30, 3_743_105_316),
    "vgg16": (332_111_872, 885_258, 51, 2_297_006_609),
    "wrn-16": (392_612_352, 1_540_362, 44, 2_368_638_542),
}


class Net(nn.Module):
    """A network from its parts and a forward pass."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.way = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.way(self, x)


def made(name, forward, **parts):
    network(f"test-networks-{name}")(lambda: Net(forward, **copy.deepcopy(parts)))
    return Arch(f"test-networks-{name}")


def rows(arch, *sample):
    return {layer.name: layer.macs for layer in counted(Episode(arch, {}, sample, forward=1)).layers}


def only(module):
    return lambda self, x: getattr(self, module)(x)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_networks_count_as_ever(name):
    takes = {"channels": 3, "size": 32, "classes": 10}
    arch = Arch(name, {key: value for key, value in takes.items() if key in Arch(name).takes()})
    found = counted(Episode(arch, {}, (3, 32, 32)))
    table = [(layer.name, layer.kind, layer.macs, layer.first) for layer in found.layers]
    total = sum(layer.macs for layer in found.layers)
    assert (total, found.values, found.modules, zlib.crc32(repr(table).encode())) == SHIPPED[name]
    assert not any(layer.once or layer.frozen for layer in found.layers)
    model = Model(arch, parameter_specs(arch))
    assert count.activation_bytes(model, (3, 32, 32)) == 4 * (found.values + 3 * 32 * 32)


def test_recurrent_layers():
    lstm = made("lstm", lambda net, x: net.rnn(x)[0], rnn=nn.LSTM(5, 12, 2, batch_first=True, bidirectional=True))
    found = rows(lstm, 7, 5)
    assert found["rnn.weight_ih_l0"] == found["rnn.weight_ih_l0_reverse"] == 7 * 48 * 5
    assert found["rnn.weight_hh_l1"] == 7 * 48 * 12
    assert sum(found.values()) == 2 * 7 * (48 * (5 + 12) + 48 * (24 + 12))
    for name, kind, gates in (("gru", nn.GRU, 3), ("rnn", nn.RNN, 1)):
        arch = made(name, lambda net, x: net.rnn(x)[0], rnn=kind(5, 12, batch_first=True))
        assert sum(rows(arch, 7, 5).values()) == 7 * gates * 12 * (5 + 12)
    first = {layer.name for layer in counted(Episode(lstm, {}, (7, 5))).layers if layer.first}
    assert first == {"rnn.weight_ih_l0", "rnn.weight_ih_l0_reverse"}


def test_an_lstm_that_must_run_on_real_values():
    def forward(net, x):
        return net.rnn(x)[0] if float(x.sum()) > -1 else x

    arch = made("looks", forward, rnn=nn.LSTM(5, 12, batch_first=True))
    assert sum(rows(arch, 7, 5).values()) == 7 * 48 * (5 + 12)


def test_attention_counts_its_projections_and_its_products():
    mix = nn.MultiheadAttention(12, 3, batch_first=True)
    found = rows(made("mha", lambda net, x: net.mix(x, x, x)[0], mix=mix), 7, 12)
    assert found == {"mix.in_proj_weight": 3 * 7 * 12 * 12, "mix": 2 * 7 * 7 * 12, "mix.out_proj.weight": 7 * 12 * 12}
    block = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
    found = rows(made("block", only("block"), block=block), 7, 12)
    assert sum(found.values()) == 4 * 7 * 12 * 12 + 2 * 7 * 7 * 12 + 2 * 7 * 12 * 20
    assert found["block.linear1.weight"] == 7 * 12 * 20


@pytest.mark.parametrize(
    ("layer", "sample", "right"),
    [
        (nn.Conv1d(6, 9, 3, groups=3), (6, 10), 9 * 2 * 3 * 8),
        (nn.ConvTranspose1d(6, 4, 3, stride=2), (6, 10), 6 * 4 * 3 * 10),
        (nn.ConvTranspose2d(6, 4, 3, groups=2), (6, 5, 5), 6 * 2 * 9 * 25),
        (nn.ConvTranspose3d(2, 3, 2), (2, 3, 3, 3), 2 * 3 * 8 * 27),
        (weight_norm(nn.Conv2d(2, 5, 3)), (2, 6, 6), 5 * 2 * 9 * 16),
        (nn.Linear(6, 4), (5, 6), 5 * 6 * 4),
    ],
    ids=["conv1d", "up1d", "up2d", "up3d", "weight_norm", "sequence"],
)
def test_other_layers(layer, sample, right):
    name = f"{type(layer).__name__}-{right}".lower()
    assert sum(rows(made(name, only("layer"), layer=layer), *sample).values()) == right


def test_products_that_no_module_makes():
    def forward(net, x):
        x = F.linear(x, net.a.weight)
        x = torch.einsum("btd,de->bte", x, net.b)
        x = F.scaled_dot_product_attention(x, x, x)
        return (x[:, 0, :, None] * net.c).sum(1)

    parts = {"a": nn.Linear(6, 8), "b": nn.Parameter(torch.rand(8, 4)), "c": nn.Parameter(torch.rand(4, 3))}
    found = rows(made("functional", forward, **parts), 5, 6)
    assert found == {"a.weight": 5 * 6 * 8, "b": 5 * 8 * 4, "network": 2 * 5 * 5 * 4, "c": 4 * 3}


def test_bilinear_and_look_ups():
    def forward(net, x):
        left = net.words(x.long().clamp(0, 8)).mean(1)
        return net.pair(left, left)

    arch = made("words", forward, words=nn.Embedding(9, 5), pair=nn.Bilinear(5, 5, 4))
    assert rows(arch, 7) == {"pair.weight": 5 * 5 * 4}
    assert counted(Episode(arch, {}, (7,))).unknown == ()


def test_a_tied_weight_has_one_row_and_a_frozen_one_no_gradient():
    def tied(net, x):
        return F.linear(net.a(x).relu(), net.a.weight.t())

    a = nn.Linear(6, 4, bias=False)
    assert rows(made("tied", tied, a=a), 6) == {"a.weight": 2 * 24}
    frozen = made("frozen", lambda net, x: net.b(net.a(x)), a=nn.Linear(6, 4).requires_grad_(False), b=nn.Linear(4, 3))
    assert macs([Episode(frozen, {}, (6,), backward=1)]).done == 24 + 2 * 12


def test_what_makes_a_weight_counts_by_the_pass():
    arch = made("spectral", only("a"), a=spectral_norm(nn.Linear(6, 4)))
    (row,) = counted(Episode(arch, {}, (6,))).layers
    assert (row.macs, row.once) == (24, 24 + 4)  # W v, and u with it
    assert macs([Episode(arch, {}, (6,), forward=50, passes=2)]).done == 50 * 24 + 2 * 28
    arch = made("orthogonal", only("a"), a=orthogonal(nn.Linear(6, 6), orthogonal_map="cayley"))
    assert sum(layer.macs for layer in counted(Episode(arch, {}, (6,))).layers) == 36


def test_rows_under_masks_are_those_of_their_weights():
    arch = made("masked", lambda net, x: net.rnn(x)[0], rnn=nn.GRU(5, 4, batch_first=True))
    mask = torch.zeros(12, 5, dtype=torch.bool)
    mask[:6] = True
    model = Model.init(arch, 0)
    assert count.flops(model, (7, 5), {"rnn.weight_ih_l0": mask}) == 2 * (7 * 30 + 7 * 48)


def test_weights_that_cannot_be_counted_are_refused_by_name():
    arch = made("distances", lambda net, x: torch.cdist(net.a(x), net.centres, compute_mode="donot_use_mm_for_euclid_dist"),
        a=nn.Linear(6, 4), centres=nn.Parameter(torch.rand(3, 4)))  # fmt: skip
    assert counted(Episode(arch, {}, (6,))).unknown == ("centres",)
    with pytest.raises(ConfigError, match=r"'test-networks-distances': the operations of centres cannot .* --devices"):
        all_known(Episode(arch, {}, (6,)), "--devices")
    with pytest.warns(UserWarning, match="operations of centres cannot be counted"):
        assert count.macs(Model.init(arch, 0), (6,)) == 24
    all_known(Episode(Arch("mlp", {"channels": 1, "size": 8, "classes": 10}), {}, (1, 8, 8)), "--devices")


def test_a_network_that_takes_no_sample_alone_is_counted_all_the_same():
    def forward(self, x):
        return self.b(self.norm(self.a(x.flatten(1))))

    for still in (True, False):
        norm = nn.BatchNorm1d(8, track_running_stats=still)
        arch = made(f"alone-{still}", forward, a=nn.Linear(16, 8), norm=norm, b=weight_norm(nn.Linear(8, 3)))
        found = counted(Episode(arch, {}, (1, 4, 4), forward=1))
        assert (found.layers[0].name, found.layers[0].macs) == ("a.weight", 128)
        assert found.values == 8 + 8 + 3


def test_a_network_that_is_defined_anew_is_counted_anew():
    one = made("anew", only("a"), a=nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    assert list(rows(one, 1, 4, 4).values()) == [48]
    two = made(
        "anew", lambda self, x: self.a(self.a[0](x).tanh()) + self.a(x), a=nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    )
    assert list(rows(two, 1, 4, 4).values()) == [96]
