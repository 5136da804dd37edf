"""Progressive pruning against the worked step of specs/fedtiny §8, the mistakes that it tells apart, and RigL."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbonsai.errors import BadMessage
from fedbonsai.methods.fedtiny.growth import Growth
from fedbonsai.stages.pruning.grow_prune import adjust, mean_gradients
from fedbonsai.stages.pruning.places import Pairs, checked, packed_places
from fedbonsai.stages.pruning.top_gradients import Buffer, top_gradients
from fedbonsai.training.gradients import gradient
from tests.pruning.sparse import person, sparse_model

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
    assert (found.masks["w"] ^ mask["w"]).nonzero().flatten().tolist() == [2, 5, 6, 14]
    assert found.regrown == 2
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


@pytest.mark.slow
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
    changed = found.masks["w"] ^ mask
    assert int(changed.sum()) == 2 * found.regrown == 2 * done
    assert not found.weights["w"][changed].any()
    assert torch.equal(found.weights["w"][~changed], w[~changed])
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
