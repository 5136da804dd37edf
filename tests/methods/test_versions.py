"""Who holds what: a device with a stale copy, stale masks, a lost reply or a restored memory never starts from a wrong base."""

from dataclasses import replace

import pytest
import torch

from fedbonsai.core import Device, SavedMemory, Scope, scope
from fedbonsai.errors import Forgotten
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Flaky
from fedbonsai.methods.averaging.client import HOW, Again, Train
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.feddst.method import FedDST
from fedbonsai.methods.fl_pqsu.method import FlPqsu
from fedbonsai.methods.prunefl import local_layers
from fedbonsai.methods.split.rounds import Descent
from fedbonsai.methods.static_mask.method import StaticMask
from fedbonsai.model import Model
from fedbonsai.stages import broadcast, held_masks
from fedbonsai.stages.broadcast import BASE, Broadcast, Changes, Downlink, Whole, grouped
from fedbonsai.stages.codec import parse
from fedbonsai.stages.held_masks import HELD, HeldMasks
from fedbonsai.stages.personal import PERSONAL, merged, owned, split
from fedbonsai.stages.pruning.criteria import Magnitude, Schedule
from fedbonsai.stages.pruning.filters import All
from fedbonsai.stages.pruning.gates import Open
from fedbonsai.stages.pruning.readjust import Readjustment
from fedbonsai.stages.weighting import Weighting
from fedbonsai.training.optimizers import SGD
from tests.methods.averaging import by_hand as hand
from tests.methods.hand import ARCH, BODY, DATA, HEAD, PEOPLE, SINGLE, SINGLES, WHOLE, Played, close

A, B, C = (Device(id) for id in DATA)
TOP = [{"topk": {"count": 4, "min_numel": 0}}]
STEPS = SGD(lr=0.3, momentum=0.5, batch=WHOLE, steps=2)
DELTA = Downlink(parse(TOP), delta=True)
MERGED = Downlink(parse([{"threshold": {"tau": 0.016, "min_numel": 0}}, {"grid": 0.03125}]), delta=True, merge=3)


# --- by hand: one message and one memory ---------------------------------------------------------------------------


def grown(versions):
    """A replica at each version, and the server's state at the last."""
    state, replicas, weights = Broadcast(SINGLE.weights), [SINGLE.weights], dict(SINGLE.weights)
    for t in range(versions):
        weights = {name: value + 0.1 * (t + 1) for name, value in weights.items()}
        state, common, start = state.advance(weights, DELTA, t)
        replicas.append(start)
    return state, common, replicas


@pytest.mark.parametrize("held", [0, 1, 3, 4, None])
def test_changes_apply_to_the_version_they_were_made_of_and_to_no_other(held):
    state, common, replicas = grown(4)
    sent = state.received(["x"]).to(A, common, DELTA)
    assert isinstance(sent, Whole)
    sent = replace(state, holders={"a": 2}).to(A, common, DELTA)
    assert isinstance(sent, Changes)
    assert (sent.base, len(sent.packed)) == (2, 2)
    memory = {} if held is None else {BASE: {"version": held, "weights": replicas[held]}}
    with pytest.raises(Forgotten, match=f"version 2 came, held here: {held}"):
        broadcast.received(sent, ARCH, memory)
    weights, after = broadcast.received(sent, ARCH, {BASE: {"version": 2, "weights": replicas[2]}})
    assert all(torch.equal(weights[name], value) for name, value in replicas[4].items())
    assert after[BASE]["version"] == 4


def test_a_copy_of_another_part_is_no_base():
    state, common, replicas = grown(3)
    sent = replace(state, holders={"a": 2}).to(A, common, DELTA)
    memory = {f"{BASE}/3": {"version": 2, "weights": replicas[2]}}
    with pytest.raises(Forgotten):
        broadcast.received(sent, ARCH, memory)
    with pytest.raises(Forgotten):
        broadcast.received(sent, ARCH, {BASE: memory[f"{BASE}/3"]}, "3")


