"""specs/prunefl §8.1 to §8.6, §8.8 to §8.10, §8.12 and §8.14, and the optimum against brute force."""

import math
import random
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbonsai.arch import networks
from fedbonsai.errors import ConfigError
from fedbonsai.methods.prunefl.importance import importances
from fedbonsai.stages.pruning.masks import keep_global
from fedbonsai.stages.pruning.per_time import full, halved, optimum, protected, settled, turned
from fedbonsai.stages.pruning.scores import snip
from fedbonsai.stages.pruning.time_model import TABLES, TAU, Measured, Seconds, Table


def row(*values):
    return torch.tensor(values, dtype=torch.float64)


def bits(text):
    return torch.tensor([c == "1" for c in text])


def text(mask):
    return "".join("1" if on else "0" for on in mask.tolist())


WORKED = {
    "weights": {"A": row(5, -4, 3, -2, 1, 0.5, 0.4, 0.3, 0.2, 0.1), "B": row(2, -1.5, 1, 0.8, 0.6, 0.4)},
    "masks": {"A": bits("1111111000"), "B": bits("111110")},
    "importance": {"A": row(9, 1, 4, 0.25, 0.09, 2, 0.04, 6, 0.5, 0.01), "B": row(3, 0.2, 0.1, 0.05, 0.6, 0.7)},
}
TIMES = {"A": 1.0, "B": 0.5}


def ratio(masks, z, times, constant, always=0.0):
    gain = always + sum(float(z[name][mask].sum()) for name, mask in masks.items())
    return gain / (constant + sum(times[name] * int(mask.sum()) for name, mask in masks.items()))


def greedy(weights, masks, importance, times, constant, fraction, always=0.0):
    """The authors' rule in plain words: best ratio first, stop at the first that does not exceed Gamma."""
    held = protected(weights, masks, fraction)
    new = {name: mask.clone() for name, mask in held.items()}
    free = [(float(importance[n][j]) / times[n], n, j) for n in masks for j in range(len(masks[n])) if not held[n][j]]
    gain = always + sum(float(importance[n][m].sum()) for n, m in held.items())
    time = constant + sum(times[n] * int(m.sum()) for n, m in held.items())
    for rho, name, j in sorted(free, key=lambda item: -item[0]):
        if not rho > gain / time:
            break
        new[name][j] = True
        gain, time = gain + float(importance[name][j]), time + times[name]
    return new


def brute(weights, masks, importance, times, constant, fraction):
    held = protected(weights, masks, fraction)
    free = [(n, j) for n in masks for j in range(len(masks[n])) if not held[n][j]]
    best = 0.0
    for count in range(len(free) + 1):
        for chosen in combinations(free, count):
            new = {name: mask.clone() for name, mask in held.items()}
            for name, j in chosen:
                new[name][j] = True
            best = max(best, ratio(new, importance, times, constant))
    return best


def test_the_worked_reconfiguration():  # specs/prunefl §8.1
    held = protected(WORKED["weights"], WORKED["masks"], 0.3)
    assert {n: text(m) for n, m in held.items()} == {"A": "1111100000", "B": "111100"}
    assert ratio(held, WORKED["importance"], TIMES, 4) == pytest.approx(1.608182, abs=1e-6)  # 17.69 / 11
    found = optimum(**WORKED, seconds=TIMES, constant=4, fraction=0.3)
    assert {n: text(m) for n, m in found.items()} == {"A": "1111110100", "B": "111100"}
    assert ratio(found, WORKED["importance"], TIMES, 4) == pytest.approx(1.976154, abs=1e-6)
    assert ratio(found, WORKED["importance"], TIMES, 4) == pytest.approx(
        brute(**WORKED, times=TIMES, constant=4, fraction=0.3)
    )


def test_all_candidates_may_be_kept():  # specs/prunefl §8.2: 300 of these crash the authors' heap
    layer = {"A": row(4, 3, 2, 1)}
    ones = {"A": row(1, 1, 1, 1)}
    assert text(optimum(layer, {"A": bits("1111")}, ones, {"A": 1.0}, 100, 0.3)["A"]) == "1111"


