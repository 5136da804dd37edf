"""Merged catch-up: worked sums, and devices that are exact whatever they missed, lost or were told twice."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedbonsai.arch import Arch
from fedbonsai.core import Device
from fedbonsai.errors import Forgotten
from fedbonsai.model import Model
from fedbonsai.stages.broadcast import Broadcast, Downlink, Merged, Whole, grouped, received
from fedbonsai.stages.codec import Packed, parse
from fedbonsai.wire import decode, encode

ARCH = Arch("mlp", {"widths": (6,)})
STEP = 0.25
A, B, C = (Device(id) for id in "abc")


def downlink(merge, tau=0.2, **more):
    return Downlink(parse([{"threshold": {"tau": tau, "min_numel": 0, **more}}, {"grid": STEP}]), True, merge)


def trail(goals, down, first):
    """The server's state after each of these weights, and what a device without anything is sent."""
    state = Broadcast.of(first if isinstance(first, Model) else Model(ARCH, first), down)
    for goal in goals:
        state, common, _ = state.advance(goal, down, 0)
    return state, common


def test_the_sum_by_hand_has_only_what_changed():
    """Of eight weights one goes forth and back, one by two steps in two rounds, one by one, and one too little to be sent."""
    w0 = {"w": torch.zeros(8)}
    one, two = torch.zeros(8), torch.zeros(8)
    one[:3], one[3] = torch.tensor([0.26, 0.24, -0.3]), 0.1
    two[:3], two[3] = torch.tensor([-0.01, 0.51, -0.3]), 0.1
    state, common = trail([{"w": one}, {"w": two}], downlink(5), w0)
    assert state.replica["w"].tolist() == [0.0, 0.5, -0.25, 0, 0, 0, 0, 0]
    sent = replace(state, holders={"a": 0}).to(A, common, downlink(5))
    change = Packed(sent.change).sparse(w0)["w"]
    assert (sent.base, sent.version) == (0, 2)
    assert change.indices.tolist() == [1, 2]
    assert change.values.tolist() == [0.5, -0.25]
    # record: head, k, rice (b, length, unary), options, exponent, two codes of 2 bits; around it head and CRC
    assert len(sent.change) <= 10 + 9
    late = replace(state, holders={"a": 1}).to(A, common, downlink(5))
    assert Packed(late.change).sparse(w0)["w"].indices.tolist() == [0, 1]


def test_one_message_for_each_version_whoever_asks():
    model = Model.init(ARCH, 1)
    goals = [{n: v + 0.3 * t for n, v in model.weights.items()} for t in range(1, 5)]
    state, common = trail(goals, downlink(9), model)
    state = replace(state, holders={"a": 2, "b": 3, "c": 2})
    sent = grouped(state, [A, B, C], common, downlink(9))
    assert sent[A] is sent[C]
    assert (sent[A].base, sent[B].base) == (2, 3)


def test_memory_is_bounded_and_who_is_too_old_gets_the_sum_of_all():
    model = Model.init(ARCH, 1)
    goals = [{n: v + 0.3 * t for n, v in model.weights.items()} for t in range(1, 9)]
    state, common = trail(goals, downlink(3), model)
    assert len(state.changes) == 3
    sent = [replace(state, holders={"a": held}).to(A, common, downlink(3)) for held in (7, 5, 4, 0)]
    assert [(one.base, one.seed) for one in sent] == [(7, -1), (5, -1), (0, 1), (0, 1)]
    for held in sent[2:]:  # drawn again from the seed, whatever is kept
        weights, _ = received(decode(encode(held)), ARCH, {"broadcast": {"version": 4, "weights": {}}})
        assert all(torch.equal(weights[n], v) for n, v in state.replica.items())
    assert isinstance(replace(state, holders={"a": -1}).to(A, common, downlink(3)), Whole)  # it lost everything


def test_a_first_model_that_is_drawn_otherwise_elsewhere_is_sent_whole():
    model = Model.init(ARCH, 1)
    state, common = trail([{n: v + 1 for n, v in model.weights.items()}], downlink(3), model)
    state = replace(state, check=state.check ^ 1)
    with pytest.raises(Forgotten, match="drawn here"):
        received(state.to(A, common, downlink(3)), ARCH, {})
    assert isinstance(state.needs_full("a").to(A, common, downlink(3)), Whole)


