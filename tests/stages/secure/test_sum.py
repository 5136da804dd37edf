"""The whole conversation: it ends with the sum of who trained and stayed, or with nothing at all."""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbonsai.core import Answers, Client, Samples, Scope, Silence, scope, task
from fedbonsai.errors import Silent, Unanswered
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.identity import Enrolled, drawn
from fedbonsai.stages.secure import device, keys
from fedbonsai.stages.secure.codes import coded
from fedbonsai.stages.secure.device import SECURE, bits_of, commit
from fedbonsai.stages.secure.keys import Secrets
from fedbonsai.stages.secure.layout import layout
from fedbonsai.stages.secure.messages import Agreement, Inbox, Keys, Neighbours, Order, Peer, Survivors
from fedbonsai.stages.secure.server import ordered, summed
from fedbonsai.stages.secure.settings import Secure
from fedbonsai.training.steps import Trained

START = {"w": torch.zeros(3)}
STEPS = ("test/secure", "secure/share", "secure/mask", "secure/agree", "secure/reveal")
NONE = Samples(torch.zeros(0, 1), torch.zeros(0))


def test_a_device_whose_keys_are_none_is_left_out():
    class Bent(Dropping):
        def ask(self, task, send, at_least=1):
            def bent():
                for answer in self.inner.ask(task, send, 0):
                    spoilt = task.name == STEPS[0] and answer.device.id == "2"
                    yield replace(answer, value=replace(answer.value, box=bytes(32))) if spoilt else answer

            return Answers(bent(), at_least)

    done, _ = total(Bent(fleet_of(4), {}), NEAREST)
    assert done.combined.devices == ("1", "3", "4")
    assert done.combined.dropped == 1


@task("test/secure")
def pretend(order: Order, me: Client, memory: dict) -> tuple[Keys, dict]:
    """A device whose update is its number, and which has ten times as many samples."""
    number = float(me.id)
    trained = Trained({"w": torch.tensor([number, -number, 100.0])}, 10 * int(me.id), 1, number)
    return commit(order, coded(order, trained, START, layout(START, {}, None, 0), me.seed), (START,), me, memory)


class Dropping(Wrapper):
    """Loses requests or replies of some devices from a step on."""

    def __init__(self, inner, lost, reply=False):
        super().__init__(inner)
        self.lost, self.reply, self.seen = lost, reply, []

    def ask(self, task, send, at_least=1):
        gone = {id for name, ids in self.lost.items() for id in ids if STEPS.index(name) <= STEPS.index(task.name)}
        reached = send if self.reply else {one: request for one, request in send.items() if one.id not in gone}
        answers = self.inner.ask(task, reached, 0)

        def rest():
            for answer in answers:
                if answer.device.id in gone:
                    self.inner.reject(answer.device)  # as every fleet does with an answer that comes too late
                    yield Silence(answer.device, "late")
                else:
                    self.seen.append((task.name, answer.device.id, answer.value))
                    yield answer
            yield from answers.silent.values()
            yield from (Silence(one, "gone") for one in send if one not in reached)

        return Answers(rest(), at_least)


def fleet_of(count):
    return LocalFleet([Client(str(i + 1), i, NONE, NONE) for i in range(count)])


def total(fleet, how, seed=0):
    order = ordered(how, len(fleet.devices), seed)
    with scope(fleet, Scope("run", 0, 0, 0)):
        done = summed(fleet, pretend, dict.fromkeys(fleet.devices, order), order, START, layout(START, {}, None, 0))
        held = {id: kept.memory for id, kept in fleet.pending().items()}
    return done, held


NEAREST = Secure(bits=8, clip=12.7, rounding="nearest")  # a step is 0.1


def test_the_mean_is_that_of_the_codes_worked_out_by_hand():
    done, held = total(fleet_of(4), NEAREST)
    assert done.combined.mean["w"].tolist() == pytest.approx([2.5, -2.5, 12.7])  # 100 was cut to 12.7
    assert done.combined.clipped == 4 / 12
    assert done.combined.loss == pytest.approx(2.5)
    assert done.combined.devices == ("1", "2", "3", "4")
    assert not any(SECURE in memory for memory in held.values())


def test_updates_are_weighed_by_their_samples_up_to_the_largest_count():
    done, _ = total(fleet_of(3), replace(NEAREST, examples=20))  # 10, 20 and 20 of 30
    expected = (0.5 * 1 + 2 + 3) / 2.5
    assert done.combined.examples == 50
    assert done.combined.mean["w"][0].item() == pytest.approx(expected, abs=1e-6)
    assert done.combined.loss == pytest.approx((10 * 1 + 20 * 2 + 20 * 3) / 50, abs=1e-4)


def plain(count, without=()):
    """The run in the open of those that are in the sum."""
    fleet = Dropping(fleet_of(count), {STEPS[0]: set(without)})
    return total(fleet, replace(NEAREST, masked=False))[0].combined.mean["w"]