def test_without_importance_only_the_protected_remain():  # specs/prunefl §8.2
    zero = {n: torch.zeros_like(z) for n, z in WORKED["importance"].items()}
    found = optimum(WORKED["weights"], WORKED["masks"], zero, TIMES, 4, 0.3)
    assert {n: text(m) for n, m in found.items()} == {"A": "1111100000", "B": "111100"}


def test_a_ratio_of_exactly_gamma_is_rejected():  # specs/prunefl §8.2
    # protected: 2 weights of z = 4 in 2 + 2 seconds: Gamma = 2; the third has ratio 2
    found = optimum({"A": row(3, 2, 1)}, {"A": bits("111")}, {"A": row(4, 4, 2)}, {"A": 1.0}, 2, 0.4)
    assert text(found["A"]) == "110"
    found = optimum({"A": row(3, 2, 1)}, {"A": bits("111")}, {"A": row(4, 4, 2.001)}, {"A": 1.0}, 2, 0.4)
    assert text(found["A"]) == "111"


def test_a_layer_is_never_emptied():  # specs/prunefl §8.2
    weights, mask, counts = {"A": torch.arange(1.0, 11)}, {"A": torch.ones(10, dtype=torch.bool)}, []
    for _ in range(5):
        mask = optimum(weights, mask, {"A": torch.zeros(10)}, {"A": 1.0}, 1, 0.3)
        counts.append(int(mask["A"].sum()))
    assert counts == [7, 5, 4, 3, 3]


def instance(seed):
    draw = random.Random(seed)
    sizes = [draw.randint(1, 6), draw.randint(1, 6)]
    weights = {n: row(*(draw.gauss(0, 1) for _ in range(k))) for n, k in zip("AB", sizes, strict=True)}
    masks = {n: torch.tensor([draw.random() < 0.7 for _ in w]) for n, w in weights.items()}
    masks["A"][0] = True
    z = {n: row(*(draw.expovariate(1) for _ in w)) for n, w in weights.items()}
    return (
        {"weights": weights, "masks": masks, "importance": z},
        {n: draw.uniform(0.1, 2) for n in "AB"},
        draw.uniform(0, 10),
    )


@pytest.mark.slow
def test_three_hundred_random_instances_equal_brute_force_and_greedy():  # specs/prunefl §8.3 and §8.4
    for seed in range(300):
        given_, times, constant = instance(seed)
        fraction = random.Random(seed).choice([0.3, 0.5, 0.9])
        found = optimum(**given_, seconds=times, constant=constant, fraction=fraction)
        best = brute(**given_, times=times, constant=constant, fraction=fraction)
        gamma = ratio(found, given_["importance"], times, constant)
        assert gamma == pytest.approx(best, abs=1e-9)
        other = greedy(**given_, times=times, constant=constant, fraction=fraction)
        assert {n: text(m) for n, m in found.items()} == {n: text(m) for n, m in other.items()}
        held = protected(given_["weights"], given_["masks"], fraction)
        for n, z in given_["importance"].items():  # accepted <=> z > Gamma* t
            assert torch.equal(found[n] & ~held[n], ~held[n] & (z > gamma * times[n]))


layers = st.integers(1, 5).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(-9, 9), min_size=k, max_size=k),
        st.lists(st.booleans(), min_size=k, max_size=k),
        st.lists(st.integers(0, 6), min_size=k, max_size=k),  # integers, so that ties occur
    )
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    layers, layers, st.sampled_from([0.25, 1.0, 3.0]), st.sampled_from([0.5, 4.0, 100.0]), st.sampled_from([0.3, 0.6])
)
def test_no_mask_gains_more_per_second(a, b, t, constant, fraction):
    weights = {"A": row(*a[0]), "B": row(*b[0])}
    masks = {"A": torch.tensor(a[1]), "B": torch.tensor(b[1])}
    z = {"A": row(*a[2]), "B": row(*b[2])}
    times = {"A": t, "B": 1.0}
    found = optimum(weights, masks, z, times, constant, fraction)
    assert ratio(found, z, times, constant) == pytest.approx(
        brute(weights, masks, z, times, constant, fraction), abs=1e-9
    )
    held = protected(weights, masks, fraction)
    assert all(bool((found[n] | ~held[n]).all()) for n in masks)


