"""Progressive pruning against the worked step of the specification, the schedule's numbers, RigL, and torch.topk."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbonsai.core import Client, Samples
from fedbonsai.errors import BadMessage, NotFinite
from fedbonsai.local import gradient
from fedbonsai.model import Arch, Model
from fedbonsai.stages.pruning.grow_prune import (
    Buffer,
    Growth,
    Pairs,
    adjust,
    checked,
    masks_of,
    mean_gradients,
    packed_masks,
    packed_places,
    places_of,
    top_gradients,
)
from fedbonsai.stages.pruning.masks import keep_each, keep_top, masked

CNN = Arch("cnn-bn", {"size": 8})
W = [0.50, -0.10, 0, 0.30, 0, -0.05, 0, 0.80, 0, 0, 0.20, 0, -0.40, 0, 0.07, 0]
PRUNED = [2, 4, 6, 8, 9, 11, 13, 15]
GRADIENTS = (
    [-0.40, 0.33, 0.35, -0.05, 0.02, 0.30, 0.01, 0],
    [0.30, 0.32, -0.10, 0.60, 0.01, -0.29, 0.02, 0],
)


def uploads(count=2):
    """What the two devices of the worked step send."""
    sent = []
    for values in GRADIENTS:
        buffer = Buffer(count)
        buffer.offer(torch.tensor(PRUNED), torch.tensor(values))
        sent.append(buffer.taken())
    return sent


def person(count=24, seed=0, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    x, y = scale * torch.randn(count, 1, 8, 8, generator=random), torch.randint(0, 10, (count,), generator=random)
    return Client("a", 7, Samples(x, y), Samples(x[:0], y[:0]))


def test_the_worked_step():
    w, mask = {"w": torch.tensor(W)}, {"w": torch.tensor(W) != 0}
    growth = Growth(units="entire")
    assert growth.fraction(10) * 8 == pytest.approx(2.341, abs=5e-4)
    assert growth.counts(10, mask) == {"w": 2}
    assert Growth(units="entire", rounding="ceil").counts(10, mask) == {"w": 3}
    sent = uploads()
    assert [(p.tolist(), v.tolist()) for p, v in sent] == [
        ([2, 6], pytest.approx([-0.40, 0.35])),
        ([4, 8], pytest.approx([0.32, 0.60])),
    ]
    shares = (300 / 400, 100 / 400)
    mean = mean_gradients([(share, {"w": (p.numpy(), v)}) for share, (p, v) in zip(shares, sent, strict=True)])
    places, values = mean["w"]
    assert dict(zip(places.tolist(), values.tolist(), strict=True)) == pytest.approx(
        {2: -0.30, 6: 0.2625, 8: 0.15, 4: 0.08}
    )
    found = adjust(w, mask, mean, {"w": 2})
    assert found.changed["w"].nonzero().flatten().tolist() == [2, 5, 6, 14]
    want = [0.50, -0.10, 0, 0.30, 0, 0, 0, 0.80, 0, 0, 0.20, 0, -0.40, 0, 0, 0]
    assert torch.equal(found.weights["w"], torch.tensor(want))
    assert found.masks["w"].nonzero().flatten().tolist() == [0, 1, 2, 3, 6, 7, 10, 12]
    assert torch.equal(w["w"], torch.tensor(W))  # nothing is written into


def test_the_worked_step_tells_mistakes_apart():
    sent = [{"w": (p.numpy(), v)} for p, v in uploads()]
    mask = {"w": torch.tensor(W) != 0}
    unweighted = adjust({"w": torch.tensor(W)}, mask, mean_gradients([(0.5, each) for each in sent]), {"w": 2})
    assert (unweighted.masks["w"] & ~mask["w"]).nonzero().flatten().tolist() == [2, 8]
    whole = [{"w": (np.array(PRUNED), torch.tensor(values))} for values in GRADIENTS]
    dense = adjust({"w": torch.tensor(W)}, mask, mean_gradients(list(zip((0.75, 0.25), whole, strict=True))), {"w": 2})
    assert (dense.masks["w"] & ~mask["w"]).nonzero().flatten().tolist() == [4, 6]


def test_fractions_of_the_schedule():
    growth = Growth()
    found = [round(growth.fraction(r), 4) for r in range(10, 101, 10)]
    assert found == [0.2927, 0.2714, 0.2382, 0.1964, 0.15, 0.1036, 0.0618, 0.0286, 0.0073, 0.0]
    masks = {f"l{k}": torch.arange(1000) < 500 for k in range(5)}
    assert [r for r in range(200) if growth.due(r)] == list(range(10, 101, 10))
    assert [r for r in range(200) if growth.counts(r, masks)] == list(range(10, 91, 10))  # the tenth trades nothing
    assert all(growth.counts(r, masks) == {} for r in range(100, 300))
    dense = {"w": torch.ones(10, dtype=torch.bool)}
    assert growth.counts(10, dense) == {}  # nothing is pruned, so nothing can grow
    nearly = {"w": torch.arange(10) < 9}
    assert growth.counts(10, nearly) == {"w": 1}


def test_units_go_from_the_output_to_the_input_and_round_again():
    names = [f"l{k}" for k in range(1, 8)]
    growth = Growth()
    assert growth.groups(names) == [("l1", "l2"), ("l3", "l4"), ("l5",), ("l6",), ("l7",)]
    five = [f"b{k}" for k in range(1, 6)]
    assert [growth.unit(r, five) for r in range(10, 71, 10)] == [(f"b{k}",) for k in (5, 4, 3, 2, 1, 5, 4)]
    assert [Growth(direction="forward").unit(r, five) for r in (10, 20, 60)] == [("b1",), ("b2",), ("b1",)]
    assert Growth(units="entire").unit(10, names) == tuple(names)
    assert Growth(units="layer").groups(names) == [(name,) for name in names]
    assert Growth().groups(["only", "two"]) == [("only",), ("two",)]


@pytest.mark.parametrize("wrong", [{"interval": 0}, {"stop": 0}, {"blocks": 0}, {"batch": 0}, {"share": 1.5}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Growth(**wrong)


@settings(deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=60), st.integers(0, 70), st.integers(1, 9))
def test_the_buffer_is_topk_in_bounded_memory(values, size, chunk):
    flat, buffer, high = torch.tensor(values).float(), Buffer(size), 0
    for begin in range(0, len(flat), chunk):
        part = flat[begin : begin + chunk]
        buffer.offer(torch.arange(begin, begin + len(part)), part)
        high = max(high, len(buffer))
    places, found = buffer.taken()
    kept = min(size, len(flat))
    assert high == kept
    assert torch.equal(places, keep_top(flat.abs(), kept).nonzero().flatten())  # ties to the lower place
    assert torch.equal(found, flat[places])


def test_the_buffer_equals_topk_on_a_long_tensor_in_any_order():
    random = torch.Generator().manual_seed(0)
    flat = torch.randn(20_000, generator=random)
    want = torch.topk(flat.abs(), 300).indices.sort().values
    for order in (torch.arange(20_000), torch.randperm(20_000, generator=random)):
        buffer = Buffer(300)
        for part in order.split(777):
            buffer.offer(part, flat[part])
        assert len(buffer) == 300
        assert torch.equal(buffer.taken()[0], want)


@settings(deadline=None)
@given(st.integers(1, 300), st.data())
def test_places_travel(n, data):
    places = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1)))), dtype=np.int64)
    packed = packed_places(places, n)
    assert places_of(packed, n).tolist() == places.tolist()
    with pytest.raises(BadMessage):
        places_of(packed + b"\0", n)


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(1, 100))
def test_places_of_any_bytes_are_places_or_refused(packed, n):
    try:
        found = places_of(packed, n)
    except BadMessage:
        return
    assert found.tolist() == sorted(set(found.tolist()))
    assert not len(found) or (found[0] >= 0 and found[-1] < n)


def test_masks_travel_and_must_fit():
    masks = {"a": torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) < 0.3, "b": torch.ones(2, 2).bool()}
    packed = packed_masks(masks)
    found = masks_of(packed, {name: torch.zeros(mask.shape) for name, mask in masks.items()})
    assert all(torch.equal(found[name], masks[name]) for name in masks)
    with pytest.raises(BadMessage, match="lacks"):
        masks_of(packed, {"a": torch.zeros(3, 4)})


def sparse_model(density=0.3):
    model = Model.init(CNN, 0)
    names = ["features.conv1.weight", "features.conv2.weight"]
    kept = {name: round(density * model.weights[name].numel()) for name in names}
    masks = keep_each({name: model.weights[name].abs() for name in names}, kept)
    return model.replace(masked(model.weights, masks)), masks


def test_gradients_are_the_largest_at_pruned_places_and_the_model_stays(monkeypatch):
    model, masks = sparse_model()
    before = {name: value.clone() for name, value in model.weights.items()}
    asked = []
    plain = torch.autograd.grad

    def seen(loss, inputs, *more, **options):
        asked.append([tuple(value.shape) for value in inputs])
        return plain(loss, inputs, *more, **options)

    monkeypatch.setattr(torch.autograd, "grad", seen)
    counts = {"features.conv2.weight": 50}
    found = top_gradients(model, me := person(), masks, counts, me.train, chunk=1000)
    assert asked == [[(64, 32, 3, 3)]]  # of the unit in question alone
    monkeypatch.undo()
    whole = gradient(model, me.train, training=True)["features.conv2.weight"].reshape(-1)
    pruned = ~masks["features.conv2.weight"].reshape(-1)
    want = torch.where(pruned, whole.abs(), -1.0).topk(50).indices.sort().values
    places, values = checked(found, masks, counts)["features.conv2.weight"]
    assert places.tolist() == want.tolist()
    torch.testing.assert_close(values, whole[want], rtol=1e-4, atol=1e-6)
    # statistics of normalisation are weights here too
    assert all(torch.equal(value, before[name]) for name, value in model.weights.items())


def test_entire_with_one_device_and_all_data_is_rigl():
    model, masks = sparse_model()
    me, growth = person(), Growth(units="entire", interval=10)
    counts = growth.counts(10, masks)
    assert set(counts) == set(masks)
    sent = checked(top_gradients(model, me, masks, counts, me.train), masks, counts)
    found = adjust(model.weights, masks, mean_gradients([(1.0, sent)]), counts)
    whole = gradient(model, me.train, training=True)
    for name, mask in masks.items():
        w, g, active = model.weights[name].flatten(), whole[name].flatten(), mask.flatten()
        k = counts[name]
        kept = torch.where(active, w.abs(), -1.0).topk(int(active.sum()) - k).indices  # RigL: top-(n - k) of |theta|
        grown = torch.where(active, -1.0, g.abs()).topk(k).indices  # and top-k of |gradient| outside
        want = torch.zeros_like(active)
        want[kept] = want[grown] = True
        assert torch.equal(found.masks[name].flatten(), want)
        assert int(want.sum()) == int(active.sum())
        assert not found.weights[name].flatten()[grown].any()


@settings(deadline=None)
@given(st.data())
def test_adjusting_keeps_every_count_and_all_else(data):
    n = data.draw(st.integers(2, 30))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    w = torch.where(mask, torch.tensor(data.draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n))).float(), 0.0)
    pruned = (~mask).nonzero().flatten().tolist()
    places = sorted(data.draw(st.sets(st.sampled_from(pruned)))) if pruned else []
    values = torch.tensor(data.draw(st.lists(st.integers(-3, 3), min_size=len(places), max_size=len(places)))).double()
    count = min(data.draw(st.integers(0, n)), int(mask.sum()), len(pruned))
    found = adjust({"w": w, "b": w}, {"w": mask}, {"w": (np.array(places, dtype=np.int64), values)}, {"w": count})
    done = min(count, len(places))
    assert int(found.masks["w"].sum()) == int(mask.sum())
    assert int(found.changed["w"].sum()) == 2 * done
    assert torch.equal(found.masks["w"], mask ^ found.changed["w"])
    assert not found.weights["w"][found.changed["w"]].any()
    assert torch.equal(found.weights["w"][~found.changed["w"]], w[~found.changed["w"]])
    assert found.weights["b"] is w


def test_answers_that_cannot_be_are_refused():
    mask = {"w": torch.tensor([True, False, False, True])}

    def pairs(places, values, name="w"):
        return {name: Pairs(packed_places(np.array(places), 4), torch.tensor(values))}

    assert checked(pairs([1], [0.5]), mask, {"w": 1})["w"][0].tolist() == [1]
    assert checked({}, mask, {}) == {}
    for wrong in (
        pairs([0], [0.5]),  # active
        pairs([1, 2], [0.5, 0.5]),  # too many
        pairs([1], [0.5, 0.5]),
        pairs([1], [float("nan")]),
        pairs([1], [1]),  # integers
        pairs([1], [0.5], "v"),
        {},
    ):
        with pytest.raises(BadMessage):
            checked(wrong, mask, {"w": 1})


def test_a_gradient_that_is_not_finite_is_silence():
    model, masks = sparse_model()
    me = person(scale=float("inf"))
    with pytest.raises(NotFinite):
        top_gradients(model, me, masks, {"features.conv2.weight": 5}, me.train)


def test_a_batch_is_enough():
    model, masks = sparse_model()
    me = person(count=3)
    found = top_gradients(model, me, masks, {"features.conv1.weight": 4}, me.train)
    assert found["features.conv1.weight"].values.shape == (4,)
