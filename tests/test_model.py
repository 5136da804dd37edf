"""A network object serves many clients: what is trained is what was given, and nothing else is remembered."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fedbonsai import arch, training
from fedbonsai.arch import Arch, network, networks, state
from fedbonsai.cached_module import CachedModule
from fedbonsai.core import Client, Samples
from fedbonsai.errors import BadMessage, ConfigError
from fedbonsai.model import Model, cached_module, parameter_specs
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import Mean, dtype_of, seeded


def people(count: int = 30, seed: int = 0) -> Client:
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 1, 4, 4, generator=draw), torch.arange(count) % 3
    return Client("a", 5, Samples(x, y), Samples(x[:0], y[:0]))


class Net(nn.Module):
    """16 inputs, 3 scores, with whatever a test puts between."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.between, self.out = nn.Linear(16, 8), between or nn.Identity(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.between(F.relu(self.first(x.flatten(1)))))


class Counting(nn.Module):
    """Behaves by how often it was called, and keeps that in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.log = 0, list[float]()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(float(x.detach().mean()))
        self.last = x.detach()
        return x * (1 + 0.1 * self.calls + 0.01 * len(self.log))


class Buffered(nn.Module):
    """Keeps what it saw in buffers: in place, by assignment, beside the state, and in one that begins as nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inside", torch.zeros(8))
        self.register_buffer("assigned", torch.ones(8))
        self.register_buffer("beside", torch.zeros(8), persistent=False)
        self.register_buffer("later", None)

    def forward(self, x: Tensor) -> Tensor:
        seen = x.detach().mean(0)
        self.inside += 0.1 * seen
        self.assigned = 0.9 * self.assigned + 0.1 * seen
        self.beside += seen
        self.later = seen if self.later is None else self.later + seen
        return x + self.inside + self.assigned + self.beside + self.later


class Own(nn.Module):
    """Draws from generators of its own; with a lock it cannot be copied, and is built anew each time."""

    def __init__(self, lock: bool = False) -> None:
        super().__init__()
        self.draw, self.other = torch.Generator().manual_seed(3), np.random.default_rng(4)
        self.lock = threading.Lock() if lock else None

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(8, generator=self.draw) * self.other.random()


class Constant(nn.Module):
    """Mixes by constants that the builder draws, which stand in no tensor of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.order, self.gain, self.sign = torch.randperm(8), np.random.rand(), random.choice([-1.0, 1.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.sign * self.gain * x[:, self.order]


class Draws(nn.Module):
    """Draws in every way that a forward pass may."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return F.dropout(x, 0.2) * (torch.rand(()) + np.random.rand() + random.random())