def test_who_was_heard_of_holds_this_version_and_who_forgot_none():
    state, common, _ = grown(3)
    state = replace(state, holders={"a": 2, "b": 1, "c": 3})
    after = state.received(["b"]).needs_full(["c"])
    assert after.holders == {"a": 2, "b": 3, "c": -1}
    sent = grouped(after, [A, B, C], common, DELTA)
    assert [(type(one).__name__, getattr(one, "base", -1)) for one in sent.values()] == [
        ("Changes", 2),
        ("Changes", 3),
        ("Whole", -1),
    ]
    assert sent[B].packed == ()


def test_who_lost_everything_is_not_taken_for_who_never_took_part():
    """The one gets the whole; the other draws the first model from its seed and gets all changes, if it draws the same."""
    model = Model.init(ARCH, 3)
    state, common, start = Broadcast.of(model, DELTA).advance(plus_one(model.weights), DELTA, 0)
    state = replace(state, holders={"b": -1})
    for order in ([A, B], [B, A]):
        sent = grouped(state, order, common, DELTA)
        assert isinstance(sent[B], Whole)
        assert (sent[A].base, sent[A].seed, len(sent[A].packed)) == (0, 3, 1)
        for one in sent.values():
            weights, memory = broadcast.received(one, ARCH, {})
            assert all(torch.equal(weights[name], value) for name, value in start.items())
            assert memory[BASE]["version"] == 1
    with pytest.raises(Forgotten, match="drawn here"):
        broadcast.received(replace(sent[A], check=sent[A].check + 1), ARCH, {})


def test_parts_of_a_model_draw_apart():
    """Two parts of equal values, rounded at random: the same draw would round both alike."""
    down = Downlink(parse([{"affine": {"bits": 2, "rounding": "stochastic"}}]))
    parts = {name: {f"{name}.weight": torch.arange(64.0)} for name in ("left", "right")}
    start = Descent.of({}, parts, down, 0, 0).start
    assert all((value - torch.arange(64.0)).abs().max() < 21 for value in start.values())  # a step of 63 / 3
    assert not torch.equal(*start.values())


def plus_one(weights):
    return {name: value + 1 for name, value in weights.items()}


MASKS = {BODY: torch.arange(20).reshape(5, 4) % 2 == 0, HEAD: torch.arange(15).reshape(3, 5) % 3 == 0}
OTHER = {name: ~mask for name, mask in MASKS.items()}


@pytest.mark.parametrize("held", [1, 2, 4, None])
@pytest.mark.parametrize("personal", [(), (HEAD, "3.bias")])
def test_values_go_under_the_masks_they_were_packed_under_and_no_others(held, personal):
    """Older masks keep as many weights: nothing else would show that values are put where they do not belong."""
    masks = {name: mask for name, mask in MASKS.items() if name not in personal}
    weights = {name: value for name, value in SINGLE.weights.items() if name not in personal}
    server = HeldMasks(masks, version=3, holders={"a": 3, "b": 2})
    sent = server.send(weights, [A, B, C], 5)
    assert [sent[device].masks is not None for device in (A, B, C)] == [False, True, True]
    memory = {} if held is None else held_masks.hold({}, OTHER, held)
    with pytest.raises(Forgotten, match="under masks of version 3 came"):
        held_masks.received(sent[A], ARCH, memory, personal)
    for device, before in ((A, held_masks.hold({}, masks, 3)), (B, memory), (C, {})):
        found, under, after = held_masks.received(sent[device], ARCH, before, personal)
        assert after[HELD]["version"] == 3
        assert list(found) == list(weights)
        for name, value in weights.items():
            assert torch.equal(found[name], torch.where(masks[name], value, 0) if name in masks else value)
            assert name not in masks or torch.equal(under[name], masks[name])


def test_masks_that_changed_are_new_to_all_and_equal_ones_to_nobody():
    server = HeldMasks(MASKS).received("ab")
    assert server.renewed({name: mask.clone() for name, mask in MASKS.items()}) is server
    newer = server.renewed({**MASKS, HEAD: OTHER[HEAD]})
    assert newer.version == server.version + 1
    assert [newer.holds(device) for device in (A, B, C)] == [False, False, False]
    assert [newer.received(["a", "b"]).silent([B]).holds(device) for device in (A, B, C)] == [True, False, False]


