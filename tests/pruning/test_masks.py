"""Masks, counts over layers, scores and structures: exact counts, ties to the lower index."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbonsai.arch import Arch
from fedbonsai.model import Model
from fedbonsai.stages.pruning import masks, scores, structures
from fedbonsai.stages.pruning.distributions import erk, exactly, uniform

FORMS = {"a": torch.zeros(16, 3, 3, 3), "b": torch.zeros(32, 16, 3, 3), "c": torch.zeros(10, 32)}
few = st.lists(st.integers(-3, 3), min_size=1, max_size=40)  # small integers tie often


@settings(deadline=None)
@given(few, st.data())
def test_keep_top_is_exact_and_gives_ties_to_the_lower_index(values, data):
    kept = data.draw(st.integers(0, len(values)))
    mask = masks.keep_top(torch.tensor(values, dtype=torch.float32), kept)
    want = sorted(range(len(values)), key=lambda i: (-values[i], i))[:kept]
    assert sorted(want) == mask.nonzero().flatten().tolist()


def test_nan_is_kept_last_and_a_count_that_cannot_be_is_refused():
    score = torch.tensor([float("nan"), 1.0, float("-inf"), float("inf")])
    assert masks.keep_top(score, 2).tolist() == [False, True, False, True]
    assert masks.keep_top(score, 4).all()
    for kept in (-1, 5):
        with pytest.raises(ValueError, match="4 values"):
            masks.keep_top(score, kept)


@pytest.mark.slow
@settings(deadline=None)
@given(few, few, st.data())
def test_keep_global_is_keep_top_of_all_tensors_in_a_row(left, right, data):
    kept = data.draw(st.integers(0, len(left) + len(right)))
    trees = {"l": torch.tensor(left).float(), "r": torch.tensor(right).float().reshape(-1, 1)}
    found = masks.keep_global(trees, kept)
    want = masks.keep_top(torch.tensor(left + right).float(), kept)
    assert torch.equal(torch.cat([found["l"], found["r"].flatten()]), want)
    assert found["r"].shape == trees["r"].shape


def test_masked_weights_are_exact_zeros_and_density_is_of_masked_tensors():
    weights = {"w": torch.tensor([1.0, -2.0, float("nan"), 4.0]), "b": torch.ones(2)}
    mask = {"w": torch.tensor([True, False, False, True])}
    found = masks.masked(weights, mask)
    assert found["w"].tolist() == [1, 0, 0, 4]
    assert found["b"] is weights["b"]
    assert masks.density(mask) == 0.5
    assert masks.density({}) == 1
    assert masks.keep_each({"w": weights["w"].nan_to_num()}, {"w": 1})["w"].tolist() == [False, False, False, True]


def test_only_matrices_and_kernels_are_prunable():
    names = masks.prunable(Model.init(Arch("cnn-bn"), 0))
    assert names == ["stem.conv.weight", "features.conv1.weight", "features.conv2.weight", "classifier.weight"]


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.01])
def test_erk_meets_the_total_and_favours_small_layers(density):
    counts = erk(FORMS, density)
    total = sum(value.numel() for value in FORMS.values())
    assert abs(sum(counts.values()) - density * total) <= len(FORMS)
    shares = {name: counts[name] / FORMS[name].numel() for name in FORMS}
    assert max(shares.values()) <= 1
    if density < 0.5:
        assert shares["b"] < shares["a"]
    raw = {name: sum(value.shape) / value.numel() for name, value in FORMS.items()}
    if max(shares.values()) < 1:  # nothing is capped: proportional
        ratio = [shares[name] / raw[name] for name in FORMS]
        assert max(ratio) / min(ratio) < 1.1


@settings(deadline=None)
@given(st.floats(0.001, 1), st.data())
def test_counts_are_moved_to_exactly_the_total(density, data):
    total = data.draw(st.integers(len(FORMS), sum(value.numel() for value in FORMS.values())))
    counts = exactly(uniform(FORMS, density), FORMS, total)
    assert sum(counts.values()) == total
    assert all(1 <= counts[name] <= FORMS[name].numel() for name in FORMS)


def test_a_total_or_a_density_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="cannot be spread"):
        exactly(uniform(FORMS, 0.5), FORMS, 2)
    for density in (0.0, 1.5):
        with pytest.raises(ValueError, match="expected a share"):
            uniform(FORMS, density)


def test_scores_by_hand():
    w, g = {"w": torch.tensor([[1.0, -2.0], [0.5, 0.0]])}, {"w": torch.tensor([[3.0, 1.0], [-4.0, 9.0]])}
    assert scores.magnitude(w)["w"].flatten().tolist() == [1, 2, 0.5, 0]
    assert scores.squared_gradient(g)["w"].flatten().tolist() == [9, 1, 16, 81]
    assert scores.snip(w, g)["w"].flatten().tolist() == [3, 2, 2, 0]
    assert scores.taylor(w, g)["w"].flatten().tolist() == [9, 4, 4, 0]
    assert scores.filters(w["w"]).tolist() == [3, 0.5]
    one, again, other = (scores.random(w, seed)["w"] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_synflow_conserves_the_flow_through_every_layer():
    model = Model.init(Arch("mlp", {"widths": (6, 5), "size": 2, "channels": 1, "classes": 3}), 0)
    model = model.replace({n: torch.zeros_like(v) if n.endswith("bias") else v for n, v in model.weights.items()})
    names = masks.prunable(model)
    found = scores.synflow(model, names, (1, 2, 2))
    totals = [float(found[name].sum()) for name in names]
    assert totals == pytest.approx(
        [totals[0]] * len(totals)
    )  # without biases the sum of each layer is the output itself


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 13), st.integers(1, 5), st.data())
def test_n_of_m_keeps_n_of_every_group(rows, columns, m, data):
    n = data.draw(st.integers(0, m))
    values = data.draw(st.lists(st.integers(-3, 3), min_size=rows * columns, max_size=rows * columns))
    score = torch.tensor(values).float().reshape(rows, columns)
    mask = structures.n_of_m(score, n, m)
    for row in range(rows):
        for begin in range(0, columns, m):
            part = score[row, begin : begin + m]
            assert torch.equal(mask[row, begin : begin + m], masks.keep_top(part, min(n, len(part))))


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.data())
def test_blocks_are_whole_and_exact(height, width, down, across, data):
    kept = data.draw(st.integers(0, down * across))
    values = data.draw(st.lists(st.integers(0, 3), min_size=down * across, max_size=down * across))
    one = torch.tensor(values).float().reshape(down, across)
    score = one.repeat_interleave(height, 0).repeat_interleave(width, 1)
    want = masks.keep_top(one, kept).repeat_interleave(height, 0).repeat_interleave(width, 1)
    assert torch.equal(structures.blocks(score, kept, (height, width)), want)


def test_structures_of_kernels_and_at_the_border():
    score = torch.arange(2 * 1 * 3 * 3).float().reshape(2, 1, 3, 3)
    assert structures.n_of_m(score, 2, 4).reshape(2, 9).int().tolist() == [[0, 0, 1, 1, 0, 0, 1, 1, 1]] * 2
    whole = structures.blocks(score, 1, (1, 9))  # one filter
    assert whole[1].all()
    assert not whole[0].any()
    assert structures.blocks(torch.ones(3, 5), 1, (2, 2)).int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0] * 5]
    assert structures.n_of_m(torch.tensor([1.0, 2.0, 3.0]), 1, 2).tolist() == [False, True, True]
    for call in (lambda: structures.n_of_m(score, 3, 2), lambda: structures.blocks(score, 1, (0, 1))):
        with pytest.raises(ValueError, match="expected"):
            call()