def test_more_steps_than_one_value_holds_are_sent_whole():
    """127 steps a round at most, and a sum of more has no code."""
    first = {"w": torch.zeros(40)}
    state, common = trail([{"w": torch.full((40,), 60.0)}] * 3, downlink(9), first)
    assert state.replica["w"].tolist() == [60.0] * 40  # 31.75, and the rest of 28.25
    sent = [replace(state, holders={"a": held}).to(A, common, downlink(9)) for held in (2, 1, 0)]
    assert [type(one) for one in sent] == [Merged, Merged, Whole]


def test_weights_beyond_the_grid_stay_at_its_edge():
    """4095 steps: what goes on would round, and sums would depend on their order."""
    state, _ = trail([{"w": torch.full((4,), 3000.0)}] * 50, downlink(99), {"w": torch.full((4,), 1000.0)})
    assert state.replica["w"].tolist() == [4095 * STEP] * 4


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ((parse([{"threshold": 0.1}, {"grid": STEP}]), True, -1), "merge = -1"),
        ((parse([{"grid": STEP}]), False, 3), "set downlink.delta = true"),
        ((parse([{"topk": 0.1}, "ternary"]), True, 3), "exact on a grid alone"),
        ((parse([]), True, 3), "exact on a grid alone"),
    ],
)
def test_what_cannot_be_summed_up_is_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        Downlink(*settings)


OTHERS = {  # what does not lie on the grid goes as it is: statistics, counters, halves, what the chain leaves whole
    "a.weight": torch.zeros(5, 7),
    "a.running_mean": torch.zeros(5),
    "a.num_batches_tracked": torch.tensor(0),
    "half": torch.zeros(9, dtype=torch.float16),
    "double": torch.zeros(4, 3, dtype=torch.float64),
    "few": torch.zeros(3),
}
FATES = st.lists(
    st.lists(st.sampled_from(["idle", "asked", "request", "reply", "forgot"]), min_size=3, max_size=3), max_size=12
)


@pytest.mark.slow
@given(
    FATES,
    st.integers(0, 99),
    st.sampled_from([1, 3, 20]),
    st.sampled_from([0.15, 0.3]),
    st.sampled_from(["drawn", "given", "others"]),
)
def test_whatever_a_device_misses_it_has_the_replica_to_the_bit(fates, seed, merge, tau, kind):
    """Random weights; devices are idle, lose the request, the reply, or all they held; the state comes from its bytes."""
    g = torch.Generator().manual_seed(seed)
    down = downlink(merge, tau, min_numel=4)
    model = Model(ARCH, OTHERS) if kind == "others" else Model.init(ARCH, seed)
    model = Model(ARCH, model.weights) if kind == "given" else model
    weights, state = dict(model.weights), Broadcast.of(model, down)
    accepted: dict[str, dict] = {id: {} for id in "abc"}
    for t, three in enumerate(fates):
        weights = {
            n: v + (0.4 * torch.randn(v.shape, generator=g)).to(v.dtype) if v.is_floating_point() else v + 1
            for n, v in weights.items()
        }
        integers = {n: v for n, v in state.replica.items() if not v.is_floating_point()}  # do not move
        state, common, start = state.advance({**weights, **integers}, down, t)
        heard, lost = [], []
        for device, fate in zip((A, B, C), three, strict=True):
            if fate == "forgot":
                accepted[device.id] = {}
            if fate in ("idle", "request"):
                continue
            sent = decode(encode(state.to(device, common, down)))
            try:
                found, memory = received(sent, model.arch, accepted[device.id])
            except Forgotten:
                assert fate == "forgot"
                lost.append(device.id)
                continue
            assert all(torch.equal(found[n], v) and found[n].dtype == v.dtype for n, v in start.items())
            if fate != "reply":
                accepted[device.id] = memory
                heard.append(device.id)
        assert len(state.changes) <= merge
        state = decode(encode(state.received(heard).needs_full(lost)))
        assert all(torch.equal(state.replica[n], v) for n, v in start.items())
