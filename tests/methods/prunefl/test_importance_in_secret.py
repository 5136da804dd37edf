"""Importances as parts of the largest that a code can tell, and back."""

import pytest
import torch

from fedbonsai.errors import NotFinite
from fedbonsai.methods.prunefl.importance import clip_of, counted, of_squares, squares

Z = {"a": torch.tensor([[0.5, 0.0], [8.0, 2.0]]), "b": torch.tensor([1.0])}
MASKS = {name: torch.ones_like(value, dtype=torch.bool) for name, value in Z.items()}


def test_importances_are_parts_of_that_of_a_gradient_that_moves_a_weight_by_the_clip():
    most = clip_of(0.2, 0.1, 10)  # a gradient of 2 moves a weight by 0.2: 10 samples of importance 4
    assert most == 40
    values = squares({"a": 10 * Z["a"]}, 60.0, 6, most)
    assert values.tolist() == pytest.approx([0.125, 0.0, 1.0, 0.5, 0.25])  # 80 was cut to 40; the mean of six is 10


def test_what_was_not_cut_comes_back():
    z, rest = of_squares(squares(Z, 3.0, 6, 40.0), MASKS, 6, 40.0)
    assert rest == pytest.approx(3.0)
    assert list(z) == ["a", "b"]
    assert all(torch.allclose(z[name], value) for name, value in Z.items())


def test_weights_that_are_never_pruned_are_counted_and_integers_are_not():
    weights = {**Z, "bias": torch.zeros(3), "steps": torch.tensor(4)}
    assert counted(weights, {"a": MASKS["a"]}) == 4


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_importances_that_are_not_finite_are_not_sent(wrong):
    with pytest.raises(NotFinite, match="lower the learning rate"):
        squares({"a": torch.tensor([wrong])}, 0.0, 1, 1.0)