def test_a_part_of_ones_own_is_what_is_kept_else_drawn_anew():
    own = local_layers.Own((HEAD, "3.bias"), 5)
    shared = {name: value for name, value in SINGLE.weights.items() if name not in own.names}
    drawn = {name: local_layers.whole(own, ARCH, shared, {}).weights[name] for name in own.names}
    assert all(torch.equal(value, Model.init(ARCH, 5).weights[name]) for name, value in drawn.items())
    kept = {name: value + 1 for name, value in drawn.items()}
    server = HeldMasks({BODY: MASKS[BODY]}, 2)
    sent = server.send(shared, [A], 0)[A]
    for memory, part in (({}, drawn), ({"personal": kept}, kept)):
        values, masks, after = held_masks.received(sent, ARCH, memory, own.names)
        model = local_layers.whole(own, ARCH, values, memory)
        assert list(model.weights) == list(SINGLE.weights)
        assert all(torch.equal(model.weights[name], value) for name, value in part.items())
        assert torch.equal(model.weights[BODY], torch.where(MASKS[BODY], SINGLE.weights[BODY], 0))
        assert list(masks) == [BODY]
        assert after[HELD]["version"] == 2


# --- whole runs ----------------------------------------------------------------------------------------------------

METHODS = {
    "averaging": (Averaging(STEPS, uplink=parse(["ef14", *TOP]), downlink=DELTA), BASE),
    "distances": (
        Averaging(STEPS, uplink=parse(["ef14", *TOP]), ramp=1, downlink=DELTA, weighting=Weighting(beta=1.0)),
        BASE,
    ),
    "fl-pqsu": (
        FlPqsu(
            STEPS, pretrain=0, keep=All(), gate=Open(), uplink=parse([{"affine": 8}]), downlink=DELTA, skippers="drop"
        ),
        BASE,
    ),
    "averaging-merged": (Averaging(STEPS, uplink=parse(["ef14", *TOP]), downlink=MERGED), BASE),
    "fl-pqsu-merged": (
        FlPqsu(
            STEPS, pretrain=0, keep=All(), gate=Open(), uplink=parse([{"affine": 8}]), downlink=MERGED, skippers="drop"
        ),
        BASE,
    ),
    "static-mask": (
        StaticMask(STEPS, density=0.3, criterion=Magnitude(), distribution="uniform", schedule=Schedule(0, 1, 3)),
        HELD,
    ),
    "feddst": (FedDST(replace(STEPS, steps=0, epochs=2), density=0.5, readjustment=Readjustment(1, 2, 0.6)), HELD),
}


def forged(key, id, kind):
    """Before a round, one device's memory is as an old backup, or one from a later state, has it; or it is gone."""

    def change(memories):
        now = dict(memories[-1])
        memory = dict(now[id].memory)
        if kind == "gone":
            del memory[key]
        elif kind == "older":
            memory[key] = next(past[id].memory[key] for past in memories[1:] if past[id].memory[key]["version"] > 0)
        else:
            memory[key] = {**memory[key], "version": memory[key]["version"] + 1}
        assert kind == "gone" or memory[key]["version"] != now[id].memory[key]["version"]
        now[id] = SavedMemory(now[id].round, now[id].attempt, memory)
        return now

    return change


@pytest.mark.parametrize("kind", ["older", "newer", "gone"])
@pytest.mark.parametrize("name", METHODS)
def test_a_wrong_memory_is_a_lost_reply_and_mended_in_the_next_round(name, kind):
    """To the last bit: the device is silent in that round, and then gets everything."""
    method, key = METHODS[name]
    wrong = Played(method, SINGLES, SINGLE, rounds=7, forged={4: forged(key, "b", kind)})
    lost = Played(method, SINGLES, SINGLE, rounds=7, lost=((4, "b"),))
    assert [id for t, id, _ in wrong.fleet.heard if t == 4] == ["a", "c"]
    assert [id for t, id, _ in wrong.fleet.heard if t == 5] == ["a", "b", "c"]
    sent = {id: request.sent for t, id, request in wrong.fleet.sent if t == 5}
    everything = [isinstance(one, Whole) or getattr(one, "masks", None) is not None for one in sent.values()]
    assert everything == [False, True, False]
    for one, other in zip(wrong.states, lost.states, strict=True):
        assert all(torch.equal(other.model.weights[name], value) for name, value in one.model.weights.items())