def test_a_large_mask_equals_the_greedy_one():  # specs/prunefl §8.4
    draw = torch.Generator().manual_seed(0)
    weights = {n: torch.randn(k, generator=draw) for n, k in (("A", 2000), ("B", 500))}
    masks = {n: torch.rand(w.shape, generator=draw) < 0.5 for n, w in weights.items()}
    z = {n: torch.randn(w.shape, generator=draw).square() for n, w in weights.items()}
    args = (weights, masks, z, {"A": 0.2, "B": 1.0}, 50.0, 0.3)
    assert all(torch.equal(m, greedy(*args)[n]) for n, m in optimum(*args).items())


def test_invariances():  # specs/prunefl §8.5
    draw = torch.Generator().manual_seed(1)
    weights = {n: torch.randn(300, generator=draw) for n in "AB"}
    masks = {n: torch.rand(300, generator=draw) < 0.6 for n in "AB"}
    z = {n: torch.randn(300, generator=draw).square() for n in "AB"}
    first = optimum(weights, masks, z, TIMES, 20, 0.3)
    scaled = optimum(weights, masks, {n: 8 * v for n, v in z.items()}, TIMES, 20, 0.3)
    slower = optimum(weights, masks, z, {n: 4 * t for n, t in TIMES.items()}, 80, 0.3)
    assert all(torch.equal(first[n], scaled[n]) and torch.equal(first[n], slower[n]) for n in "AB")
    before = first
    for constant in (50, 200, 1e4):
        now = optimum(weights, masks, z, TIMES, constant, 0.3)
        assert all(bool((now[n] | ~before[n]).all()) for n in "AB")
        before = now
    z["A"][::3] = 0
    last = optimum(weights, masks, z, TIMES, 1e15, 0.3)
    held = protected(weights, masks, 0.3)
    assert all(torch.equal(last[n], held[n] | (z[n] > 0)) for n in "AB")


def test_a_bound_on_what_is_kept_is_exact():  # specs/prunefl §7 item 6: 8 of 10, not 9
    weights, ones = {"A": torch.arange(10.0, 0, -1)}, {"A": torch.ones(10, dtype=torch.bool)}
    z = {"A": torch.arange(10.0, 0, -1).double()}
    args = (weights, ones, z, {"A": 1.0}, 1e9, 0.9)
    assert text(optimum(*args)["A"]) == "1111111111"
    assert text(optimum(*args, most=8)["A"]) == "1111111100"
    assert text(optimum(*args, most=1)["A"]) == "1000000000"
    assert text(optimum(*args, most=0)["A"]) == "1000000000"  # the protected one stays
    free = optimum(**WORKED, seconds=TIMES, constant=4, fraction=0.3)
    for most, want in ((12, free), (11, free), (10, {"A": "1111100100", "B": "111100"})):
        found = optimum(**WORKED, seconds=TIMES, constant=4, fraction=0.3, most=most)
        assert {n: text(m) for n, m in found.items()} == {
            n: m if isinstance(m, str) else text(m) for n, m in want.items()
        }


@pytest.mark.slow
def test_under_a_bound_the_best_by_ratio_are_kept_and_ties_go_to_the_lower_layer():
    for seed in range(100):
        given_, times, constant = instance(seed)
        held = sum(int(m.sum()) for m in protected(given_["weights"], given_["masks"], 0.5).values())
        free = greedy(**given_, times=times, constant=constant, fraction=0.5)
        for most in range(held, sum(int(m.sum()) for m in free.values()) + 1):
            found = optimum(**given_, seconds=times, constant=constant, fraction=0.5, most=most)
            assert sum(int(m.sum()) for m in found.values()) == most
            assert all(not bool((found[n] & ~free[n]).any()) for n in found)
            left = [
                float(given_["importance"][n][j]) / times[n] for n in found for j in torch.where(free[n] & ~found[n])[0]
            ]
            inside = protected(given_["weights"], given_["masks"], 0.5)
            kept = [
                float(given_["importance"][n][j]) / times[n]
                for n in found
                for j in torch.where(found[n] & ~inside[n])[0]
            ]
            assert not left or not kept or min(kept) >= max(left)
    two = {"A": row(3, 1), "B": row(3, 1)}
    both = {"A": bits("11"), "B": bits("11")}
    ones = {"A": row(9, 5), "B": row(9, 5)}
    found = optimum(two, both, ones, {"A": 1.0, "B": 1.0}, 1e6, 0.5, most=3)
    assert {n: text(m) for n, m in found.items()} == {"A": "11", "B": "10"}


