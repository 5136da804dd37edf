"""Losses and measures against their definitions, worked out by hand or by scikit-learn."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics

from fedbonsai.arch import Arch
from fedbonsai.objectives import MEASURES, Binary, Classification, Multilabel, Objective, Regression, Tokens
from fedbonsai.wire import decode, encode

RANDOM = torch.Generator().manual_seed(0)
N = 40


def normal(*shape):
    return torch.randn(*shape, generator=RANDOM)


Y = torch.randint(0, 3, (N,), generator=RANDOM)
BITS = torch.randint(0, 2, (N,), generator=RANDOM)
LABELS = torch.randint(0, 2, (N, 3), generator=RANDOM)
TOKENS = torch.randint(-1, 4, (N, 5), generator=RANDOM)
CASES = [
    (Classification(), normal(N, 3), Y),
    (Classification(weights=(1.0, 2.0, 0.5), smoothing=0.1), normal(N, 3), Y),
    (Binary(), normal(N, 1), BITS),
    (Binary(positive=3.0), normal(N, 1), BITS.float()),
    (Multilabel(positive=2.0), normal(N, 3), LABELS),
    (Regression(scale=2.0, offset=1.0), normal(N, 1), normal(N)),
    (Regression(loss_of="huber", delta=0.5), normal(N, 2), normal(N, 2)),
    (Tokens(), normal(N, 5, 4), TOKENS),
]


@pytest.mark.parametrize(("objective", "outputs", "y"), CASES)
def test_sums_over_weights_are_means_and_sums_of_parts_are_sums(objective, outputs, y):
    mean, total = objective.loss(outputs, y), objective.loss(outputs, y, "sum")
    if not getattr(objective, "smoothing", 0):  # torch divides smoothed weighted losses by the hard weights too
        assert float(total) / objective.weight(y) == pytest.approx(float(mean), rel=1e-5)
    parts = sum(float(objective.loss(outputs[a : a + 7], y[a : a + 7], "sum")) for a in range(0, N, 7))
    assert parts == pytest.approx(float(total), rel=1e-5)
    assert sum(objective.weight(y[a : a + 7]) for a in range(0, N, 7)) == pytest.approx(objective.weight(y))


class Halved(Classification):
    """A loss of one's own."""

    def loss(self, outputs, y, reduction="mean"):
        return super().loss(outputs, y, reduction) / 2


@pytest.mark.parametrize(
    ("objective", "outputs", "y"),
    [
        *CASES,
        (Classification(smoothing=0.1), *CASES[0][1:]),
        (Halved(), *CASES[0][1:]),
        *((Classification(smoothing=0.1), normal(N, k), CASES[0][2]) for k in (9, 16)),
        (Classification(weights=(1.0, 2.0, 0.5) * 7), normal(N, 21), CASES[0][2]),
    ],
)
def test_several_batches_have_the_loss_of_each(objective, outputs, y):
    outputs, y = outputs[:36].unflatten(0, (3, 12)), y[:36].unflatten(0, (3, 12))
    each = [float(objective.loss(*batch)) for batch in zip(outputs, y, strict=True)]
    assert objective.losses(outputs, y).tolist() == pytest.approx(each, rel=1e-5)


@pytest.mark.parametrize(("objective", "outputs", "y"), CASES)
def test_what_is_kept_of_batches_gives_the_measures_of_all(objective, outputs, y):
    kept = torch.cat([objective.answers(outputs[a : a + 7]) for a in range(0, N, 7)])
    found = {**objective.measured(kept, y), **objective.of_loss(1.0)}
    assert found.keys() == set(objective.measures)
    assert found.keys() <= MEASURES.keys()
    assert all(math.isfinite(value) for value in found.values())
    assert objective.metric in found
    classes = 4 if isinstance(objective, Tokens) else 3
    assert tuple(outputs.shape[1:]) == objective.width(y, classes)
    assert objective.faults(y, classes) == []