def test_who_forgot_how_to_train_is_told_again():
    """And nothing but the checksum goes to those that know it."""

    def forgetful(memories):
        now = dict(memories[-1])
        kept = {key: value for key, value in now["b"].memory.items() if key != HOW}
        return now | {"b": SavedMemory(now["b"].round, now["b"].attempt, kept)}

    method = METHODS["averaging-merged"][0]
    wrong = Played(method, SINGLES, SINGLE, rounds=7, forged={4: forgetful})
    lost = Played(method, SINGLES, SINGLE, rounds=7, lost=((4, "b"),))
    told = [[type(request) for at, _, request in wrong.fleet.sent if at == t] for t in (0, 4, 5, 6)]
    assert told == [[Train] * 3, [Again] * 3, [Again, Train, Again], [Again] * 3]
    for one, other in zip(wrong.states, lost.states, strict=True):
        assert all(torch.equal(other.model.weights[name], value) for name, value in one.model.weights.items())


@pytest.mark.parametrize("delta", [True, False])
def test_a_flaky_fleet_is_as_the_simulation_with_these_devices_silent(delta):
    method = Averaging(
        replace(STEPS, steps=3), uplink=parse(["ef14", *TOP]), downlink=DELTA if delta else Downlink(), rate=0.8
    )
    played = Played(method, rounds=9, fleet=Flaky(LocalFleet(PEOPLE), 0.35), luck=8)
    down = hand.Downlink(hand.topk(4) if delta else hand.exact, delta)
    other = hand.Averaging({"steps": 3, "lr": 0.3, "momentum": 0.5}, hand.topk(4), down, "ef14", reset=20, rate=0.8)
    quiet = 0
    for t in range(9):
        heard = {id for at, id, _ in played.fleet.heard if at == t}
        other.step(t, list(DATA), set(DATA) - heard)
        close(played.states[t + 1].model.weights, other.w)
        quiet += 3 - len(heard)
    assert quiet == 10


@pytest.mark.parametrize("name", ["averaging", "averaging-merged", "fl-pqsu", "fl-pqsu-merged", "distances"])
def test_a_server_that_is_older_than_its_devices_learns_nothing_from_them_at_first(name):
    """Its checkpoint is two rounds old, their memories are of today: all are silent, and then get everything."""
    method = METHODS[name][0]
    state, fleet = (played := Played(method, SINGLES, SINGLE, rounds=5)).states[3], LocalFleet(SINGLES)
    fleet.restore(played.memories[5])
    for t, same in ((3, True), (4, False)):
        with scope(fleet, Scope("r", 0, t, 0)):
            after = method.round(state, t, fleet)
            fleet.commit()
        weights = after.model.weights.items()
        assert all(torch.equal(state.model.weights[name], value) for name, value in weights) == same
        state = after


def test_what_a_device_keeps_goes_before_what_a_new_one_begins_with():
    """A server that was restored may not know that the device has a part of its own."""
    shared, first = split(SINGLE.weights, (HEAD, "3.bias"))
    kept = {name: value + 1 for name, value in first.items()}
    assert all(torch.equal(value, kept[name]) for name, value in owned({PERSONAL: kept}, ARCH, shared, first).items())
    assert all(torch.equal(value, first[name]) for name, value in owned({}, ARCH, shared, first).items())
    with pytest.raises(Forgotten):
        owned({}, ARCH, shared, None)
    with pytest.raises(Forgotten, match="do not complete"):
        merged(ARCH, shared, {HEAD: first[HEAD]})
    assert owned({PERSONAL: kept}, ARCH, SINGLE.weights, None) == {}
