"""Masks that both ends derive: exact counts, ties, quotas, exploration, and every criterion by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.stages.pruning.derived_masks import (
    Derived,
    Rule,
    derived,
    full,
    largest,
    names_in,
    places,
    pruned_of,
    quotas,
    shrunk,
)
from fedbonsai.stages.pruning.masks import keep_global, keep_top
from tests.methods.rounds import CNN, MODEL, PEOPLE, same

PLAIN = Rule(explore=0.0)
NAMES = names_in(CNN, MODEL.weights)
TOTAL = sum(MODEL.weights[name].numel() for name in NAMES)


def zeros(masks):
    return sum(int((~mask).sum()) for mask in masks.values())


@pytest.mark.slow
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.data())
def test_the_linear_time_choice_is_the_sorted_one_with_its_ties(values, data):
    score = torch.tensor(values, dtype=torch.float32)
    kept = data.draw(st.integers(0, len(values)))
    assert torch.equal(largest(score, kept), keep_top(score, kept))


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["magnitude", "random", "taylor", "prunefl"])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("explore", [0.0, 0.05])
@pytest.mark.parametrize("ratio", [1e-9, 0.1, 1 / 3, 0.9])
def test_counts_are_exact(criterion, scope, explore, ratio):
    if criterion == "random" and explore:
        return
    rule, how = Rule(criterion, scope, explore), Derived(ratio, explore, 5)
    masks = derived(CNN, MODEL.weights, rule, how, PEOPLE[0])
    again = derived(CNN, MODEL.weights, rule, how, PEOPLE[0])
    if int(ratio * TOTAL) == 0:
        assert masks is None
        return
    assert set(masks) == set(NAMES)
    assert zeros(masks) == int(ratio * TOTAL)
    assert same(masks, again)
    if scope == "layer":
        for mask in masks.values():
            assert abs(zeros({"": mask}) - ratio * mask.numel()) < 1 + 1e-6


def test_by_magnitude_it_is_the_global_order():
    masks = derived(CNN, MODEL.weights, PLAIN, Derived(0.4))
    scores = {name: MODEL.weights[name].abs() for name in NAMES}
    assert same(masks, keep_global(scores, TOTAL - int(0.4 * TOTAL)))


@pytest.mark.slow
@given(st.floats(0.01, 0.95), st.integers(0, 10**6))
def test_what_magnitude_drops_is_bounded_by_the_ratio(ratio, seed):
    model = Model.init(CNN, seed)
    masks = derived(CNN, model.weights, PLAIN, Derived(ratio))
    if masks is None:
        return
    u = torch.cat([model.weights[name].reshape(-1).double() for name in NAMES])
    kept = torch.cat([masks[name].reshape(-1) for name in NAMES])
    assert float(u[~kept].square().sum()) <= ratio * float(u.square().sum())


def test_masks_by_one_ranking_are_nested_and_exploration_is_not():
    """The trap of specs/wireless §1.5: ratios .2, .5 and .7 leave 20 % to nobody; random shares reach them."""
    nested = [derived(CNN, MODEL.weights, PLAIN, Derived(ratio)) for ratio in (0.2, 0.5, 0.7)]
    cover = sum(int((nested[0][n] | nested[1][n] | nested[2][n]).sum()) for n in NAMES)
    assert TOTAL - cover == int(0.2 * TOTAL)
    apart = [derived(CNN, MODEL.weights, Rule(), Derived(r, 0.05, k)) for k, r in enumerate((0.2, 0.5, 0.7))]
    wider = sum(int((apart[0][n] | apart[1][n] | apart[2][n]).sum()) for n in NAMES)
    assert wider > cover
    top = derived(CNN, MODEL.weights, PLAIN, Derived(1 - (TOTAL - int(0.5 * TOTAL) - int(0.05 * TOTAL)) / TOTAL))
    assert all(not bool((top[n] & ~apart[1][n]).any()) for n in NAMES)  # the best 1 - ratio - epsilon are always kept
    assert not same(apart[1], derived(CNN, MODEL.weights, Rule(), Derived(0.5, 0.05, 99)))


def test_quotas():
    assert quotas({"a": 10, "b": 5}, 4) == {"a": 7, "b": 4}
    assert quotas({"a": 3, "b": 3, "c": 3}, 4) == {"a": 1, "b": 2, "c": 2}
    assert quotas({"a": 3}, 3) == {"a": 0}


def test_scores_by_the_devices_own_gradient():
    me = PEOPLE[0]
    gradient = training.gradient(MODEL, me.train)
    taylor = derived(CNN, MODEL.weights, Rule("taylor", explore=0.0), Derived(0.5), me)
    scores = {n: (gradient[n].double() * MODEL.weights[n].double()).square() for n in NAMES}
    assert same(taylor, keep_global(scores, TOTAL - TOTAL // 2))
    prunefl = derived(CNN, MODEL.weights, Rule("prunefl", explore=0.0), Derived(0.5), me)
    uses = {"stem.conv.weight": 64, "features.conv1.weight": 16, "features.conv2.weight": 4, "classifier.weight": 1}
    assert places(CNN, {n: MODEL.weights[n] for n in NAMES}, (1, 8, 8)) == uses
    scores = {n: gradient[n].double().square() / uses[n] for n in NAMES}
    assert same(prunefl, keep_global(scores, TOTAL - TOTAL // 2))
    with pytest.raises(ConfigError, match="cannot derive"):
        derived(CNN, MODEL.weights, Rule("taylor"), Derived(0.5))


def test_a_shorter_upload_is_the_largest_part_of_the_mask():
    masks = derived(CNN, MODEL.weights, Rule(), Derived(0.3, 0.05, 1))
    kept = TOTAL - pruned_of(0.6, TOTAL)
    less = shrunk(MODEL.weights, masks, kept)
    assert zeros(less) == TOTAL - kept
    assert all(not bool((less[n] & ~masks[n]).any()) for n in NAMES)
    sent = torch.cat([MODEL.weights[n].abs()[less[n]] for n in NAMES])
    held_back = torch.cat([MODEL.weights[n].abs()[masks[n] & ~less[n]] for n in NAMES])
    assert sent.min() >= held_back.max()


def test_personal_weights_and_what_is_never_pruned_are_left_alone():
    shared = {name: value for name, value in MODEL.weights.items() if not name.startswith("classifier")}
    assert names_in(CNN, shared, ("stem",)) == ["features.conv1.weight", "features.conv2.weight"]
    rule = Rule(explore=0.0, never=("stem",))
    masks = derived(CNN, shared, rule, Derived(0.5))
    assert zeros(masks) == int(0.5 * (16 * 32 * 9 + 32 * 64 * 9))
    assert set(full(CNN, shared, ("stem",))) == set(masks)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="explore"):
        Rule(explore=1.0)
    with pytest.raises(ValueError, match="no effect"):
        Rule("random", explore=0.05)


def test_a_large_model_with_exploration():
    model = Model.init(Arch("cnn-mnist"), 0)
    masks = derived(model.arch, model.weights, Rule(), Derived(0.28, 0.05, 3))
    assert zeros(masks) == int(0.28 * sum(mask.numel() for mask in masks.values()))