@pytest.mark.slow
@pytest.mark.parametrize("reply", [False, True], ids=["request", "reply"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("lost", [(), ("3",), ("3", "6")], ids=["0", "1", "most"])
def test_drop_outs_at_any_step_leave_the_sum_of_who_sent_codes(step, lost, reply):
    """Of 8 devices each has 7 neighbours, of which 5 are needed: two may go."""
    fleet = Dropping(fleet_of(8), {step: lost}, reply)
    done, held = total(fleet, NEAREST)
    counted = STEPS.index(step) > STEPS.index("secure/mask")
    assert torch.equal(done.combined.mean["w"], plain(8, () if counted else lost))
    assert {one.id for one in done.silent} == set(lost)
    assert done.combined.devices == tuple(str(i + 1) for i in range(8) if str(i + 1) not in lost)
    assert not any(SECURE in memory for memory in held.values())  # of those that are silent too


@pytest.mark.parametrize("step", STEPS[1:])
def test_below_the_threshold_there_is_no_sum_and_nothing_is_revealed(step):
    fleet = Dropping(fleet_of(8), {step: ("2", "4", "6")})
    with pytest.raises(Unanswered, match="needed"):
        total(fleet, NEAREST)
    revealed = [value for name, _, value in fleet.seen if name == "secure/reveal"]
    assert len(revealed) <= (5 if step == "secure/reveal" else 0)


def test_of_two_devices_there_is_no_sum():
    with pytest.raises(Unanswered, match="2 devices are left in a secure sum, at least 3"):
        total(Dropping(fleet_of(3), {STEPS[0]: ("1",)}), NEAREST)


def test_what_the_server_sees_of_a_device_is_not_its_codes_and_never_the_same():
    masked = []
    for _ in range(2):
        fleet = Dropping(fleet_of(4), {})
        total(fleet, NEAREST)
        masked += [value.payload for name, id, value in fleet.seen if name == "secure/mask" and id == "1"]
    fleet = Dropping(fleet_of(4), {})
    total(fleet, replace(NEAREST, masked=False))
    (open_,) = (value.payload for _, id, value in fleet.seen if id == "1")
    assert len({*masked, open_}) == 3
    assert {len(payload) for payload in masked} == {len(open_)}


@pytest.mark.slow
@settings(max_examples=25)
@given(st.lists(st.sampled_from([None, *STEPS]), min_size=9, max_size=9), st.sampled_from([0, 4]), st.booleans())
def test_random_drop_outs_end_in_the_plain_sum_or_in_none(when, most, reply):
    lost = {step: {str(i + 1) for i, at in enumerate(when) if at == step} for step in STEPS}
    fleet = Dropping(fleet_of(9), lost, reply)
    never = set().union(*(lost[step] for step in STEPS[:3]))
    try:
        done, _ = total(fleet, replace(NEAREST, neighbours=most, threshold=0.5))
    except Unanswered:
        assert set().union(*lost.values())
        return
    assert torch.equal(done.combined.mean["w"], plain(9, never))


# --- what devices refuse -------------------------------------------------------------------------------------------


class Lying(Wrapper):
    """A server that changes what it asks in one step."""

    def __init__(self, inner, step, change):
        super().__init__(inner)
        self.step, self.change, self.reasons = step, change, []

    def ask(self, task, send, at_least=1):
        if task.name == self.step:
            send = {one: self.change(one, request) for one, request in send.items()}
        answers = self.inner.ask(task, send, 0)

        def watched():
            yield from answers
            self.reasons += [silence.reason for silence in answers.silent.values()]
            yield from answers.silent.values()

        return Answers(watched(), at_least)


def others(one, request):
    """Another server's list: the first half lives for some, the second for others."""
    half = [str(i + 1) for i in (range(6) if int(one.id) <= 4 else range(2, 8))]
    return replace(request, devices=tuple(sorted({*half, one.id})))


def mine(one, request):
    peers = tuple(replace(peer, keys=replace(peer.keys, mask=bytes([9]) * 32)) for peer in request.peers)
    return replace(request, peers=peers)


def otherwise(one, request):
    """One device is told to train something else; the order stands for all that is told."""
    return replace(request, seed=1) if one.id == "3" else request


def itself(one, request):
    return replace(request, peers=(*request.peers[:-1], replace(request.peers[0], device=one.id)))


def few(one, request):
    return replace(request, devices=(one.id, *[id for id in request.devices if id != one.id][:3]))


def without(one, request):
    return replace(request, devices=tuple(id for id in request.devices if id != one.id))


def three(one, request):
    return replace(request, there=bits_of([True] * 3 + [False] * 4), sealed=request.sealed[: 3 * 48])


LIES = {
    "two lists of survivors": (device.agree, others, "neighbours signed the list of survivors that was shown here"),
    "keys of its own": (device.share, mine, "not signed by the device"),
    "another model for one": (pretend, otherwise, "or it was told to train another model or otherwise"),
    "a low threshold": (device.share, lambda _, r: replace(r, threshold=3), "expected more than half"),
    "itself as a neighbour": (device.share, itself, "expected more than half of two or more others"),
    "few survivors": (device.agree, few, "neighbours survived, 5 are needed"),
    "others' survivors": (device.agree, without, "not one that has this device"),
    "altered shares": (device.mask, lambda _, r: replace(r, sealed=bytes(len(r.sealed))), "altered on their way"),
    "few shares": (device.mask, three, "5 are needed"),
    "another session": (device.reveal, lambda _, r: replace(r, session=bytes(16)), "not the next step"),
    "no signatures": (
        device.reveal,
        lambda _, r: replace(r, signatures=bytes(len(r.signatures))),
        "0 neighbours signed",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_devices_refuse_a_server_that_lies(lie):
    step, change, why = LIES[lie]
    fleet = Lying(fleet_of(8), step.name, change)
    with suppress(Unanswered):  # whom nobody believes is left out; where nobody believes anybody there is no sum
        assert "3" not in total(fleet, NEAREST)[0].combined.devices
    assert fleet.reasons
    assert all(why in reason for reason in fleet.reasons[:1])


class Held:
    """One device among honest ones, talked to by hand."""

    def __init__(self, tmp_path, count=5):
        self.order = ordered(NEAREST, count, 0)
        ids = [str(i + 1) for i in range(count)]
        made = {id: Client(id, 0, NONE, NONE) for id in ids}
        roster = {id: drawn(id).public_key() for id in ids}
        self.me = replace(made["1"], identity=Enrolled(drawn("1"), roster, tmp_path / "marks"))
        made["1"] = self.me
        self.people, self.memory, self.told = made, {}, {}
        for id, one in made.items():
            self.told[id], self.memory[id] = pretend.run(self.order, one, {})

    def say(self, id, task, request):
        answer, self.memory[id] = task.run(request, self.people[id], self.memory[id])
        return answer

    def until(self, step):
        session, ids = self.order.session, list(self.people)
        around = {id: [other for other in ids if other != id] for id in ids}
        if step >= 1:
            asked = {id: Neighbours(session, 3, tuple(Peer(o, self.told[o]) for o in around[id])) for id in ids}
            self.asks = asked
            sealed = {id: self.say(id, device.share, asked[id]).sealed for id in ids}
        if step >= 2:
            part = {(a, b): sealed[a][48 * i : 48 * (i + 1)] for a in ids for i, b in enumerate(around[a])}
            self.inbox = {
                id: Inbox(session, bits_of([True] * 4), b"".join(part[o, id] for o in around[id])) for id in ids
            }
            self.before = dict(self.memory)
            for id in ids:
                self.say(id, device.mask, self.inbox[id])
        return session, ids


def refuses(held, task, request):
    with pytest.raises(Silent) as caught:
        held.say("1", task, request)
    return str(caught.value)


def test_a_device_gives_one_share_of_each_neighbour_whatever_memory_the_server_has_it_start_from(tmp_path):
    held = Held(tmp_path)
    session, ids = held.until(2)
    rolled = dict(held.memory)
    listed = Survivors(session, tuple(ids))
    signed = {id: held.say(id, device.agree, listed).signature for id in ids}
    asked = Agreement(session, bits_of([True] * 4), b"".join(signed[id] for id in "2345"))
    assert len(held.say("1", device.reveal, asked).shares) == 4 * 16
    assert "not the next step" in refuses(held, device.reveal, asked)  # forgotten
    # the server has it begin again before the list, with another one that calls device 5 dead
    held.memory = dict(rolled)
    assert "asked and answered before" in refuses(held, device.agree, Survivors(session, tuple(ids[:4])))


def test_a_device_masks_its_codes_once(tmp_path):
    held = Held(tmp_path)
    held.until(2)
    held.memory = held.before
    assert "asked and answered before" in refuses(held, device.mask, held.inbox["1"])


def test_a_device_signs_one_list_and_shares_once_in_a_session(tmp_path):
    held = Held(tmp_path)
    session, ids = held.until(1)
    assert "shares were given before" in refuses(held, device.share, held.asks["1"])
    held.say("1", device.mask, Inbox(session, bits_of([True] * 4), held_sealed(held, ids)))
    held.say("1", device.agree, Survivors(session, tuple(ids)))
    assert "signed before" in refuses(held, device.agree, Survivors(session, tuple(ids[:4])))


def held_sealed(held, ids):
    """Shares for device 1, given anew by the others' secrets."""
    again = b""
    for id in ids[1:]:
        secrets = Secrets.read(held.memory[id][SECURE]["secrets"])
        route = device.said(held.order.session, id, "1")
        again += keys.seal(keys.private(secrets.box), held.told["1"].box, route, bytes(32))
    return again
