"""Parts of networks by hand: which units, where their values are in the whole, and who has which ratio."""

from importlib.resources import files

import pytest
import torch

from fedbonsai.arch import Arch
from fedbonsai.core import Scope, scope
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.runs import recipes
from fedbonsai.runs.setup import clock_of, run_context
from fedbonsai.stages.pruning.units import Units, units
from fedbonsai.stages.width.capacity import ByProfile, Clients, Shares
from fedbonsai.stages.width.division import step_of
from fedbonsai.stages.width.holders import output_of
from fedbonsai.stages.width.slices import cut, window
from fedbonsai.stages.width.submodel import scaled
from fedbonsai.training.called import called
from fedbonsai.training.optimizers import SGD


def lists(found):
    return [index.tolist() for index in found]


def test_windows_of_units():
    plain, grouped = Units("a", 5, 1, (), (), ()), Units("b", 8, 2, (), (), ())
    assert lists(window([plain, grouped], 0.5)) == [[0, 1, 2], [0, 1, 4, 5]]  # ceil(2.5), and half of each group
    assert lists(window([plain, grouped], 0.5, 4)) == [[0, 1, 4], [0, 1, 4, 5]]  # from unit 4 on, and around
    assert lists(window([plain, grouped], 0.5, 3)) == [[0, 3, 4], [0, 3, 4, 7]]
    assert lists(window([plain, grouped], 0.01)) == [[0], [0, 4]], "one unit at least"
    assert lists(window([plain, grouped], 1.0, 2)) == [[0, 1, 2, 3, 4], list(range(8))]


def test_values_go_back_to_where_they_came_from():
    pytest.importorskip("torch_pruning")
    model = Model.init(Arch("mlp", {"channels": 1, "size": 2, "classes": 3, "widths": (4, 3)}), 0)
    groups = units(model, (1, 2, 2))
    part = cut(model, groups, [torch.tensor([1, 3]), torch.tensor([0, 2])], 0.5)
    names = ("stem.fc1.weight", "features.fc2.weight", "classifier.weight")
    assert [tuple(part.model.weights[name].shape) for name in names] == [(2, 4), (2, 2), (3, 2)]
    whole, masks = part.scattered(part.model.weights, model.weights)
    assert masks["stem.fc1.weight"].sum(1).tolist() == [0, 4, 0, 4]
    assert masks["stem.fc1.bias"].tolist() == [False, True, False, True]
    second = torch.zeros(3, 4, dtype=torch.bool)
    second[[0, 0, 2, 2], [1, 3, 1, 3]] = True
    assert torch.equal(masks["features.fc2.weight"], second)
    assert masks["classifier.weight"].sum(0).tolist() == [3, 0, 3]
    assert "classifier.bias" not in masks, "all of it is held"
    for name, value in model.weights.items():
        held = masks.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(whole[name], torch.where(held, value, torch.zeros_like(value)))


KINDS = [
    ("cnn-bn", {"size": 8, "norm": "group"}, (1, 8, 8)),
    pytest.param("resnet-tiny", {"channels": 1, "size": 8}, (1, 8, 8), marks=pytest.mark.slow),
    ("gru", {"length": 6, "features": 3, "classes": 3, "hidden": 6}, (6, 3)),
    ("tiny-transformer", {"length": 6, "features": 3, "width": 8, "heads": 2, "layers": 1, "hidden": 6}, (6, 3)),
]


@pytest.mark.parametrize(("name", "options", "size"), KINDS)
def test_every_window_of_every_kind_of_layer_is_a_network_and_goes_back(name, options, size):
    pytest.importorskip("torch_pruning")
    model = Model.init(Arch(name, options), 0)
    groups = units(model, size)
    part = cut(model, groups, window(groups, 0.5, 1), 0.5)
    assert part.model.build().eval()(torch.zeros(2, *size)).shape[0] == 2
    whole, masks = part.scattered(part.model.weights, model.weights)
    for each, value in model.weights.items():
        held = masks.get(each, torch.ones_like(value, dtype=torch.bool))
        assert int(held.sum()) == part.model.weights[each].numel()
        assert torch.equal(whole[each][held], value[held])


def test_outputs_of_narrower_layers_are_scaled_and_no_others():
    pytest.importorskip("torch_pruning")
    model = Model.init(Arch("mlp", {"channels": 1, "size": 2, "classes": 3, "widths": (4,)}), 0)
    part = cut(model, units(model, (1, 2, 2)), [torch.tensor([0, 1])], 0.5).model
    net, x = part.build(), torch.randn(5, 1, 2, 2)
    w = part.weights
    hidden = (x.flatten(1) @ w["stem.fc1.weight"].T + w["stem.fc1.bias"]) / 0.5
    with scaled(net, model.arch, 0.5):
        found = net(x)
    assert torch.allclose(found, hidden.relu() @ w["classifier.weight"].T + w["classifier.bias"], atol=1e-6)
    assert not torch.allclose(found, net(x)), "outside, nothing is scaled"


def test_what_takes_the_place_of_a_parameter_does_so_under_all_names_and_goes_again():
    one, two = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    two.weight = one.weight
    net, x = (
        torch.nn.Sequential(one, one, two),
        torch.tensor([[1.0, 2.0]]),
    )  # a module that is there twice, and a tied weight
    half = torch.tensor([[0.5, 0.0], [0.0, 0.5]], requires_grad=True)
    for _ in range(2):
        found = called(net, {"0.weight": half}, x)
        assert found.tolist() == [[0.125, 0.25]]
        assert torch.autograd.grad(found.sum(), half)[0].tolist() == [[0.75, 1.5], [0.75, 1.5]]
    assert [layer.weight is one.weight for layer in net] == [True] * 3
    assert isinstance(one.weight, torch.nn.Parameter)


