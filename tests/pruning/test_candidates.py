"""Adaptive batch-norm selection against the specification's numbers, and what its two passes may change."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbonsai.core import Client, Samples, Scope, scope
from fedbonsai.errors import ConfigError, Forgotten, Unanswered
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Metered
from fedbonsai.model import Arch, Model
from fedbonsai.stages.pruning.candidates import (
    Judge,
    Judged,
    Measure,
    Selection,
    best,
    candidates,
    judge,
    measure,
    measured,
    merged,
    pool,
    pool_size,
    select,
    shared,
    statistics_of,
)
from fedbonsai.stages.pruning.masks import masked
from fedbonsai.wire import encode

CNN = Arch("cnn-bn", {"size": 8})
NAMES = ["features.conv1.weight", "features.conv2.weight"]


def person(id="a", count=20, seed=0, valid=0, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    x, y = scale * torch.randn(count, 1, 8, 8, generator=random), torch.randint(0, 10, (count,), generator=random)
    return Client(id, 7, Samples(x[valid:], y[valid:]), Samples(x[:valid], y[:valid]))


def drawn(model, count=3, density=0.2, noise=0.5, seed=1):
    forms = {name: model.weights[name] for name in NAMES}
    total = sum(value.numel() for value in forms.values())
    return pool(forms, round(density * total), count, noise, seed)


def chosen(people, how, counts=None, model=None):
    model = model or Model.init(CNN, 0)
    fleet, ledger = LocalFleet(people), Ledger()
    with scope(Metered(fleet, ledger), Scope("r", 0, -1, 0)) as open_:
        found = select(model, counts or drawn(model), how, open_)
        open_.commit()
    return found, ledger.take(), fleet


def request(model, counts, **more):
    options = {"statistics": "cumulative", "momentum": 0.1, "merge": "pooled", "batch": 64} | more
    return Measure(model.arch, shared(model, counts, True), tuple(counts), **options)


def test_the_numbers_of_the_merge():
    names = ("n.running_mean", "n.running_var")
    parts = [
        (30, dict(zip(names, (torch.tensor([0.2, 1.0]), torch.tensor([1.0, 0.5])), strict=True))),
        (10, dict(zip(names, (torch.tensor([0.6, 2.0]), torch.tensor([2.0, 1.5])), strict=True))),
    ]
    for how, variance in (("averaged", [1.25, 0.75]), ("pooled", [1.28, 0.9375])):
        found = merged(parts, how)
        assert found["n.running_mean"].tolist() == pytest.approx([0.3, 1.25])
        assert found["n.running_var"].tolist() == pytest.approx(variance)
        again = merged(parts[::-1], how)  # in any order
        assert all(torch.equal(found[name], again[name]) for name in names)


def test_the_numbers_of_the_selection():
    judged = [Judged((1.00, 1.12), 30), Judged((1.40, 1.10), 10)]
    assert best(judged) == (0, pytest.approx((1.100, 1.115)))
    assert best(judged, weighted=False) == (1, pytest.approx((1.20, 1.11)))
    assert best([Judged((2.0, 1.0, 1.0), 5)])[0] == 1  # ties to the lowest index
    assert best([Judged((math.nan, 3.0), 5)]) == (1, (math.inf, 3.0))


def test_sizes_of_the_pool():
    densities = (0.1, 0.05, 0.02, 0.01, 0.005, 0.001, 1.0)
    assert [pool_size(density) for density in densities] == [1, 2, 5, 10, 20, 100, 1]


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 1), st.integers(1, 8), st.floats(0, 1), st.integers(0, 99))
def test_candidates_keep_exactly_the_budget_and_differ(density, count, noise, seed):
    forms = {"a": torch.zeros(16, 9), "b": torch.zeros(32, 16, 3, 3), "c": torch.zeros(10, 32)}
    total = sum(value.numel() for value in forms.values())
    budget = max(3, int(density * total))
    found = pool(forms, budget, count, noise, seed)
    assert 1 <= len(found) <= count
    assert all(each != other for k, each in enumerate(found) for other in found[:k])
    for each in found:
        assert sum(each.values()) == budget
        assert all(1 <= each[name] <= forms[name].numel() for name in forms)
    assert pool(forms, budget, count, noise, seed) == found
    uniform = {name: density * value.numel() for name, value in forms.items()}
    assert all(abs(found[0][name] - uniform[name]) <= 4 for name in forms)  # no noise in the first


def test_a_pool_of_ten_has_ten_and_another_seed_has_others():
    model = Model.init(CNN, 0)
    assert len(drawn(model, 10)) == 10
    assert drawn(model, 10, seed=2) != drawn(model, 10)
    with pytest.raises(ConfigError, match="another density"):
        pool({"a": torch.zeros(4), "b": torch.zeros(4)}, 1, 1, 0.5, 0)


@pytest.mark.parametrize("nested", [True, False])
def test_devices_see_the_same_candidates_however_they_are_sent(nested):
    model = Model.init(CNN, 0)
    model = model.replace({n: (v * 20).round() / 20 for n, v in model.weights.items()})  # many ties, and zeros
    counts = drawn(model)
    sent = Measure(model.arch, shared(model, counts, nested), tuple(counts), "cumulative", 0.1, "pooled", 64)
    assert len(sent.models) == (1 if nested else 3)
    for found, each in zip(candidates(sent), counts, strict=True):
        for name in NAMES:
            order = model.weights[name].flatten().abs().argsort(descending=True, stable=True)[: each[name]]
            want = torch.zeros(model.weights[name].numel())
            want[order] = model.weights[name].flatten()[order]
            assert torch.equal(found.weights[name].flatten(), want)
        rest = found.weights.keys() - set(NAMES)
        assert all(torch.equal(found.weights[name], model.weights[name]) for name in rest)


@pytest.mark.parametrize("statistics", ["cumulative", "ema"])
def test_both_passes_leave_weights_alone_and_statistics_move(statistics):
    model, me = Model.init(CNN, 0), person()
    sent = request(model, drawn(model), statistics=statistics)
    before = bytes(encode(sent))
    answer, memory = measure.run(sent, me, {"mine": 1})
    assert set(answer.statistics[0]) == set(statistics_of(model.weights))  # nothing else is uploaded
    assert answer.examples == 20
    for each in answer.statistics:
        assert all(not torch.equal(value, model.weights[name]) for name, value in each.items())
    judged, memory = judge.run(Judge(answer.statistics), me, memory)
    assert bytes(encode(sent)) == before
    assert memory == {"mine": 1}
    assert len(judged.losses) == 3
    with pytest.raises(Forgotten):
        judge.run(Judge(answer.statistics), me, memory)


def test_one_device_has_the_centralised_statistics():
    model, me = Model.init(CNN, 0), person(count=40)
    counts = drawn(model)
    answer, _ = measure.run(request(model, counts), me, {})
    for found, candidate in zip(answer.statistics, candidates(request(model, counts)), strict=True):
        net = candidate.build().train()
        for layer in net.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None
                layer.reset_running_stats()
        net(me.train.x)
        for name, value in found.items():
            torch.testing.assert_close(value, net.state_dict()[name], rtol=1e-5, atol=1e-5)


def test_batches_count_by_their_samples_and_a_single_one_joins():
    model, me = Model.init(CNN, 0), person(count=33)
    how = request(model, drawn(model), batch=16)
    found = measured(model, me.train, how)
    first = (me.train[:16], me.train[16:])
    mean = sum(len(part) * model.build().train()[0][0](part.x).mean((0, 2, 3)) for part in first) / 33
    torch.testing.assert_close(found["stem.norm.running_mean"], mean.detach(), rtol=1e-4, atol=1e-6)
    plain = torch.nn.functional.conv2d(me.train.x, model.weights["stem.conv.weight"], padding=1)
    # the first layer sees the images themselves: batches pooled are the whole, but for Bessel's correction
    torch.testing.assert_close(found["stem.norm.running_var"], plain.var((0, 2, 3)), rtol=1e-3, atol=1e-5)


def test_the_development_split_judges_where_there_is_one():
    model = Model.init(CNN, 0)
    answer, _ = measure.run(request(model, drawn(model)), person(valid=5), {})
    assert answer.examples == 5


def test_selection_end_to_end():
    people = [person("a", 30, 1), person("b", 10, 2, scale=3.0)]
    model, how = Model.init(CNN, 0), Selection()
    counts = drawn(model)
    found, ledger, fleet = chosen(people, how)
    assert found.losses[found.index] == min(found.losses)
    assert len(found.losses) == 3
    assert {name: int(mask.sum()) for name, mask in found.masks.items()} == counts[found.index]
    for name, value in found.model.weights.items():
        if name.endswith(("running_mean", "running_var")):
            assert not torch.equal(value, model.weights[name])
        else:
            assert torch.equal(value, masked(model.weights, found.masks)[name])
    assert [row["kind"] for row in ledger if row["direction"] == "up"] == ["candidates/measured@1"] * 2 + [
        "candidates/judged@1"
    ] * 2
    assert fleet._slots.memory("a") == {}  # the candidates are gone after pass B
    backwards, *_ = chosen(people[::-1], how)
    assert backwards.index == found.index
    assert all(torch.equal(value, backwards.model.weights[name]) for name, value in found.model.weights.items())
    separate, *_ = chosen(people, Selection(nested=False))
    assert separate.index == found.index
    assert separate.losses == found.losses


def test_vanilla_judges_with_the_servers_statistics():
    model = Model.init(CNN, 0)
    found, *_ = chosen([person()], Selection(by="vanilla"), model=model)
    own = statistics_of(model.weights)
    assert all(torch.equal(found.model.weights[name], value) for name, value in own.items())


def test_sending_the_union_costs_less_than_sending_each():
    people = [person()]
    down = [
        sum(
            row["bytes"] for row in chosen(people, Selection(nested=nested))[1] if row["kind"] == "candidates/measure@1"
        )
        for nested in (True, False)
    ]
    assert down[0] < 0.6 * down[1]


def test_statistics_that_are_not_finite_are_dropped():
    people = [person("a"), person("b", scale=float("nan"))]
    found, *_ = chosen(people, Selection())
    alone, *_ = chosen(people[:1], Selection())
    assert found.losses == alone.losses
    with pytest.raises(Unanswered, match="no statistics"):
        chosen(people[1:], Selection())


@pytest.mark.parametrize("wrong", [{"pool": -1}, {"batch": 1}, {"noise": 2.0}, {"momentum": 0.0}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Selection(**wrong)