def test_measures_are_those_of_scikit_learn():
    answers, y = normal(N, 3).argmax(1), Y
    found = Classification().measured(answers, y)
    assert found["accuracy"] == metrics.accuracy_score(y, answers)
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, answers))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(y, answers, average="macro"))
    chance = torch.rand(N, 1, generator=RANDOM)
    found = Binary().measured(chance, BITS)
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(BITS, chance[:, 0]), rel=1e-5)
    assert found["average_precision"] == pytest.approx(metrics.average_precision_score(BITS, chance[:, 0]), rel=1e-5)
    chance = torch.rand(N, 3, generator=RANDOM)
    found = Multilabel().measured(chance, LABELS)
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(LABELS, chance), rel=1e-5)
    values, y = normal(N, 2), normal(N, 2)
    found = Regression().measured(values, y)
    assert found["rmse"] == pytest.approx(math.sqrt(metrics.mean_squared_error(y, values)), rel=1e-5)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(y, values), rel=1e-5)
    assert found["r2"] == pytest.approx(metrics.r2_score(y, values, multioutput="variance_weighted"), rel=1e-5)


def test_padding_counts_neither_in_the_loss_nor_in_the_measures():
    outputs, y = normal(2, 3, 4), torch.tensor([[1, -1, 2], [-1, -1, 0]])
    rows = torch.stack([outputs[0, 0], outputs[0, 2], outputs[1, 2]])
    assert torch.allclose(Tokens().loss(outputs, y), F.cross_entropy(rows, torch.tensor([1, 2, 0])))
    chosen = torch.tensor([[1, 3, 0], [2, 2, 0]])
    assert Tokens().measured(chosen, y)["accuracy"] == pytest.approx(2 / 3)
    assert Tokens().of_loss(math.log(7))["perplexity"] == pytest.approx(7)


def test_regression_learns_in_units_of_the_targets_spread_and_answers_in_theirs():
    y = torch.tensor([10.0, 20.0, 30.0])
    known = Regression().of(y)
    assert (known.offset, known.scale) == (20.0, pytest.approx(np.std([10, 20, 30])))
    assert known.of(torch.zeros(2)) is known
    assert known.answers(torch.zeros(3, 1)).tolist() == [[20.0]] * 3
    assert float(known.loss(((y - 20) / known.scale)[:, None], y)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("objective", "y", "classes", "text"),
    [
        (Classification(), torch.tensor([0.5, 1.0]), 2, "regression"),
        (Classification(), torch.tensor([0, 5]), 3, "0 to 5"),
        (Classification(weights=(1.0, 2.0)), torch.tensor([0, 1, 2]), 3, "weights"),
        (Binary(), torch.tensor([0, 1, 2]), 3, "0 and 1"),
        (Binary(), torch.zeros(3, 2), 0, "shape"),
        (Multilabel(), torch.tensor([[0.0, 0.3]]), 0, "0 and 1"),
        (Regression(), torch.tensor([1.0, math.nan, math.inf]), 0, "2 targets are NaN or infinite"),
        (Regression(), torch.tensor([3.0, 3.0]), 0, "nothing to learn"),
        (Tokens(), torch.tensor([[0, 9]]), 5, "0 to 9"),
        (Tokens(), torch.tensor([0, 1]), 5, "expected"),
    ],
)
def test_targets_that_do_not_fit_are_refused_in_words(objective, y, classes, text):
    assert text in " ".join(objective.faults(y, classes))


@pytest.mark.parametrize("wrong", [{"metric": "rmse"}, {"smoothing": 1.0}, {"weights": (-1.0,)}])
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Classification(**wrong)


def test_an_architecture_says_what_it_learns_only_where_it_is_not_classification():
    plain = encode(Arch("mlp", {"size": 8}))
    assert b"objective" not in plain
    for objective, _, _ in CASES:
        arch = Arch("mlp", {"size": 8}, objective, ("head.*",))
        assert decode(encode(arch)) == arch
    assert MEASURES["rmse"].reached(3, 4)
    assert not MEASURES["accuracy"].reached(0.3, 0.4)
    assert MEASURES["rmse"].best([3, 4]) == 3
    assert issubclass(Tokens, Objective)
