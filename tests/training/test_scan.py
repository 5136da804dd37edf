"""Evaluations and gradients of several clients at once are those of each alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fedbonsai import training, tree
from fedbonsai.arch import Arch, keeping
from fedbonsai.core import Samples
from fedbonsai.fleets.crew import side_by_side
from fedbonsai.model import Model
from fedbonsai.objectives import Classification, Regression
from fedbonsai.training.stacked import scan as stacked
from fedbonsai.training.stacked.orders import Scan
from fedbonsai.training.stacked.scan import scan_together
from fedbonsai.training.stacked.stackable import scan_refusal
from fedbonsai.work import collecting

CNN = Arch("cnn-bn", {"channels": 1, "size": 8, "classes": 10})
GRU = Arch("gru", {"length": 8, "features": 8, "classes": 10, "hidden": 5})
MLP = Arch("mlp", {"widths": (6,)})
WEIGHTED = Arch("mlp", {"widths": (6,)}, Classification(weights=tuple(range(1, 11)), metric="macro_f1"))
SIZES = (7, 30, 3, 19)


def models(arch):
    begun = Model.init(arch, 0)
    first = tree.cast(begun.weights, torch.float64)
    return [begun.replace({n: w * (1 + 0.1 * i) for n, w in first.items()}) for i in range(len(SIZES))]


def parts(sizes=SIZES):
    random = torch.Generator().manual_seed(0)
    return [
        Samples(
            torch.randn(n, 1, 8, 8, generator=random, dtype=torch.float64),
            torch.randint(0, 10, (n,), generator=random),
        )
        for n in sizes
    ]


def data(arch):
    return parts() if arch is not GRU else [Samples(part.x[:, 0], part.y) for part in parts()]


def asked(monkeypatch):
    """How many scans were done together, each time."""
    seen = []

    def counting(scans):
        seen.append(len(scans))
        return scan_together(scans)

    monkeypatch.setattr(stacked, "scan_together", counting)
    return seen


@pytest.mark.parametrize("arch", [MLP, WEIGHTED, GRU], ids=lambda a: a.name)
@pytest.mark.parametrize("batch", [512, 8])
def test_an_evaluation_is_that_of_each_alone(monkeypatch, arch, batch):
    seen = asked(monkeypatch)
    calls = [partial(training.evaluate, *each, batch=batch) for each in zip(models(arch), data(arch), strict=True)]
    with keeping():
        alone = [call() for call in calls]
        together = [outcome.get() for outcome in side_by_side(calls)]
    assert seen == [4]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-9)
        assert (ours.measures, ours.examples) == (theirs.measures, theirs.examples)


@pytest.mark.parametrize("arch", [MLP, WEIGHTED, GRU], ids=lambda a: a.name)
@pytest.mark.parametrize("in_training", [False, True])
def test_a_gradient_is_that_of_each_alone(monkeypatch, arch, in_training):
    seen = asked(monkeypatch)
    calls = [
        partial(training.gradient, *each, batch=6, training=in_training)
        for each in zip(models(arch), data(arch), strict=True)
    ]
    with keeping():
        alone = [call() for call in calls]
        together = [outcome.get() for outcome in side_by_side(calls)]
    assert seen == [4]
    for ours, theirs in zip(together, alone, strict=True):
        assert list(ours) == list(theirs)
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-12) for name in ours)


def test_by_hand():
    arch = Arch("mlp", {"channels": 1, "size": 1, "classes": 1, "widths": ()}, Regression())
    first = Model.init(arch, 0)
    (weight, bias) = first.weights
    models = [first.replace({weight: torch.tensor([[w]]), bias: torch.zeros(1)}) for w in (2.0, -1.0)]
    data = [
        Samples(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), torch.tensor([1.0, 0.0])),
        Samples(torch.full((1, 1, 1, 1), 3.0), torch.tensor([1.0])),
    ]
    slopes = scan_together([Scan(m, x, "cpu", 8, slopes=True) for m, x in zip(models, data, strict=True)])
    # half of (2 * 1 - 1)^2 + (2 * 2 - 0)^2, by w: 1 * 1 + 4 * 2; and of (-3 - 1)^2: -4 * 3
    scale = slopes[1].loss / 16
    assert [each.loss / scale for each in slopes] == pytest.approx([17, 16])
    assert [float(each.slopes[weight]) / (2 * scale) for each in slopes] == pytest.approx([9, -12])


def test_the_books_are_those_of_one_alone():
    def judged(model, samples):
        with collecting() as found:
            training.evaluate(model, samples)
            training.gradient(model, samples)
        return found

    calls = [partial(judged, *each) for each in zip(models(MLP), parts(), strict=True)]
    with keeping():
        alone = [call() for call in calls]
        assert [outcome.get() for outcome in side_by_side(calls)] == alone


def test_many_samples_are_judged_alone(monkeypatch):
    seen = asked(monkeypatch)
    calls = [partial(training.evaluate, *each) for each in zip(models(MLP), parts((32, 33, 32, 33)), strict=True)]
    with keeping():
        assert all(outcome.error is None for outcome in side_by_side(calls))
    assert seen == [2]


def test_an_empty_set_is_refused_as_alone():
    calls = [partial(training.evaluate, model, each) for model, each in zip(models(MLP), parts((4, 0)), strict=False)]
    with keeping():
        kept, empty = side_by_side(calls)
    assert kept.error is None
    assert "empty" in str(empty.error)


def test_what_cannot_be_stacked_is_done_alone():
    begun, (samples,) = Model.init(MLP, 0), parts((6,))
    odd = begun.replace({**begun.weights, "count": torch.tensor(3)})
    assert "whole numbers" in scan_refusal(Scan(odd, samples, "cpu", 8))
    assert "torch.func" in scan_refusal(Scan(begun, Samples(samples.x[:, :, :3], samples.y), "cpu", 8))
    assert "no faster" in scan_refusal(Scan(Model.init(CNN, 0), samples, "cpu", 8))
