"""A network that is given in Python: an object, or what makes one; it is copied, its weights are where the run begins."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fedbonsai
from fedbonsai import arch
from fedbonsai.arch import Arch, networks
from fedbonsai.errors import ConfigError
from fedbonsai.model import blank
from fedbonsai.runs import given, recipes
from fedbonsai.runs.setup import federation, initial_model

RUN = {"rounds": 2, "data__clients": 3, "data__limit": 150, "progress": False}


class Net(nn.Module):
    """Tied layers, a whole number as a buffer, a frozen gain, and an attribute of its own."""

    def __init__(self, width: int = 8, classes: int = 10, scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, width), nn.Linear(width, width)
        self.third, self.out = nn.Linear(width, width), nn.Linear(width, classes)
        self.third.weight = self.second.weight
        self.gain = nn.Parameter(torch.full((width,), 1.5), requires_grad=False)
        self.register_buffer("order", torch.arange(width).flip(0))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(x.flatten(1)).relu()).relu()).relu()
        return self.scale * self.out(x[:, self.order] * self.gain)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(5, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.table(x))


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arch, "_builders", networks())  # other tests need not meet them
    monkeypatch.chdir(tmp_path)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another process, which nobody gave anything."""
    left = {name: build for name, build in networks().items() if not name.startswith(arch.GIVEN)}
    monkeypatch.setattr(arch, "_builders", left)
    arch.renew()


@pytest.mark.slow
def test_an_objects_weights_are_where_a_run_begins_and_the_object_stays_as_it_is():
    net = Net()
    for value in net.parameters():
        value.grad = torch.ones_like(value)
    before = copy.deepcopy(net.state_dict())
    config = recipes.load("fedavg", "", {"model.name": given.hold(net), "data.clients": 3, "data.limit": 150})
    model = initial_model(config, federation(config))
    assert all(model.weights[name].equal(before[name]) for name in model.weights)
    assert set(before) - set(model.weights) == {"third.weight"}  # it travels once
    assert model.weights["order"].dtype == torch.int64
    made = model.build()
    assert made.third.weight is made.second.weight
    assert not made.gain.requires_grad
    assert all(value.grad is None for value in made.parameters())
    run = fedbonsai.run("fedavg", model=net, **RUN)
    assert all(before[name].equal(value) for name, value in net.state_dict().items())
    assert all(value.grad.eq(1).all() for value in net.parameters())
    assert not run.model.weights["first.weight"].equal(net.first.weight)
    assert run.model.weights["gain"].equal(net.gain)
    net.scale = 100.0  # what becomes of it later is no part of the run
    assert run.model.build().scale == 1.0


@pytest.mark.slow
def test_an_object_and_a_registered_builder_of_the_same_weights_give_the_same_bytes():
    arch.network("as-an-object")(Net)
    drawn = fedbonsai.run("prunefl", model="as-an-object", name="by-name", **RUN)
    config = recipes.load(
        "prunefl", "", {"model.name": "as-an-object", "data.clients": 3, "data.limit": 150, "rounds": 2}
    )
    net = initial_model(config, federation(config)).build()
    run = fedbonsai.run("prunefl", model=net, name="by-object", **RUN)
    ways = (run, fedbonsai.run("prunefl", model=Net, name="by-class", **RUN))
    for each in ways:
        assert all(each.model.weights[name].equal(value) for name, value in drawn.model.weights.items())
        assert each.bytes["up"] == drawn.bytes["up"]


def test_what_makes_one_is_given_what_the_data_say_but_not_what_it_has_already():
    for make, options in (
        (Net, {"classes": 10}),  # a width without a height is that of layers, not of pictures
        (lambda classes: Net(5, classes), {"classes": 10}),
        (partial(Net, width=6, classes=10), {}),
    ):
        config = recipes.load("fedavg", "", {"model.name": given.hold(make), "data.clients": 3, "data.limit": 150})
        assert initial_model(config, federation(config)).arch.options == options
    config = recipes.load("fedavg", "", {"model.name": given.hold(Net), "model.options": {"width": 3}})
    assert initial_model(config, federation(config)).weights["first.weight"].shape == (3, 64)