class Wrapped(nn.Module):
    """Holds a layer of its own in a list, as a link to it and not a part."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.links = [self.inner]

    def forward(self, x: Tensor) -> Tensor:
        return self.links[0](x)


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, 0.3, batch_first=True)


BETWEEN = {
    "plain": nn.Identity,
    "cumulative": lambda: nn.BatchNorm1d(8, momentum=None),
    "normed": lambda: nn.BatchNorm1d(8),
    "counting": Counting,
    "buffered": Buffered,
    "own": Own,
    "locked": lambda: Own(lock=True),
    "constant": Constant,
    "draws": Draws,
    "wrapped": Wrapped,
    "attention": lambda: nn.Sequential(nn.Unflatten(1, (1, 8)), attention(), nn.Flatten()),
    "rrelu": nn.RReLU,
    "spectral": lambda: parametrizations.spectral_norm(nn.Linear(8, 8)),
    "weighted": lambda: parametrizations.weight_norm(nn.Linear(8, 8)),
}
for _name, _between in BETWEEN.items():
    network(f"model-{_name}")(lambda between=_between: Net(between()))


def trained(name: str, **change: object) -> dict[str, Tensor]:
    start = Model.init(Arch(name), 1)
    return dict(training.train(start, people(), replace(SGD(lr=0.05, batch=8, momentum=0.5), **change)).weights)


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def digest(weights: dict[str, Tensor]) -> str:
    return repr({name: value.double().sum().item() for name, value in weights.items()})


@pytest.mark.parametrize("name", BETWEEN)
def test_training_is_a_function_of_its_arguments(name):
    arch.renew()
    first = trained(f"model-{name}")
    np.random.rand(), random.random(), torch.rand(3)
    training.train(Model.init(Arch(f"model-{name}"), 2), people(20, 7), SGD(lr=0.3))  # somebody else comes between
    training.evaluate(Model.init(Arch(f"model-{name}"), 2), people(20, 7).train)
    assert equal(first, trained(f"model-{name}"))
    arch.renew()
    assert equal(first, trained(f"model-{name}"))


@pytest.mark.slow
def test_training_is_the_same_in_another_process():
    names = [f"model-{name}" for name in BETWEEN]
    code = f"import torch; torch.set_num_threads(1)\nfrom tests.test_model import *\nfor n in {names}: print(digest(trained(n)))"
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == [digest(trained(name)) for name in names]


@pytest.mark.parametrize("name", ["mlp", "cnn-bn", "lenet5", "resnet-tiny"])
def test_shipped_networks_too(name):
    options = {"channels": 1, "size": 16, "classes": 3}
    arch = Arch(name)
    start = Model.init(Arch(name, {key: value for key, value in options.items() if key in arch.takes()}), 0)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 1, 16, 16, generator=draw), torch.arange(12) % 3
    me = Client("a", 5, Samples(x, y), Samples(x[:0], y[:0]))
    first = training.train(start, me, SGD(batch=6)).weights
    training.train(start, replace(me, seed=6), SGD(batch=4, lr=0.5))
    assert equal(first, training.train(start, me, SGD(batch=6)).weights)


def test_global_generators_are_lent_and_come_back():
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    wanted = torch.rand(2), np.random.rand(), random.random()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    trained("model-draws")
    with pytest.raises(ZeroDivisionError), seeded(4):
        raise ZeroDivisionError(torch.rand(1), np.random.rand(), random.random())
    assert torch.equal(torch.rand(2), wanted[0])
    assert (np.random.rand(), random.random()) == wanted[1:]


def test_who_draws_in_training():
    assert training.draws(Model.init(Arch("model-draws"), 0), torch.zeros(2, 1, 4, 4))
    assert training.draws(Model.init(Arch("model-attention"), 0), torch.zeros(2, 1, 4, 4))
    assert not training.draws(Model.init(Arch("model-cumulative"), 0), torch.zeros(2, 1, 4, 4))


def test_a_builder_defined_anew_counts():
    network("model-again")(lambda: Net())
    start = Model.init(Arch("model-again"), 0)
    before, shapes = training.evaluate(start, people().train), parameter_specs(Arch("model-again"))
    network("model-again")(lambda: nn.Sequential(Net(), nn.ReLU()))
    assert parameter_specs(Arch("model-again")).keys() != shapes.keys()
    with pytest.raises(BadMessage, match="do not fit"):
        training.evaluate(start, people().train)

    class Zero(Net):
        def forward(self, x: Tensor) -> Tensor:
            return 0.0 * super().forward(x)

    network("model-again")(lambda: Zero())
    assert training.evaluate(start, people().train).loss == pytest.approx(np.log(3)) != before.loss


def test_what_a_builder_refers_to_may_change_between_runs():
    kinds = [nn.Identity]
    network("model-cell")(lambda: nn.Sequential(Net(), kinds[0]()))
    start = Model.init(Arch("model-cell"), 0)
    before = training.evaluate(start, people().train).loss
    kinds[0] = nn.Softmax
    arch.renew()  # as every run does before it begins
    with pytest.warns(UserWarning, match="Implicit dimension"):
        assert training.evaluate(start, people().train).loss != before


def test_training_by_hand_sees_a_class_that_changed():
    def build() -> nn.Module:
        return Cell()

    class Cell(Net):
        pass

    network("model-by-hand")(build)
    start = Model.init(Arch("model-by-hand"), 0)
    before, losses = trained("model-by-hand"), [training.evaluate(start, people().train).loss]

    class Cell(Net):  # noqa: F811  as a notebook's cell that is run again
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    losses.append(training.evaluate(start, people().train).loss)
    after = trained("model-by-hand")
    assert losses[0] != losses[1]
    assert not equal(before, after)
    slopes = training.gradient(start, people().train)
    Cell.forward = lambda self, x: 0.0 * Net.forward(self, x)
    assert not equal(slopes, training.gradient(start, people().train))
    assert training.evaluate(start, people().train).loss == pytest.approx(np.log(3))


SHARED = torch.ones(8)


class Sharing(nn.Module):
    """Registers a constant of its module as a buffer, twice, with a view of it, and changes it in training."""

    def __init__(self) -> None:
        super().__init__()
        self.alias = SHARED
        self.register_buffer("seen", SHARED)
        self.register_buffer("again", SHARED)
        self.register_buffer("part", SHARED[2:4])

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.mul_(1.5)
        return x * self.again * self.alias * self.part.sum()


def test_a_constant_that_is_registered_as_a_buffer_is_not_changed():
    network("model-sharing")(lambda: Net(Sharing()))
    one, two = trained("model-sharing"), trained("model-sharing")
    assert equal(one, two)
    assert bool((SHARED == 1).all())
    assert bool((one["between.seen"] > 1).all())
    left, right = (Arch("model-sharing").build().between for _ in range(2))
    assert left.seen is left.again is left.alias
    left.seen.zero_()
    assert bool((left.part == 0).all())
    assert bool((right.seen == 1).all())


class Tied(nn.Module):
    """One weight in two layers, one layer under two names, one buffer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.b.weight = self.a.weight
        self.again = self.out
        self.register_buffer("one", torch.ones(1, 2, 2, 4).permute(0, 3, 1, 2))
        self.a.register_buffer("two", self.one)

    def forward(self, x: Tensor) -> Tensor:
        self.a.two.mul_(1.5)
        return self.again(F.relu(self.b(F.relu(self.a(x.flatten(1)))))) * self.one.mean()


