"""Which weights a mask keeps: counts by hand, SNIP by autograd, SynFlow without collapse, schedules."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Samples
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.stages.pruning.criteria import (
    Budget,
    Grounds,
    Magnitude,
    OfRun,
    Random,
    Saliency,
    Schedule,
    SynFlow,
    best,
    kept,
)
from fedbonsai.stages.pruning.masks import masked, prunable
from fedbonsai.stages.pruning.scores import synflow

MLP = Model.init(Arch("mlp", {"size": 8, "widths": [16, 12]}), 3)
CNN = Model.init(Arch("cnn-bn", {"size": 8}), 3)
IMAGE = (1, 8, 8)


def ones(model):
    return {name: torch.ones_like(model.weights[name], dtype=torch.bool) for name in prunable(model)}


def no_gradient(model):
    raise AssertionError("this criterion takes no gradient")


def found(model, criterion, count, distribution="global", gradient=no_gradient, masks=None):
    grounds, masks = Grounds(model, prunable(model), gradient, 5, IMAGE), masks or ones(model)
    return criterion.prune(grounds, masks, Budget(count, distribution, 0.1))


def samples(count=30):
    random = torch.Generator().manual_seed(0)
    return Samples(torch.randn(count, *IMAGE, generator=random), torch.randint(0, 10, (count,), generator=random))


def counts(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def test_the_best_of_all_layers_and_of_each_by_hand():
    scores = {"a": torch.tensor([[5.0, 1.0], [4.0, 3.0]]), "b": torch.tensor([[2.0, 6.0, 7.0, 0.0]])}
    masks = {name: torch.ones_like(value, dtype=torch.bool) for name, value in scores.items()}
    chosen = best(scores, masks, 4, "global")
    assert chosen["a"].int().tolist() == [[1, 0], [1, 0]]
    assert chosen["b"].int().tolist() == [[0, 1, 1, 0]]
    # uniform: 3 of 8 is 1.5 of 4 in each, rounded to 2 and 2, and one is taken back from the first of the largest
    assert counts(best(scores, masks, 3, "uniform")) == {"a": 1, "b": 2}
    # erk of 4: raw densities 4/4 and 5/4 (sum of dimensions by product), 4 (raw a) + 4 (raw b) = 9, scale 4/9
    assert counts(best(scores, masks, 4, "erk")) == {"a": 2, "b": 2}
    less = {"a": torch.tensor([[True, False], [True, False]]), "b": masks["b"]}
    again = best({"a": scores["a"] + 100, "b": scores["b"]}, less, 5, "global")
    assert again["a"].int().tolist() == [[1, 0], [1, 0]]  # what is pruned does not come back, whatever its score
    assert again["b"].int().tolist() == [[1, 1, 1, 0]]


def test_erk_counts_by_hand():
    # 100 x 10 and 10 x 10: raw densities 110/1000 and 20/100, of 1000 and 100 weights: 110 s + 20 s = 220, s = 22/13
    scores = {"a": torch.rand(100, 10), "b": torch.rand(10, 10)}
    masks = {name: torch.ones_like(value, dtype=torch.bool) for name, value in scores.items()}
    assert counts(best(scores, masks, 220, "erk")) == {"a": 186, "b": 34}
    # 660: s = 66/13 would give b a density above 1: it stays dense, a has the rest
    assert counts(best(scores, masks, 660, "erk")) == {"a": 560, "b": 100}


@pytest.mark.slow
@settings(max_examples=60)
@given(st.sampled_from(["global", "uniform", "erk"]), st.integers(3, 500), st.integers(0, 3), st.integers(0, 99))
def test_counts_are_exact_and_masks_only_shrink(distribution, count, before, seed):
    forms = {"a": (12, 3, 3, 3), "b": (7, 12), "c": (2, 50)}
    random = torch.Generator().manual_seed(seed)
    scores = {name: torch.randint(-2, 4, shape, generator=random).double() for name, shape in forms.items()}
    scores["a"][0, 0, 0, 0] = float("nan")
    masks = {name: torch.rand(shape, generator=random) >= 0.2 * before for name, shape in forms.items()}
    for name in masks:
        masks[name].view(-1)[0] = True
    count = min(count, sum(counts(masks).values()))
    chosen = best(scores, masks, count, distribution)
    assert sum(counts(chosen).values()) == count
    assert not any(bool((chosen[name] & ~masks[name]).any()) for name in masks)
    assert all(counts(chosen).values()) or distribution == "global"


def test_fewer_weights_than_layers_are_refused_where_each_has_its_share():
    with pytest.raises(ConfigError, match="2 weights for 4 layers"):
        found(CNN, Magnitude(), 2, "erk")


def test_snip_is_weight_times_gradient_by_autograd():
    data = samples()
    net = MLP.build()
    F.cross_entropy(net(data.x), data.y).backward()
    flat = {name: (p * p.grad).abs() for name, p in net.named_parameters() if p.ndim > 1}
    want = Saliency("snip").scores(Grounds(MLP, list(flat), lambda now: training.gradient(now, data), 0, IMAGE))
    assert all(torch.allclose(want[name], flat[name], rtol=1e-4, atol=1e-8) for name in flat)
    threshold = torch.cat([value.flatten() for value in flat.values()]).sort(descending=True).values[99]
    masks = found(MLP, Saliency("snip", "server"), 100, gradient=lambda now: training.gradient(now, data))
    assert all(torch.equal(masks[name], flat[name] >= threshold - 1e-9) for name in flat)
    assert sum(counts(masks).values()) == 100


def test_the_other_saliencies_by_hand():
    model = Model(Arch("mlp"), {"w": torch.tensor([[1.0, -2.0, 0.5]])})
    slopes = {"w": torch.tensor([[3.0, 1.0, -8.0]]), "bias": torch.ones(1)}
    grounds = Grounds(model, ["w"], lambda now: slopes, 0, IMAGE)
    assert Saliency("snip").scores(grounds)["w"].tolist() == [[3, 2, 4]]
    assert Saliency("taylor").scores(grounds)["w"].tolist() == [[9, 4, 16]]
    assert Saliency("gradient").scores(grounds) == {"w": pytest.approx(torch.tensor([[9.0, 1.0, 64.0]]))}


def test_a_gradient_is_taken_anew_at_each_iteration():
    seen = []

    def gradient(now):
        seen.append(sum(int((now.weights[name] != 0).sum()) for name in prunable(now)))
        return training.gradient(now, samples())

    total = sum(MLP.weights[name].numel() for name in prunable(MLP))
    masks = found(MLP, Saliency("snip", "server", 3), total // 8, gradient=gradient)
    assert seen == [total, round(total / 2), round(total / 4)]
    assert sum(counts(masks).values()) == total // 8


def test_synflow_is_weight_times_gradient_of_the_absolute_network():
    two = Model.init(Arch("mlp", {"size": 2, "widths": [2], "classes": 2}), 0)
    first = torch.tensor([[1.0, -2.0, 0.0, 1.0], [3.0, 0.0, 1.0, -1.0]])
    last = torch.tensor([[1.0, -1.0], [2.0, 0.5]])
    weights = dict(zip(two.weights, (first, torch.zeros(2), last, torch.zeros(2)), strict=True))
    score = synflow(two.replace(weights), prunable(two), (1, 2, 2))
    # into unit 0 flow 4, into unit 1 flow 5; out of them 1 + 2 and 1 + 0.5
    assert score["stem.fc1.weight"].tolist() == [[3, 6, 0, 3], [4.5, 0, 1.5, 1.5]]
    assert score["classifier.weight"].tolist() == [[4, 5], [8, 2.5]]


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_synflow_passes_normalisation_by(norm):
    model = Model.init(Arch("cnn-bn", {"size": 8, "norm": norm}), 3)
    score = synflow(model, prunable(model), IMAGE)
    totals = [float(value.sum()) for value in score.values()]
    # max-pooling passes the flow of one pixel on, so without biases behind it every layer carries all of it
    assert totals[0] == pytest.approx(totals[1]) == pytest.approx(totals[2])
    assert all(bool((value > 0).all()) for value in score.values())


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["cnn-bn", "lenet5", pytest.param("resnet-tiny", marks=pytest.mark.slow)])
def test_synflow_avoids_the_collapse_of_a_layer_at_one_percent(arch):
    model = Model.init(Arch(arch, {"size": 28, "channels": 1}), 0)
    size = (1, 28, 28)
    names = [name for name in prunable(model) if "shortcut" not in name]  # the other branch can carry the flow of these
    total = sum(model.weights[name].numel() for name in names)
    start = {name: mask for name, mask in ones(model).items() if name in names}
    budget = Budget(kept(0.01, total), "global", 0.01)
    masks = SynFlow(100).prune(Grounds(model, names, no_gradient, 0, size), start, budget)
    assert sum(counts(masks).values()) == kept(0.01, total)
    assert all(counts(masks).values())
    pruned_model = model.replace(masked(model.weights, masks))
    flow = synflow(pruned_model, names, size)
    assert all(float(flow[name].sum()) > 0 for name in names)  # something passes from the image to the scores


@pytest.mark.slow
def test_one_shot_synflow_collapses_where_the_iterations_do_not():
    wide = Model.init(Arch("mlp", {"size": 8, "widths": [256, 4, 256]}), 0)
    total = sum(wide.weights[name].numel() for name in prunable(wide))
    smallest = {
        steps: min(
            float(value.sum())
            for value in synflow(
                wide.replace(
                    masked(
                        {n: v * (not n.endswith("bias")) for n, v in wide.weights.items()},
                        found(wide, SynFlow(steps), kept(0.005, total)),
                    )
                ),
                prunable(wide),
                IMAGE,
            ).values()
        )
        for steps in (1, 100)
    }
    assert smallest[1] == 0
    assert smallest[100] > 0


def test_random_masks_are_of_the_seed_and_of_no_weight():
    other = MLP.replace({name: value * 2 + 1 for name, value in MLP.weights.items()})
    one, two = found(MLP, Random(), 200), found(other, Random(), 200)
    assert all(torch.equal(one[name], two[name]) for name in one)
    other_seed = Grounds(MLP, prunable(MLP), no_gradient, 6, IMAGE)
    three = Random().prune(other_seed, ones(MLP), Budget(200, "global", 0.1))
    assert any(not torch.equal(one[name], three[name]) for name in one)


def test_the_mask_of_a_run_is_where_its_model_is_not_zero(tmp_path):
    want = found(MLP, Magnitude(), 123)
    save_file(masked(MLP.weights, want), tmp_path / "model.safetensors")
    masks = found(MLP, OfRun(str(tmp_path)), 7)
    assert all(torch.equal(masks[name], want[name]) for name in want)
    with pytest.raises(ConfigError, match="not of network 'cnn-bn'"):
        found(CNN, OfRun(str(tmp_path)), 7)
    with pytest.raises(ConfigError, match="does not exist"):
        found(MLP, OfRun(str(tmp_path / "none")), 7)


def test_the_schedule_takes_the_same_share_of_what_remains_each_time():
    # PruneFL, iterative pruning: 20 times, every floor(R / 40) rounds; p = 1 - rho^(1/20), for FEMNIST 0.096
    schedule = Schedule(first=250, every=250, times=20)
    rho = 0.134
    densities = [1.0, *(schedule.density(done, rho) for done in range(20))]
    p = 1 - rho ** (1 / 20)
    assert p == pytest.approx(0.0956, abs=1e-4)
    assert [1 - after / before for before, after in pairwise(densities)] == pytest.approx([p] * 20)
    assert densities[-1] == pytest.approx(rho, rel=1e-12)
    rounds, done = [], 0
    for t in range(10_001):
        if schedule.due(done, t):
            rounds.append(t)
            done += 1
    assert rounds == [250 * i for i in range(1, 21)]
    assert schedule.due(3, 1013)  # the round itself failed
    assert not schedule.due(3, 999)


def test_values_that_cannot_be_meant_are_refused():
    for make in (
        lambda: Saliency(iterations=2),
        lambda: Saliency(data="server", iterations=0),
        lambda: SynFlow(0),
        lambda: Schedule(first=-2),
        lambda: Schedule(every=0),
        lambda: Schedule(times=0),
    ):
        with pytest.raises(ValueError, match="expected"):
            make()