def test_what_is_never_pruned_counts_as_gain_and_not_as_time():
    args = ({"A": row(3, 2, 1)}, {"A": bits("111")}, {"A": row(4, 4, 2.001)}, {"A": 1.0}, 2, 0.4)
    assert text(optimum(*args)["A"]) == "111"
    assert text(optimum(*args, always=0.1)["A"]) == "110"


def test_importances_that_are_not_finite_end_too():
    for bad in (math.nan, math.inf):
        found = optimum({"A": row(3, 2, 1)}, {"A": bits("111")}, {"A": row(bad, 4, 2)}, {"A": 1.0}, 2, 0.4)
        assert text(found["A"]) == "110"


def test_refusals():
    with pytest.raises(ValueError, match="share"):
        protected({"A": row(1, 2)}, {"A": bits("11")}, 1.0)
    with pytest.raises(ValueError, match="more than 0 for a weight"):
        optimum({"A": row(1)}, {"A": bits("1")}, {"A": row(1)}, {"A": 0.0}, 1, 0.3)


def test_importance_sums_before_it_squares():  # specs/prunefl §8.6
    summed = {"w": row(1, -2) + row(3, 2), "b": row(2)}
    z, rest = importances(summed, {"w": bits("11")}, 1)
    assert z["w"].tolist() == [16, 0]
    assert rest == 4


@pytest.mark.parametrize(("stale", "value"), [(True, 3.5), (False, 0.0)])
def test_a_weight_comes_back_with_its_value_or_with_zero(stale, value):  # specs/prunefl §8.8
    weights, ones, one = {"w": row(3.5, 1)}, {"w": bits("11")}, {"w": bits("01")}
    weights, shelf = turned(weights, {}, ones, one, stale)
    assert weights["w"].tolist() == [0, 1]
    weights = {"w": weights["w"] + row(0, 9)}  # fifty rounds later
    assert full(weights, shelf, one)["w"].tolist() == [value, 10]
    weights, shelf = turned(weights, shelf, one, ones, stale)
    assert weights["w"].tolist() == [value, 10]
    assert all(not bool(kept.any()) for kept in shelf.values())


def test_schedules():  # specs/prunefl §8.9
    assert [0.3 * halved(t, 10_000) for t in (0, 5_000, 10_000, 20_000)] == pytest.approx(
        [0.3, 0.21213, 0.15, 0.075], abs=1e-5
    )
    assert 0.1 * halved(10_000, 10_000) == pytest.approx(0.05)
    assert 0.05 * halved(1_999, 10_000, 1_000) == pytest.approx(0.046652, abs=1e-6)
    assert halved(7, 0) == 1


def test_the_scout_stops_after_five_small_changes():  # specs/prunefl §8.10
    densities = [1, 0.7, 0.5, 0.4, 0.37, 0.35, 0.34, 0.335, 0.333]
    assert [settled(densities[:k]) for k in range(1, 10)] == [False] * 8 + [True]
    assert [settled([0.5] * k) for k in range(1, 8)] == [False] * 5 + [True] * 2


def test_snip_and_iterative_pruning_are_these_stages():  # specs/prunefl §8.14
    draw = torch.Generator().manual_seed(2)
    weights = {"A": torch.randn(40, 50, generator=draw), "B": torch.randn(700, generator=draw)}
    gradients = {n: torch.randn(w.shape, generator=draw) for n, w in weights.items()}
    n, density = 2700, 0.134
    kept = keep_global(snip(weights, gradients), int(density * n) + 1)
    assert sum(int(m.sum()) for m in kept.values()) == 361 + 1
    share, masks = 1 - density ** (1 / 20), {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}
    assert (1 - share) ** 20 == pytest.approx(density)
    assert share == pytest.approx(0.096, abs=1e-3)
    for _ in range(20):  # the smallest magnitudes of every layer go
        masks = protected(weights, masks, share)
    for mask in masks.values():  # each step rounds down by less than one weight
        assert 0 <= int(mask.sum()) - density * mask.numel() < 1 / share


