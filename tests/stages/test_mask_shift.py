"""A bounded shift of the mask: worked choices, the bound in every round, and nothing lost in the end."""

import pytest
import torch

from fedbonsai.arch import Arch
from fedbonsai.model import Model
from fedbonsai.stages.broadcast import Broadcast, Downlink
from fedbonsai.stages.codec import Sparse, TopK, parse
from fedbonsai.stages.mask_shift import bounded

TOP = {"topk": {"fraction": 0.4, "min_numel": 0}}


def test_the_choice_by_hand():
    """Of ten weights four may move, one of them new: the three largest of the last four (0 to 3), and one other."""
    replica = {"w": torch.ones(10), "b": torch.zeros(2)}
    goal = {"w": torch.ones(10) + torch.tensor([0.1, -0.4, 0.3, 0.2, 9.0, -8.0, 7.0, 0, 0, 0]), "b": torch.ones(2)}
    last = {"w": Sparse(torch.tensor([0, 1, 2, 3]), torch.ones(4)), "b": Sparse(None, torch.ones(2))}
    found = bounded(goal, replica, last, TopK(0.4, min_numel=3), 0.25)
    expected = torch.ones(10) + torch.tensor([0, -0.4, 0.3, 0.2, 9.0, 0, 0, 0, 0, 0])
    torch.testing.assert_close(found["w"], expected)
    assert torch.equal(found["b"], goal["b"])  # too small a tensor for top-k: as ever


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("merge", [0, 5])
def test_no_round_has_more_new_coordinates_than_the_bound(scope, merge):
    chain = [{"topk": {"fraction": 0.1, "scope": scope, "min_numel": 0}}, {"grid": 0.0625}]
    down = Downlink(parse(chain), True, merge, shift=0.2)
    model = Model.init(Arch("mlp", {"widths": (40,)}), 0)
    state, weights, g = Broadcast.of(model, down), model.weights, torch.Generator().manual_seed(0)
    size = sum(value.numel() for value in weights.values())
    before: set = set()
    for t in range(12):
        weights = {n: v + 0.2 * torch.randn(v.shape, generator=g) for n, v in weights.items()}
        replica = state.replica
        state, _, start = state.advance(weights, down, t)
        moved = {(n, i) for n, v in start.items() for i in (v != replica[n]).flatten().nonzero().flatten().tolist()}
        if t:
            assert 0 < len(moved - before) <= 0.2 * 0.1 * size + len(weights)  # k is rounded up in each tensor
            assert len(moved) <= 0.1 * size + 2 * len(weights)
        before = moved


def test_what_waits_is_sent_later():
    down = Downlink(parse([TOP]), True, shift=0.5)
    start = {"w": torch.zeros(30)}
    state, goal = Broadcast.of(Model(Arch("mlp"), start), down), {"w": torch.arange(30.0)}
    for t in range(30):
        state, _, _ = state.advance(goal, down, t)
    assert torch.equal(state.replica["w"], goal["w"])


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ((parse([TOP]), True, 0, 0.0), "shift = 0.0"),
        ((parse([{"affine": 8}]), True, 0, 0.5), "a topk with a fraction"),
        ((parse([{"topk": {"count": 4}}]), True, 0, 0.5), "a topk with a fraction"),
        ((parse([{"affine": 8}]), False, 0, 0.5), "set downlink.delta = true"),
    ],
)
def test_what_has_no_meaning_is_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        Downlink(*settings)
