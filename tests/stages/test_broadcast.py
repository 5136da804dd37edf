import pytest
import torch

from fedbonsai.arch import Arch
from fedbonsai.core import Device, Silence, forgetful
from fedbonsai.errors import Forgotten
from fedbonsai.model import Model
from fedbonsai.stages.broadcast import Broadcast, Changes, Coded, Downlink, Whole, grouped, received
from fedbonsai.stages.codec import parse
from fedbonsai.stages.requests import requests_for
from fedbonsai.wire import decode, encode

ARCH = Arch("mlp", {"widths": (40,)})
A, B, C = (Device(id) for id in "abc")


def drift(model, t):
    g = torch.Generator().manual_seed(t)
    return {n: v + 0.01 * torch.randn(v.shape, generator=g) for n, v in model.items()}


def test_without_a_chain_weights_travel_as_they_are():
    weights = Model.init(ARCH, 0).weights
    state, sent, start = Broadcast().advance(weights, Downlink(), 0)
    assert isinstance(sent, Whole)
    assert sent.weights is weights is start
    got, memory = received(sent, ARCH, {})
    assert memory == {}
    assert all(torch.equal(got[n], weights[n]) for n in weights)
    assert state == Broadcast()


def test_packed_weights_start_where_the_server_thinks():
    weights = Model.init(ARCH, 0).weights
    _, sent, start = Broadcast().advance(weights, Downlink(parse(["fp16"])), 0)
    assert isinstance(sent, Coded)
    assert len(encode(sent)) < 0.55 * len(encode(Whole(weights)))
    got, memory = received(decode(encode(sent)), ARCH, {})
    assert all(torch.equal(got[n], start[n]) for n in weights)
    assert memory == {}


def test_clients_that_missed_rounds_end_with_the_replica_bit_for_bit():
    down = Downlink(parse([{"topk": {"fraction": 0.05, "min_numel": 0}}, "ternary"]), delta=True)
    weights, state = Model.init(ARCH, 0).weights, Broadcast()
    memories: dict[Device, dict] = {A: {}, B: {}, C: {}}
    kinds = []
    for t in range(8):
        weights = drift(weights, t)
        state, common, start = state.advance(weights, down, t)
        asked = [d for d in (A, B, C) if d == A or (d == B and t % 3 == 0) or (d == C and t in (0, 7))]
        for device, sent in grouped(state, asked, common, down).items():
            got, memories[device] = received(decode(encode(sent)), ARCH, memories[device])
            assert all(torch.equal(got[n], start[n]) for n in weights)
            kinds.append((t, device.id, type(sent).__name__, len(sent.packed) if isinstance(sent, Changes) else 0))
        state = decode(encode(state)).received([d.id for d in asked])
    assert (0, "a", "Whole", 0) in kinds
    assert (3, "a", "Changes", 1) in kinds
    assert (3, "b", "Changes", 3) in kinds
    assert (7, "c", "Changes", 7) in kinds


def test_what_was_not_sent_is_sent_later():
    down = Downlink(parse([{"topk": {"fraction": 0.02, "min_numel": 0}}]), delta=True)
    weights, state = Model.init(ARCH, 0).weights, Broadcast()
    state, _, start = state.advance(weights, down, 0)
    goal = drift(weights, 1)
    for t in range(1, 60):
        state, _, start = state.advance(goal, down, t)
    assert max(float((start[n] - goal[n]).abs().max()) for n in goal) < 1e-6


def test_old_changes_are_forgotten_once_the_whole_is_cheaper():
    down = Downlink(parse([{"affine": 8}]), delta=True)
    weights, state = Model.init(ARCH, 0).weights, Broadcast()
    for t in range(9):
        weights = drift(weights, t)
        state, common, _ = state.advance(weights, down, t)
        state = state.received(["a"]) if t == 0 else state
    assert len(state.changes) == 3  # four changes of a quarter each are no cheaper than the whole
    assert isinstance(state.to(A, common, down), Whole)


def test_a_client_that_forgot_gets_everything_again():
    state = Broadcast({"w": torch.zeros(3)}, 4, (), {"a": 4, "b": 4})
    lost = {A: Silence(A, "forgot", forgot=True), B: Silence(B, "timeout")}
    after = state.needs_full(forgetful(lost))
    assert after.holders == {"a": -1, "b": 4}
    assert isinstance(after.to(A, Whole({"w": torch.zeros(3)}, 4), Downlink(delta=True)), Whole)
    with pytest.raises(Forgotten, match="version 3"):
        received(Changes(3, ()), ARCH, {})


def test_a_downlink_that_would_lose_the_model_is_refused():
    with pytest.raises(ValueError, match="delta = true"):
        Downlink(parse([{"topk": 0.1}]))
    with pytest.raises(ValueError, match="feedback"):
        Downlink(parse(["ef14", {"topk": 0.1}]), delta=True)
    with pytest.raises(ValueError, match="feeds errors back, as ef14 does, with affine of 1 bit"):
        Downlink(parse([{"affine": 1}]), delta=True)
    assert Downlink(parse([{"affine": 1}])).chain.stages  # nothing is fed back


def test_who_never_took_part_draws_the_first_model_and_gets_all_changes():
    down = Downlink(parse([{"topk": {"fraction": 0.02, "min_numel": 0}}, "ternary"]), delta=True)
    model = Model.init(ARCH, 7)
    state, weights = Broadcast.of(model, down), model.weights
    for t in range(4):
        weights = drift(weights, t)
        state, common, start = state.advance(weights, down, t)
    sent = state.to(A, common, down)
    assert isinstance(sent, Changes)
    assert (sent.base, len(sent.packed)) == (0, 4)
    assert len(encode(sent)) < 0.2 * len(encode(common))
    got, memory = received(decode(encode(sent)), ARCH, {})
    assert all(torch.equal(got[n], start[n]) for n in start)
    assert memory["broadcast"]["version"] == 4
    from dataclasses import replace

    with pytest.raises(Forgotten, match="drawn here"):
        received(replace(sent, check=sent.check ^ 1), ARCH, {})
    moved = Broadcast.of(model.replace(model.weights), down)
    assert isinstance(moved.advance(weights, down, 0)[0].to(A, common, down), Whole)


def test_a_request_is_made_once_for_all_that_are_sent_the_same():
    devices, made = [Device(id) for id in "abc"], []
    common, other = object(), object()
    requests = requests_for(
        dict(zip(devices, (common, common, other), strict=True)), lambda part: made.append(part) or len(made)
    )
    assert made == [common, other]
    assert list(requests.items()) == list(zip(devices, (1, 1, 2), strict=True))