@pytest.mark.parametrize(
    ("network", "weights", "total", "conventional", "constant", "compute", "spread", "step"),
    [
        ("conv2", 6_601_504, 51.081, 47.958, 6.2464, 8.120, 7.4, None),
        ("vgg11", 9_747_136, 209.614, 211.781, 86.8495, 68.555, 9.1, 31.081),
        ("conv4", 30_816, 13.417, 18.793, 7.9900, 5.256, 307, None),
        ("resnet18", 11_046_080, 201.266, 188.112, 72.8002, 67.032, 10.5, 27.966),
    ],
)
def test_the_round_time_of_the_full_model(  # specs/prunefl §8.12 and §1.5
    network, weights, total, conventional, constant, compute, spread, step
):
    sizes = {str(k): n for k, n in enumerate(TABLES[network].weights)}
    assert sum(sizes.values()) == weights
    times = Table(network).of_sizes(sizes, 5)
    masks = {n: torch.ones(k, dtype=torch.bool) for n, k in sizes.items()}
    assert times.round(masks) == pytest.approx(total, abs=2e-3)
    assert times.constant == pytest.approx(constant, abs=1e-4)
    assert times.round({n: ~m for n, m in masks.items()}) == pytest.approx(times.constant)
    assert 5 * (times.step(masks) - times.base) == pytest.approx(compute, abs=1e-3)
    assert times.conventional(masks) == pytest.approx(conventional, abs=2e-3)
    assert max(times.each.values()) / min(times.each.values()) == pytest.approx(spread, rel=8e-3)
    if step is not None:  # where the sum equals what was measured with all weights in sparse form
        assert times.step(masks) == pytest.approx(step, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "table", "parameters", "total"),
    [
        ("conv2", "conv2", 6_603_710, 51.081),
        ("vgg11", "vgg11", 9_750_922, 209.614),
        ("resnet18-7x7", "resnet18", 11_227_812, 201.266),
    ],
)
def test_coefficients_meet_the_networks_that_are_built(name, table, parameters, total):  # specs/prunefl §8.12
    net = dict(networks()[name]().named_parameters())
    masks = {n: torch.ones(p.shape, dtype=torch.bool) for n, p in net.items() if p.ndim > 1 and "shortcut" not in n}
    sizes = {n: m.numel() for n, m in masks.items()}
    assert sum(p.numel() for p in net.values()) == parameters
    assert tuple(sizes.values()) == TABLES[table].weights  # layer by layer
    assert Table(table).of_sizes(sizes, 5).round(masks) == pytest.approx(total, abs=2e-3)


def test_a_table_is_for_as_many_layers_as_it_has():
    with pytest.raises(ConfigError, match="of 4 layers, this network has 2"):
        Table("conv2").of_sizes({"a": 3, "b": 4}, 5)


def test_measured_coefficients():
    times = Measured(communication=0.5, base=2, latency=1, slopes={"a": 0.25}).of_sizes({"a": 3, "b": 4}, 4)
    assert times == Seconds(0.5, 2, 1, {"a": 0.25, "b": 0.0}, 4, 2 + 3 * 0.25)
    assert times.each == {"a": 1.5, "b": 0.5}
    masks = {"a": bits("101"), "b": bits("1000")}
    assert times.round(masks) == 1 + 4 * 2 + 2 * 1.5 + 0.5
    assert times.step(masks) == 2 + 2 * 0.25
    assert times.conventional(masks) == 1 + 4 * 2.75 + 7 * 0.5
    assert times.travel(16) == 1.0
    assert Measured(dense=9.0).of_sizes({"a": 3}, 5).dense == 9
    assert set(Measured().of_sizes({"a": 3}, 5).slopes.values()) == {0.0}  # no sparse kernels here
    assert math.isclose(TAU, 8 / 1.4384e6, rel_tol=1e-4)


def test_slopes_of_unknown_weights_and_free_weights_are_refused():
    with pytest.raises(ConfigError, match="slopes of"):
        Measured(slopes={"x": 1.0}).of_sizes({"a": 3}, 5)
    with pytest.raises(ConfigError, match="cost nothing"):
        Measured(communication=0).of_sizes({"a": 3}, 5)
    with pytest.raises(ConfigError, match="negative"):
        Measured(slopes={"a": -1e-9}).of_sizes({"a": 3}, 5)
