import builtins
import copy
import importlib.util

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from fedbonsai.arch import Arch, network
from fedbonsai.core import Client, Samples
from fedbonsai.errors import BadMessage, ConfigError, Missing
from fedbonsai.model import Model
from fedbonsai.stages.pruning import count
from fedbonsai.stages.pruning.filters import All, Ratio, Target, Widths
from fedbonsai.stages.pruning.units import forms_of, narrowed, prune, select, silenced, units
from fedbonsai.training.loop import train
from fedbonsai.training.optimizers import SGD
from fedbonsai.wire import decode, encode

pytest.importorskip("torch_pruning")
SMALL = {"cnn-bn": (1, 8, 8), "conv2": (1, 28, 28), "vgg11-bn": (3, 32, 32), "resnet-tiny": (3, 8, 8), "mlp": (1, 8, 8)}


def made(name, seed=0, **options):
    """A model whose biases and statistics are not what they start as."""
    size = SMALL[name]
    model = Model.init(Arch(name, {"channels": size[0], "size": size[1], "classes": 10, **options}), seed)
    random = torch.Generator().manual_seed(seed)
    weights = {
        n: v + 0.1 * torch.rand(v.shape, generator=random) if v.ndim == 1 else v for n, v in model.weights.items()
    }
    return model.replace(weights), size


