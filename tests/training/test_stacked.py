"""Several clients as one computation: what each of them gets is what it would get alone."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fedbonsai import tree
from fedbonsai.arch import Arch, keeping, network, networks
from fedbonsai.cached_module import CachedModule
from fedbonsai.core import Client, Samples
from fedbonsai.errors import NotFinite
from fedbonsai.fleets.crew import side_by_side
from fedbonsai.model import Model
from fedbonsai.objectives import Regression
from fedbonsai.training import SGD, Adam, AdamW, train
from fedbonsai.training.stacked import width
from fedbonsai.training.stacked.fit import fit_together
from fedbonsai.training.stacked.folded import Linear, foldable
from fedbonsai.training.stacked.layers import unrolled
from fedbonsai.training.stacked.orders import Order
from fedbonsai.training.stacked.stackable import refusal
from fedbonsai.work import collecting

NETS = {
    "mlp": (Arch("mlp", {"channels": 1, "size": 8, "classes": 10, "widths": (12, 9)}), (1, 8, 8)),
    "cnn-bn": (Arch("cnn-bn", {"channels": 1, "size": 8, "classes": 10}), (1, 8, 8)),
    "lenet5": (Arch("lenet5", {"channels": 1, "size": 28, "classes": 10}), (1, 28, 28)),
    "resnet-tiny": (Arch("resnet-tiny"), (3, 32, 32)),
    "which drops": (Arch("dropping"), (1, 8, 8)),
    "cnn1d, group": (Arch("cnn1d", {"length": 20, "features": 6, "classes": 5, "norm": "group"}), (20, 6)),
    "ds-cnn": (Arch("ds-cnn", {"widths": (12, 12)}), (49, 10)),
    "gru": (Arch("gru", {"length": 9, "features": 4, "classes": 5, "hidden": 7, "layers": 2}), (9, 4)),
    "tiny-transformer": (Arch("tiny-transformer", {"length": 9, "features": 4, "classes": 5}), (9, 4)),
}
DEEPER = {"resnet-tiny"}  # of layers that cnn-bn has
SIZES = (24, 30, 17, 24, 5, 9)  # batches of 8: whole ones, short ones, one of a single sample, which joins another


@pytest.fixture(autouse=True)
def dropping(monkeypatch):
    """A network with both kinds of dropout."""
    monkeypatch.setattr("fedbonsai.arch._builders", networks())
    parts = [nn.Conv2d(1, 4, 3), nn.Dropout2d(0.3), nn.Flatten(), nn.Dropout(0.4), nn.Linear(144, 5)]
    network("dropping")(lambda: deepcopy(nn.Sequential(*parts)))


def people(shape, classes, sizes=SIZES, dtype=torch.float64):
    random = torch.Generator().manual_seed(1)
    found = []
    for i, n in enumerate(sizes):
        x = torch.randn(n, *shape, generator=random, dtype=dtype)
        y = torch.randint(0, classes, (n,), generator=random)
        found.append(Client(str(i), 100 + i, Samples(x, y), Samples(x[:0], y[:0])))
    return found


def model(arch):
    made = Model.init(arch, 0)
    return made.replace(tree.cast(made.weights, torch.float64))


def apart(ended, alone):
    return max(
        float((ours.weights[name] - value).abs().max())
        for ours, theirs in zip(ended, alone, strict=True)
        for name, value in theirs.weights.items()
    )


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n != "mlp") + [pytest.mark.exhaustive] * (n in DEEPER)) for n in NETS],
)
@pytest.mark.parametrize(
    "sgd",
    [
        SGD(lr=0.05, momentum=0.9, clip=0.5, weight_decay=1e-3, proximal=0.1, batch=8),
        pytest.param(Adam(lr=1e-3, batch=8, epochs=2), marks=pytest.mark.exhaustive),
        pytest.param(AdamW(lr=1e-3, batch=8, steps=5), marks=pytest.mark.exhaustive),
    ],
    ids=lambda sgd: sgd.choice_name,
)
def test_each_gets_what_it_gets_alone(name, sgd):
    arch, shape = NETS[name]
    begun = model(arch)
    random = torch.Generator().manual_seed(2)
    mask = {n: torch.rand(w.shape, generator=random) > 0.5 for n, w in begun.weights.items() if w.dim() > 1}
    shift = {n: 0.01 * w for n, w in begun.weights.items()}
    clients = people(shape, 5)
    begins = [begun.replace({n: w * (1 + 0.01 * i) for n, w in begun.weights.items()}) for i in range(len(clients))]
    with keeping():
        alone = [train(m, c, sgd, mask, shift=shift) for m, c in zip(begins, clients, strict=True)]
        ended = fit_together([Order(m, c, sgd, mask, shift=shift) for m, c in zip(begins, clients, strict=True)])
        assert not refusal(Order(begun, clients[0], sgd, mask, shift=shift))
    assert apart(ended, alone) < 1e-9
    assert [e.steps for e in ended] == [a.steps for a in alone]
    assert [e.loss / e.seen for e in ended] == pytest.approx([a.loss for a in alone], rel=1e-5)
    assert all(not bool(w[~mask[n]].any()) for e in ended for n, w in e.weights.items() if n in mask)


def test_the_books_are_those_of_one_alone():
    arch, shape = NETS["cnn-bn"]
    begun, sgd = model(arch), Adam(batch=8, proximal=0.1)
    clients = people(shape, 10)
    with keeping():
        ended = fit_together([Order(begun, c, sgd) for c in clients])
        for one, client in zip(ended, clients, strict=True):
            with collecting() as alone:
                theirs = train(begun, client, sgd)
            with collecting() as together:
                ours = one.book(begun, client, sgd, None)
            assert together == alone
            assert (ours.examples, ours.steps, list(ours.weights)) == (
                theirs.examples,
                theirs.steps,
                list(theirs.weights),
            )


def test_one_whose_samples_are_at_fault_takes_no_other_along():
    arch, shape = NETS["mlp"]
    start, sgd = model(arch), SGD(lr=0.05, batch=8)
    crew = people(shape, 10, (9, 9, 9))
    crew[1] = replace(crew[1], train=Samples(crew[1].train.x, crew[1].train.y + 5))  # there are ten classes
    with keeping():
        first, wrong, last = side_by_side([partial(train, start, me, sgd) for me in crew])
        alone = [train(start, me, sgd) for me in (crew[0], crew[2])]
    assert wrong.error is not None
    assert apart([first.get(), last.get()], alone) == 0
    seen = [0, 0, 0]

    def count(at, _):
        seen[at] += 1

    with keeping():
        ended = side_by_side([partial(train, start, me, sgd, hook=partial(count, i)) for i, me in enumerate(crew)])
    assert all(outcome.error is not None for outcome in ended)
    assert max(seen) <= 2, "no step is shown twice"


def test_hooks_see_their_own_gradients_and_masks_differ():
    arch, shape = NETS["mlp"]
    begun, sgd = model(arch), SGD(lr=0.1, batch=8)
    clients = people(shape, 10)
    random = torch.Generator().manual_seed(3)
    masks = [{"stem.fc1.weight": torch.rand(12, 64, generator=random) > 0.5} for _ in clients]
    ours = [dict[str, Tensor]() for _ in clients]
    theirs = [dict[str, Tensor]() for _ in clients]

    def adding(to):
        return lambda grads: to.update({n: to.get(n, 0) + g for n, g in grads.items()})

    with keeping():
        ended = fit_together(
            [Order(begun, c, sgd, m, adding(to)) for c, m, to in zip(clients, masks, ours, strict=True)]
        )
        alone = [train(begun, c, sgd, m, hook=adding(to)) for c, m, to in zip(clients, masks, theirs, strict=True)]
    assert apart(ended, alone) < 1e-12
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.keys() == its.keys()
        assert all(torch.allclose(mine[n], its[n], atol=1e-12) for n in its)


def test_frozen_parameters_stay_and_numbers_are_learned():
    arch = Arch("mlp", {"channels": 1, "size": 8, "classes": 1, "widths": (6,)}, Regression(scale=2.0))
    begun, sgd = model(arch), SGD(lr=0.1, batch=8)
    clients = [replace(c, train=Samples(c.train.stored, c.train.y.double())) for c in people((1, 8, 8), 7)]
    frozen = frozenset({"stem.fc1.weight"})
    with keeping():
        ended = fit_together([Order(begun, c, sgd, frozen=frozen) for c in clients])
        alone = [train(begun, c, sgd, frozen=frozen) for c in clients]
    assert apart(ended, alone) < 1e-12
    assert all(torch.equal(e.weights["stem.fc1.weight"], begun.weights["stem.fc1.weight"]) for e in ended)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_unrolled_gru_is_torchs(layers):
    gru = nn.GRU(3, 5, layers, batch_first=True).double()
    x, h = torch.randn(4, 6, 3, dtype=torch.float64), torch.randn(layers, 4, 5, dtype=torch.float64)
    for start in (None, h):
        for ours, theirs in zip(unrolled(gru, x, start), gru(x, start), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-14)


class Counting(nn.Module):
    """A network that draws in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1) * torch.rand(x.shape[0], 64))