def test_names_tell_networks_apart_by_all_but_their_weights():
    name = given.hold(Net())
    assert name.startswith("python/Net-")
    assert given.hold(Net()) == name
    others = [Net(9), Net(scale=2.0), nn.Sequential(Net()), nn.Sequential(nn.Dropout(0.1), Net()), Net, partial(Net, 9)]
    names = [given.hold(each) for each in (*others, nn.Sequential(nn.Dropout(0.2), Net()), partial(Net, 8))]
    assert len({name, *names}) == 9

    def defined(gain: float) -> type[nn.Module]:  # as a notebook's cell that is run again
        class Cell(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return gain * super().forward(x)

        return Cell

    one, two, same = (given.hold(defined(gain)(2, 2)) for gain in (1.0, 2.0, 1.0))
    assert one == same != two
    x = torch.ones(1, 2)
    first, second = (Arch(name).build() for name in (same, two))
    second.load_state_dict(first.state_dict())
    assert second(x).equal(2 * first(x))


@pytest.mark.slow
def test_a_run_of_before_keeps_its_class_when_the_name_is_defined_anew():
    wide = fedbonsai.run("fedavg", model=Net(12), name="wide", **RUN)
    narrow = fedbonsai.run("fedavg", model=Net(4), name="narrow", **RUN)
    assert [run.model.build().first.out_features for run in (wide, narrow)] == [12, 4]


def test_it_takes_whole_numbers_where_its_first_layer_is_a_table():
    assert blank(Arch(given.hold(Tokens())), (3,)).dtype == torch.int64
    tied = Arch(given.hold(Net()))
    with torch.device("meta"):
        made = tied.build()
    assert made.third.weight is made.second.weight
    assert all(value.is_meta for value in made.state_dict().values())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"model": Net(), "fleet__kind": "pool"}, "put it into a module and give its name"),
        ({"model": Net, "fleet__kind": "flower"}, "needs a network that other processes can find"),
        ({"model": 3}, "model = int: expected a network"),
        ({"model": Net(), "model__name": "cnn-bn"}, "exclude each other"),
        ({"model": Net(), "model__options": {"width": 3}}, r"does not take \['width'\]"),
        ({"model": nn.Sequential(nn.Flatten(), nn.LazyLinear(10))}, "1.weight is lazy"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 3))}, r"gives \[\d+, 3\].*the data has 10 classes"),
        ({"model": lambda: 3}, "gives a int: expected a network"),
        ({"model": lambda missing: Net(missing)}, "needs missing, which data do not say"),
        ({"model": nn.Linear(64, 10, device="meta")}, "meta device"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(settings, text, tmp_path):
    with pytest.raises(ConfigError, match=text):
        fedbonsai.run("fedavg", **RUN, **settings)
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_copied_is_refused():
    net = Net()
    net.held = net.first.weight * 2  # of a graph
    with pytest.raises(ConfigError, match=r"the Net cannot be copied.*give a function or class"):
        given.hold(net)


@pytest.mark.slow
def test_another_process_gives_it_again(monkeypatch):
    run = fedbonsai.run("fedavg", model=Net(), name="again", **RUN)
    weights = run.model.weights
    forget(monkeypatch)
    left = fedbonsai.load(run.path)
    assert left.score == run.score
    with pytest.raises(ConfigError, match="given in Python to another process: give it again"):
        left.model.build()
    for other in (Net(9), nn.Linear(3, 3), Tokens, lambda missing: Net()):
        with pytest.raises(ConfigError, match=r"again began with another network than this \w+"):
            fedbonsai.load(run.path, model=other)
    made = fedbonsai.load(run.path, model=Net()).model.build()  # weights do not matter
    assert all(made.state_dict()[name].equal(value) for name, value in weights.items())
    plain = fedbonsai.run("fedavg", name="plain", **RUN)
    with pytest.raises(ConfigError, match="was not given in Python: leave `model` out"):
        fedbonsai.load(plain.path, model=Net())


class Stop:
    """Interrupts a run after its first round."""

    def begin(self, config, scene, first):
        pass

    def round(self, row, model):
        raise KeyboardInterrupt

    def end(self, rows):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("trainable", [(), ("out.*",)])
def test_an_interrupted_run_goes_on_with_it_in_another_process(monkeypatch, trainable):
    settings = {**RUN, "model__trainable": trainable}
    net = Net()
    whole = fedbonsai.run("fedavg", model=net, name="whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        fedbonsai.run("fedavg", model=net, name="part", observers=[Stop()], **settings)
    forget(monkeypatch)
    with pytest.raises(ConfigError, match="give it again"):
        fedbonsai.run("fedavg", name="part", resume=True, **settings)
    with pytest.raises(ConfigError, match="began with another network"):
        fedbonsai.run("fedavg", model=Net(9), name="part", resume=True, **settings)
    done = fedbonsai.run(
        "fedavg", model=Net(), name="part", resume=True, **settings
    )  # other weights than it began with
    assert len(done.metrics) == 2
    assert all(done.model.weights[name].equal(value) for name, value in whole.model.weights.items())


@pytest.mark.slow
def test_a_name_is_the_same_in_every_process():
    text = (
        f"from {__name__} import Net, given; from functools import partial;"
        "print(given.hold(Net()), given.hold(Net), given.hold(partial(Net, 3)))"
    )
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", text], cwd=here, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [given.hold(Net()), given.hold(Net), given.hold(partial(Net, 3))]