def output(model, size, seed=5):
    x = torch.randn(3, *size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.build().eval()(x)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("share", [0.75, 0.3])
def test_the_smaller_network_computes_what_the_full_one_does_with_silent_units(name, share):
    model, size = made(name)
    groups = units(model, size)
    kept = select(model.weights, groups, Ratio(share).widths(model, groups, size))
    small = prune(model, groups, kept)
    torch.testing.assert_close(output(small, size), output(silenced(model, groups, kept), size), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(output(small, size), output(model, size), rtol=1e-2, atol=1e-3)
    assert count.parameters(small) < count.parameters(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_keeping_everything_is_the_identity_to_the_bit(name):
    model, size = made(name)
    groups = units(model, size)
    same = prune(model, groups, select(model.weights, groups, All().widths(model, groups, size)))
    assert all(torch.equal(same.weights[n], value) for n, value in model.weights.items())
    assert torch.equal(output(same, size), output(model, size))


def test_units_of_a_chain_are_rows_their_normalisation_and_the_columns_that_read_them():
    model, size = made("cnn-bn")
    first, _, last = units(model, size)
    assert (first.name, first.width, first.makers) == ("stem.conv", 16, ("stem.conv.weight",))
    assert set(first.rows) == {f"stem.norm.{n}" for n in ("weight", "bias", "running_mean", "running_var")} | {
        "stem.conv.weight"
    }
    assert first.readers == (("features.conv1.weight", 1),)
    assert last.readers == (("classifier.weight", 1),)


def test_a_flattened_image_has_as_many_columns_for_a_filter_as_pixels():
    model, size = made("conv2")
    groups = units(model, size)
    assert groups[1].readers == (("features.fc.weight", 49),)
    small = prune(model, groups, [torch.arange(32), torch.tensor([3]), torch.arange(2048)])
    assert torch.equal(small.weights["features.fc.weight"], model.weights["features.fc.weight"][:, 147:196])


def test_what_is_added_up_keeps_the_same_units():
    groups = units(*made("resnet-tiny"))
    names = {maker for group in groups for maker in group.makers}
    (stem,) = [group for group in groups if group.name == "stem.conv"]
    assert set(stem.makers) == {
        "stem.conv.weight",
        "features.stage1.block1.conv2.weight",
        "features.stage1.block2.conv2.weight",
    }
    assert "classifier.weight" not in names
    assert sum(len(group.makers) for group in groups) == len(names) == 15


def test_the_largest_norms_stay_in_ascending_order():
    model, size = made("cnn-bn", seed=3)
    groups = units(model, size)
    for group, index in zip(groups, select(model.weights, groups, [5, 9, 20]), strict=True):
        norms = model.weights[group.makers[0]].abs().flatten(1).sum(1).tolist()
        best = sorted(range(len(norms)), key=lambda j: (-norms[j], j))[: len(index)]
        assert index.tolist() == sorted(best)


def test_scores_of_joined_layers_add_up():
    model, size = made("resnet-tiny")
    groups = units(model, size)
    index = select(model.weights, groups, [max(1, group.width // 4) for group in groups])
    total = sum(model.weights[name].abs().flatten(1).sum(1).double() for name in groups[0].makers)
    assert index[0].tolist() == sorted(total.argsort(descending=True)[:4].tolist())


@pytest.mark.parametrize("name", ["cnn-bn", "resnet-tiny"])
def test_groups_of_normalisation_keep_as_many_units_each_and_the_network_trains(name):
    model, size = made(name, norm="group")
    groups = units(model, size)
    assert max(group.groups for group in groups) == 4
    kept = select(model.weights, groups, Ratio(0.4).widths(model, groups, size))
    for group, index in zip(groups, kept, strict=True):
        per = group.width // group.groups
        counts = torch.bincount(index // per, minlength=group.groups)
        assert len(set(counts.tolist())) == 1
    small = prune(model, groups, kept)
    x, y = torch.randn(8, *size), torch.arange(8)
    me = Client("a", 0, Samples(x, y), Samples(x[:0], y[:0]))
    trained = train(small, me, SGD(batch=4)).weights
    assert {n: v.shape for n, v in trained.items()} == {n: v.shape for n, v in small.weights.items()}
    with pytest.raises(ConfigError, match="in multiples of"):
        select(model.weights, groups, [group.width - 1 for group in groups])


@pytest.mark.slow
@pytest.mark.parametrize("of", ["parameters", "macs", "bytes"])
@pytest.mark.parametrize("name", ["conv2", "resnet-tiny"])
def test_a_target_is_met_as_closely_as_whole_units_allow(name, of):
    model, size = made(name)
    groups = units(model, size)

    def cost(m):
        if of == "bytes":
            return sum(v.numel() * v.element_size() for v in m.weights.values())
        return count.parameters(m) if of == "parameters" else count.macs(m, size)

    chosen = Target(0.3, of).widths(model, groups, size)
    small = prune(model, groups, select(model.weights, groups, chosen))
    assert 0.27 <= cost(small) / cost(model) <= 0.3
    with pytest.raises(ConfigError, match="larger share"):
        Target(1e-6, of).widths(model, groups, size)


def test_widths_that_do_not_fit_are_refused():
    model, size = made("cnn-bn")
    groups = units(model, size)
    with pytest.raises(ConfigError, match=r"2 widths are given, the network has 3.*stem.conv 16"):
        Widths((4, 4)).widths(model, groups, size)
    with pytest.raises(ConfigError, match=r"17 units of 'stem\.conv'"):
        select(model.weights, groups, [17, 4, 4])
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="share"):
            Ratio(share)


def test_a_device_rebuilds_the_network_from_shapes_without_the_library(monkeypatch):
    model, size = made("resnet-tiny")
    groups = units(model, size)
    small = prune(model, groups, select(model.weights, groups, Ratio(0.5).widths(model, groups, size)))
    sent = decode(encode(small))
    real = builtins.__import__

    def refuse(name, *rest, **more):
        assert not name.startswith("torch_pruning")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert torch.equal(output(sent, size), output(small, size))
    like = forms_of(small.arch, narrowed(small))
    assert [(n, v.shape, v.dtype) for n, v in like.items()] == [(n, v.shape, v.dtype) for n, v in small.weights.items()]


@pytest.mark.parametrize(
    "shapes",
    [{"nowhere": (1,)}, {"classifier.weight": (10, 65)}, {"classifier.weight": (10,)}, {"classifier.bias": (0,)}],
)
def test_shapes_that_are_no_part_of_the_network_are_refused(shapes):
    with pytest.raises(BadMessage, match="no part of network"):
        forms_of(made("cnn-bn")[0].arch, shapes)


def test_without_the_library_the_text_names_the_extra(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *p: None if n == "torch_pruning" else found(n, *p))
    with pytest.raises(Missing, match=r"fedbonsai\[prune\]"):
        units(*made("cnn-bn"))


class Pooled(nn.Module):
    """Four pixels a filter are left by a pool before the linear layer."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.pool, self.last = nn.AdaptiveAvgPool2d(2), nn.Linear(32, 10)

    def forward(self, x):
        return self.last(torch.flatten(self.pool(torch.relu(self.two(torch.relu(self.one(x))))), 1))


class Linear(nn.Module):
    """Two hidden layers, put together by a subclass."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(12, 10)
        self.scale = nn.Parameter(torch.rand(12)) if isinstance(self, Scaled) else 1.0

    def forward(self, x):
        return self.last(self.middle(torch.relu(self.one(x.flatten(1)))))


class Added(Linear):
    def middle(self, x):
        return x + torch.relu(self.two(x))


class Repeated(Linear):
    def middle(self, x):
        return torch.relu(self.two(torch.relu(self.two(x))))


class Scaled(Linear):
    def middle(self, x):
        return torch.relu(self.two(x)) * self.scale


class ReadAgain(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(64, 10), nn.Linear(10, 10)

    def forward(self, x):
        hidden = self.one(x.flatten(1))
        return hidden + self.two(torch.relu(hidden))


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.last = nn.Linear(8 * 64, 10)

    def forward(self, x):
        return self.last(torch.cat([self.one(x), self.two(x)], 1).flatten(1))


def own(kind):
    name = f"test-{kind.__name__.lower()}"
    network(name)(lambda: kind())
    return Model.init(Arch(name, {}), 0), (1, 8, 8)


@pytest.mark.parametrize("kind", [Pooled, Added, Repeated], ids=lambda kind: kind.__name__)
def test_pools_sums_and_layers_that_are_used_twice_shrink_as_they_should(kind):
    model, size = own(kind)
    groups = units(model, size)
    kept = select(model.weights, groups, Ratio(0.5).widths(model, groups, size))
    gap = output(prune(model, groups, kept), size) - output(silenced(model, groups, kept), size)
    assert float(gap.abs().max()) < 1e-6
    assert ("two.weight", 1) in groups[0].readers


@pytest.mark.parametrize("kind", [Scaled, ReadAgain, Joined], ids=lambda kind: kind.__name__)
def test_a_network_that_cannot_be_taken_apart_is_refused_before_it_is_sent(kind):
    with pytest.raises(ConfigError, match=f"network 'test-{kind.__name__.lower()}' cannot be pruned by units"):
        units(*own(kind))


@pytest.mark.slow
def test_a_large_residual_network_too():
    model = Model.init(Arch("resnet18", {}), 0)
    size = (3, 32, 32)
    groups = units(model, size)
    kept = select(model.weights, groups, Target(0.3, "bytes").widths(model, groups, size))
    gap = output(prune(model, groups, kept), size) - output(silenced(model, groups, kept), size)
    assert len(groups) == 12
    assert float(gap.abs().max()) < 1e-5


# --- networks of one's own ---------------------------------------------------------------------------------------------


class Own(nn.Module):
    """A network from its parts and a forward pass."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.way = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.way(self, x)


def of_ones_own(name, forward, **parts):
    network(f"test-filters-{name}")(lambda: Own(forward, **copy.deepcopy(parts)))
    return Model.init(Arch(f"test-filters-{name}"), 0)


def plain(self, x):
    return self.out(self.last(self.norm(self.first(x)).relu()).relu().mean((2, 3)))


def parts(norm, **more):
    first, last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
    return {"first": first, "norm": norm, "last": last, "out": nn.Linear(6, 5), **more}


def shuffled(self, x):
    x = self.norm(self.first(x)).relu()
    return self.out(self.last(x.flip(1)).relu().mean((2, 3)))


def written(self, x):  # a normalisation of groups that no module makes
    x = torch.nn.functional.group_norm(self.norm(self.first(x)), 4)
    return self.out(self.last(x).relu().mean((2, 3)))


@pytest.mark.parametrize("norm", [nn.GroupNorm(4, 8), nn.GroupNorm(1, 8), nn.BatchNorm2d(8)], ids=str)
def test_a_wrong_order_of_channels_is_found_whatever_the_normalisation(norm):
    model = of_ones_own(f"plain-{norm}", plain, **parts(norm))
    assert [group.name for group in units(model, (2, 6, 6))] == ["first", "last"]
    for name, forward in (("shuffled", shuffled), ("written", written)):
        with pytest.raises(ConfigError, match="does not compute what the others did"):
            units(of_ones_own(f"{name}-{norm}", forward, **parts(norm)), (2, 6, 6))


def test_what_the_weights_hide_is_found():
    def scaled(self, x):
        return self.out(self.last((self.norm(self.first(x)) * self.scale).relu()).relu().mean((2, 3)))

    more = parts(nn.GroupNorm(2, 8), scale=nn.Parameter(torch.ones(8, 1, 1)))
    with pytest.raises(ConfigError, match="cannot be pruned by units"):
        units(of_ones_own("scaled", scaled, **more), (2, 6, 6))
    still = parts(nn.GroupNorm(2, 8))
    nn.init.zeros_(still["out"].weight)  # all outputs are the bias
    with pytest.raises(ConfigError, match="does not compute what the others did"):
        units(of_ones_own("still", shuffled, **still), (2, 6, 6))


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.GRU(6, 6, batch_first=True), "a GRU"),
        (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), "a MultiheadAttention"),
        (nn.ConvTranspose1d(4, 4, 3, padding=1), "a ConvTranspose1d"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_that_cannot_be_resized_are_named(layer, kind):
    def forward(self, x):
        x = self.layer(x[:, 0])
        return self.out((x[0] if isinstance(x, tuple) else x).flatten(1))

    model = of_ones_own(f"kind-{kind}", forward, layer=layer, out=nn.Linear(24, 5))
    with pytest.raises(ConfigError, match=rf"test-filters-.*cannot be pruned by units: .*{kind}.*use masks"):
        units(model, (1, 4, 6))


def test_weights_that_are_shared_or_computed_are_named():
    def forward(self, x):
        return self.out(self.b(self.a(x.flatten(1)).relu()).relu())

    def tied():
        net = Own(forward, a=nn.Linear(9, 9), b=nn.Linear(9, 9), out=nn.Linear(9, 5))
        net.b.weight = net.a.weight
        return net

    network("test-filters-tied")(tied)
    with pytest.raises(ConfigError, match="'b' is a Linear that shares its weights"):
        units(Model.init(Arch("test-filters-tied"), 0), (1, 3, 3))
    made_of = {"a": weight_norm(nn.Linear(9, 7)), "b": spectral_norm(nn.Linear(7, 6)), "out": nn.Linear(6, 5)}
    with pytest.raises(ConfigError, match="'a' is a Linear whose weight is computed from others"):
        units(of_ones_own("computed", forward, **made_of), (1, 3, 3))


def test_a_computed_weight_is_named_beside_a_parameter_of_the_whole_too():
    class Inner(Own):
        def __init__(self, forward, **parts):
            super().__init__(forward, **parts)
            self.gain = nn.Parameter(torch.ones(2))

    def inside(self, x):
        return self.b(self.a(x.flatten(1)).relu()).relu()

    inner = Inner(inside, a=nn.Linear(9, 7), b=weight_norm(nn.Linear(7, 6)))
    model = of_ones_own("beside", lambda self, x: self.out(self.inner(x)), inner=inner, out=nn.Linear(6, 5))
    with pytest.raises(ConfigError, match=r"'inner.b'.* is a Linear whose weight|'inner.b', a Linear whose weight"):
        units(model, (1, 3, 3))


def test_what_does_not_touch_the_units_stays_as_it_is():
    def forward(self, x):
        return self.out(self.middle(self.rnn(x[:, 0])[0][:, -1]).relu())

    rnn = nn.LSTM(6, 7, batch_first=True)
    model = of_ones_own("ahead", forward, rnn=rnn, middle=nn.Linear(7, 12), out=nn.Linear(12, 5))
    groups = units(model, (1, 4, 6))
    assert [group.name for group in groups] == ["middle"]
    small = prune(model, groups, select(model.weights, groups, [4]))
    assert small.weights["rnn.weight_ih_l0"].shape == (28, 6)
    with pytest.raises(ConfigError, match=r"keep.share = 0.2 of the macs cannot be met: .* 0\.9\d* of them stay"):
        Target(0.2, "macs").widths(model, groups, (1, 4, 6))