class Looking(nn.Module):
    """A network whose way depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x.flatten(1))
        return y if float(y.sum()) > 0 else 2 * y


@pytest.mark.parametrize("kind", [Counting, Looking])
def test_what_cannot_be_stacked_is_said(kind):
    network("own")(lambda: kind())
    begun = Model.init(Arch("own"), 0)
    (client,) = people((1, 8, 8), 10, (24,), torch.float32)
    with keeping():
        assert "torch.func" in refusal(Order(begun, client, SGD(batch=8)))


def test_settings_that_cannot_be_stacked_are_said():
    begun = Model.init(NETS["mlp"][0], 0)
    (client,) = people((1, 8, 8), 10, (24,), torch.float32)
    mask = {"stem.fc1.weight": torch.ones(12, 64, dtype=torch.bool)}
    assert "fp32" in refusal(Order(begun, client, SGD(precision="bf16")))
    assert "layout" in refusal(Order(begun, client, SGD(channels_last=True)))
    assert "sparse" in refusal(Order(begun, client, SGD(sparse="on"), mask))


def test_the_width_is_measured_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDBONSAI_CACHE", str(tmp_path))
    monkeypatch.setattr("fedbonsai.measured.SECONDS", 0.0)
    begun = Model.init(NETS["mlp"][0], 0)
    (client,) = people((1, 8, 8), 10, (24,), torch.float32)
    found = width.width(begun, SGD(batch=8), client.train)
    assert found in (1, *width.WIDTHS)
    monkeypatch.setattr(width, "measured", lambda order: pytest.fail("measured again"))
    assert width.width(begun, SGD(batch=8), client.train) == found


def test_small_networks_need_no_vmap(monkeypatch):
    monkeypatch.setattr("fedbonsai.training.stacked.network.vmap", lambda f: lambda *_: pytest.fail("vmap was asked"))
    for name in ("mlp", "gru"):
        arch, shape = NETS[name]
        begun = model(arch)
        with keeping():
            fit_together([Order(begun, c, SGD(batch=8)) for c in people(shape, 5)])


def test_gradients_of_stacked_layers_are_those_of_torch_and_lie_as_the_weights_do():
    random = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()
        for shape in ((3, 4, 5), (3, 2, 5), (3, 2))
    )
    for some in ((x, weight, bias), (x, weight, None)):
        assert torch.autograd.gradcheck(Linear.apply, some)
    made = torch.stack([nn.functional.linear(*each) for each in zip(x, weight, bias, strict=True)])
    assert torch.allclose(Linear.apply(x, weight, bias), made)
    (grad,) = torch.autograd.grad(Linear.apply(x, weight, bias).square().sum(), [weight])
    assert grad.stride() == weight.stride()


@pytest.mark.parametrize(
    ("value", "finite"), [(1.0, True), (float("nan"), False), (float("inf"), False), (1e308, True)], ids=str
)
def test_weights_that_are_not_finite_are_found_among_those_of_others(value, finite):
    arch, shape = NETS["mlp"]
    begun = model(arch)
    clients = people(shape, 10, (9, 9))
    odd = {name: torch.full_like(w, value) if name == "classifier.bias" else w for name, w in begun.weights.items()}
    orders = [Order(m, c, SGD(lr=0.0, batch=8)) for m, c in zip((begun, begun.replace(odd)), clients, strict=True)]
    with keeping():
        first, second = fit_together(orders)
    assert first.finite
    first.book(begun, clients[0], orders[0].sgd, None).finite()
    ended = second.book(begun, clients[1], orders[1].sgd, None)
    with nullcontext() if finite else pytest.raises(NotFinite):
        ended.finite()
    changed = replace(first.book(begun, clients[0], orders[0].sgd, None), weights={"w": torch.tensor(torch.nan)})
    with pytest.raises(NotFinite):  # what was looked at is not what is there now
        changed.finite()


@pytest.mark.parametrize(
    ("layer", "fits"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False), nn.Tanh()), True),
        (nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.1)), False),
        (nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, affine=False, track_running_stats=False)), False),
        (nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2)), False),
        (nn.Sequential(nn.Linear(4, 2), nn.PReLU()), False),
        (nn.GRU(4, 2, batch_first=True, bidirectional=True), False),
        (nn.GRU(4, 2, batch_first=True), True),
    ],
)
def test_which_networks_fold(layer, fits):
    network("asked")(lambda: deepcopy(layer))
    assert foldable(CachedModule(Arch("asked"), Arch("asked").weights(layer))) == fits


def test_one_with_fixed_parameters_does_not_fold():
    arch = Arch("mlp", {"widths": (6,)}, trainable=("classifier.*",))
    for begun in (Model.init(arch, 0), Model.init(arch, 0).based()):
        assert not foldable(CachedModule(begun.arch, begun.weights))
        (client,) = people((1, 8, 8), 10, (24,), torch.float32)
        with keeping():
            assert not refusal(Order(begun, client, SGD(batch=8)))
