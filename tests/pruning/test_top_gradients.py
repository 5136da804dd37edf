"""The largest gradients at pruned places against torch.topk and the whole gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbonsai.errors import NotFinite
from fedbonsai.stages.pruning.masks import keep_top
from fedbonsai.stages.pruning.places import checked
from fedbonsai.stages.pruning.top_gradients import Buffer, top_gradients
from fedbonsai.training.gradients import gradient
from fedbonsai.work import collecting
from tests.pruning.sparse import person, sparse_model


@pytest.mark.slow
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


def test_the_pass_is_reported_as_work():
    model, masks = sparse_model()
    me = person(count=24)
    with collecting() as done:
        top_gradients(model, me, masks, {"features.conv2.weight": 50}, me.train)
    assert [(episode.backward, episode.forward, episode.steps, episode.held) for episode in done] == [(24, 0, 0, 400)]
    assert set(done[0].kept) == {"features.conv1.weight"}  # the unit's own gradient is dense