def test_tied_tensors_have_one_owner_and_learn_as_one():
    network("model-tied")(Tied)
    start = Model.init(Arch("model-tied"), 0)
    assert list(start.weights) == ["one", "a.weight", "a.bias", "b.bias", "out.weight", "out.bias"]
    for layout in (False, True):
        found = training.train(start, people(), SGD(lr=0.1, batch=30, channels_last=layout)).weights
        net = start.build()
        assert net.b.weight is net.a.weight
        assert net.again is net.out
        assert net.a.two is net.one
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        F.cross_entropy(net(people().train.x), people().train.y).backward()
        optimizer.step()
        assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in state(net).items())
    wide = start.replace({name: value.double() for name, value in start.weights.items()}).build()
    assert wide.b.weight is wide.a.weight
    assert {value.dtype for value in state(wide).values()} == {torch.float64}


class Partly(nn.Module):
    """A frozen layer, a parameter that nothing uses, one that only some batches use."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.out = nn.Linear(16, 8), nn.Linear(8, 3)
        self.frozen.requires_grad_(False)
        self.unused, self.seldom = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.out(F.relu(self.frozen(x.flatten(1))))
        return scores + self.seldom if len(x) < 8 else scores


@pytest.mark.parametrize("change", [{}, {"momentum": 0.9, "weight_decay": 0.1}, {"proximal": 0.5, "weight_decay": 0.1}])
def test_what_has_no_gradient_is_left_alone_as_by_torch(change):
    network("model-partly")(Partly)
    start = Model.init(Arch("model-partly"), 0)
    sgd = replace(SGD(lr=0.1, batch=8), **change)  # 8, 8, 8 and 6 samples
    found = training.train(start, people(), sgd).weights
    assert all(torch.equal(found[n], start.weights[n]) for n in ("frozen.weight", "frozen.bias", "unused"))
    assert not torch.equal(found["seldom"], start.weights["seldom"])
    assert list(cached_module(start).parameters) == ["unused", "seldom", "out.weight", "out.bias"]
    assert not training.gradient(start, people().train)["unused"].any()
    if not sgd.proximal:
        net = start.build()
        optimizer = torch.optim.SGD(net.parameters(), sgd.lr, sgd.momentum, weight_decay=sgd.weight_decay)
        for batch in training.batches(people(), sgd):
            optimizer.zero_grad()
            F.cross_entropy(net(batch.x), batch.y).backward()
            optimizer.step()
        assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in state(net).items())


class Typed(nn.Module):
    """Buffers of all types, and one that training counts up; a layer in a short type."""

    def __init__(self, short: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(15, -1, -1))
        self.register_buffer("big", torch.tensor([2**62 + 1]))
        self.register_buffer("flags", torch.arange(16) % 3 != 0)
        self.register_buffer("small", torch.tensor([1, 2], dtype=torch.uint8))
        self.register_buffer("steps", torch.tensor(0))
        self.hidden, self.out = nn.Linear(16, 8, dtype=short), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        x = x.flatten(1)[:, self.order].masked_fill(~self.flags, 0.0)
        return self.out(F.relu(self.hidden(x.to(self.hidden.weight.dtype)).float()))


@pytest.mark.parametrize("short", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_every_type_travel_and_only_floating_ones_learn(short):
    network("model-typed")(Typed)
    start = Model.init(Arch("model-typed", {"short": short}), 0)
    found = training.train(start, people(), SGD(lr=0.1, batch=8)).weights
    assert {name: value.dtype for name, value in found.items()} == {n: v.dtype for n, v in start.weights.items()}
    assert all(torch.equal(found[n], start.weights[n]) for n in ("order", "big", "flags", "small", "steps"))
    assert not torch.equal(found["hidden.weight"], start.weights["hidden.weight"])
    assert dtype_of(found) == short


def test_the_mean_of_equal_tensors_is_exact():
    mean = Mean()
    frozen = torch.randn(100, generator=torch.Generator().manual_seed(0))
    for weight in (3, 7, 11):
        mean.add({"frozen": frozen, "big": torch.tensor([2**62 + 1]), "flags": torch.tensor([True])}, weight)
    found = mean.result()
    assert torch.equal(found["frozen"], frozen)
    assert found["big"].tolist() == [2**62 + 1]
    assert found["flags"].tolist() == [True]


class Extra(nn.Linear):
    """State that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: nn.LazyLinear(3), "weight is lazy"),
        (lambda: nn.Linear(4, 3, dtype=torch.complex64), "weight is complex"),
        (lambda: Extra(4, 3), "is no tensor"),
    ],
)
def test_tensors_that_cannot_travel_are_named(build, text):
    network("model-refused")(build)
    with pytest.raises(ConfigError, match=text):
        Model.init(Arch("model-refused"), 0)


def test_a_network_that_cannot_be_set_back_is_not_kept():
    start = Model.init(Arch("model-locked"), 0)
    assert not CachedModule(start.arch, start.weights).keeps
    assert cached_module(start) is not cached_module(start)
    assert "model-locked" in networks()