IDS = [f"{number:02d}" for number in range(10)]


def no_step(ratio):
    raise AssertionError("nothing that is given needs a step")


def test_ratios_are_dealt_out_by_shares():
    found = Shares((1.0, 0.5, 0.25), (0.2, 0.3, 0.5)).ratios(IDS, 0, no_step)
    assert sorted(found.values()) == [0.25] * 5 + [0.5] * 3 + [1.0] * 2
    assert found != Shares((1.0, 0.5, 0.25), (0.2, 0.3, 0.5)).ratios(IDS, 1, no_step)
    assert sorted(Shares((1.0, 0.5)).ratios(IDS, 0, no_step).values()) == [0.5] * 5 + [1.0] * 5


def test_ratios_by_id():
    assert Clients({"03": 0.5}, 0.25).ratios(["03", "04"], 0, no_step) == {"03": 0.5, "04": 0.25}
    with pytest.raises(ConfigError, match="names devices"):
        Clients({"x": 0.5}).ratios(IDS, 0, no_step)


def test_what_are_no_ratios_is_refused():
    for make, why in (
        (lambda: Shares(()), "expected ratios"),
        (lambda: Shares((1.5,)), "expected ratios"),
        (lambda: Shares((1.0, 0.5), (0.5, 0.6)), "sum to 1"),
        (lambda: Shares((1.0, 0.5), (1.0,)), "expected 2 shares"),
        (lambda: Clients({"a": 0}), "expected ratios"),
        (lambda: Clients({"a": "half"}), "expected ratios"),
        (lambda: Clients(others=0.0), "others"),
        (lambda: ByProfile(slack=0.0), "slack"),
    ):
        with pytest.raises(ValueError, match=why):
            make()


@pytest.mark.slow
def test_ratios_by_profile_keep_up_with_the_fastest_and_fit_into_memory(tmp_path):
    """Of two profiles of which one computes three times as slowly, and a third with too little memory for the whole."""
    pytest.importorskip("torch_pruning")
    sheet = files("fedbonsai.devices").joinpath("profiles/amd-epyc.toml").read_text(encoding="utf-8")
    # by multiplications alone, in proportion to them
    sheet = sheet.replace("331400000.0", "1e15").replace("6.084e-05", "0.0")
    head, _, rest = sheet.partition("[structured]")
    _, _, tail = rest.partition("[masked]")
    sheet = f'{head}[structured]\nmark = "assumed"\nsource = "a test"\naffine = [0.0, 1.0, 1.0]\n\n[masked]{tail}'
    slow = sheet.replace("61620000000.0", "20540000000.0").replace("22560000000.0", "7520000000.0")
    small = sheet.replace("25280000000.0", "259000000.0")
    for name, text in (("fast", sheet), ("slow", slow), ("small", small)):
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    model = Model.init(Arch("cnn-bn", {"size": 28}), 0)
    groups = units(model, (1, 28, 28))

    def step(ratio):
        return step_of(cut(model, groups, window(groups, ratio), ratio).model, (1, 28, 28), SGD(batch=32))

    names = ", ".join(
        f"{tmp_path}/{name}.toml {share}" for name, share in (("fast", 0.4), ("slow", 0.3), ("small", 0.3))
    )
    found = ByProfile((1.0, 0.5, 0.25), names).ratios(IDS, 0, step)
    assert sorted(found.values()) == [0.25] * 3 + [0.5] * 3 + [1.0] * 4
    assert sorted(ByProfile((1.0, 0.5, 0.25), names, slack=3.1).ratios(IDS, 0, step).values()) == [0.25] * 3 + [1.0] * 7
    with pytest.raises(ConfigError, match="knows no devices"):
        ByProfile().ratios(IDS, 0, step)


def test_a_profile_without_devices_takes_those_of_the_clock():
    more = {"method.capacity": {"name": "profile"}, "clock.devices": "raspberry-pi-4 0.5, jetson-nano 0.5"}
    config = recipes.load("heterofl", "", more)
    assert config.method.capacity.devices == "raspberry-pi-4 0.5, jetson-nano 0.5"
    with pytest.raises(ConfigError, match="knows no devices"):
        recipes.load("heterofl", "", {"method.capacity": {"name": "profile"}})


@pytest.mark.slow
def test_who_is_weak_by_profile_is_who_is_weak_by_the_clock():
    """A Raspberry Pi 4 keeps up with a Jetson by half of the channels, of so small a network."""
    pytest.importorskip("torch_pruning")
    devices = "raspberry-pi-4 0.5, jetson-nano 0.5"
    more = {"method.capacity": {"name": "profile"}, "clock.devices": devices, "seed": 3, "method.optimizer.batch": 32}
    config = recipes.load("heterofl", "", more)
    made = run_context(config)
    with scope(made.fleet, Scope("run", 3, -1, 0)) as open_:
        ratios = made.method.begin(made.model, open_, made.server).division.ratios
    profiles = clock_of(config.clock, list(ratios), 3).profiles
    assert {(profiles[id].name, ratio) for id, ratio in ratios.items()} == {
        ("raspberry-pi-4", 0.5),
        ("jetson-nano", 1.0),
    }


def test_the_output_layer():
    found = output_of(Model.init(Arch("mlp", {"size": 2, "classes": 3}), 0), (1, 2, 2))
    assert (found.names, found.classes) == (("classifier.weight", "classifier.bias"), 3)
