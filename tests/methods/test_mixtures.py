"""Mixtures of methods and stages (docs/composing.md): exact properties of what is sent, kept and left out."""

import math
from dataclasses import replace

import pytest
import torch

from fedbonsai import tree
from fedbonsai.arch import Arch
from fedbonsai.core import Scope, scope
from fedbonsai.errors import ConfigError
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.methods.fedtiny.growth import Growth
from fedbonsai.methods.fedtiny.method import FedTiny
from fedbonsai.methods.fedtiny.pool import Selection
from fedbonsai.methods.prunefl.client import OwnTrain
from fedbonsai.methods.prunefl.initial_prune import InitiallyPruned, InitialPruneConfig, OwnInitialPrune
from fedbonsai.methods.prunefl.local_layers import Evaluate
from fedbonsai.methods.prunefl.method import PruneFL
from fedbonsai.methods.wireless_pruning.client import Trained, TrainWithFeedback
from fedbonsai.methods.wireless_pruning.method import WirelessPruning
from fedbonsai.methods.wireless_pruning.plan import Fixed
from fedbonsai.model import Model
from fedbonsai.runs import recipes
from fedbonsai.stages.codec import parse
from fedbonsai.stages.masked_upload import Skip, changed, everywhere, faults, sent, under_masks
from fedbonsai.stages.personal import PERSONAL, split
from fedbonsai.stages.pruning import gates
from fedbonsai.stages.pruning.derived_masks import Rule as Mask
from fedbonsai.stages.pruning.derived_masks import derived, sent_masks
from fedbonsai.stages.pruning.masks import masked
from fedbonsai.stages.pruning.readjust import MaskedMean
from fedbonsai.stages.pruning.time_model import Measured
from fedbonsai.stages.selective import Rule
from fedbonsai.stages.updates import FEEDBACK
from fedbonsai.training.evaluate import evaluate
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import generator
from fedbonsai.wire import encode
from tests.methods.rounds import MODEL, PEOPLE, Watch, person, run, same

STEPS = SGD(lr=0.1, momentum=0.5, batch=8)
CODED = parse(["ef14", {"signmag": 4}, {"entropy": "zstd"}])
TINY = FedTiny(
    optimizer=STEPS, density=0.3, uplink=CODED, selection=Selection(pool=2), growth=Growth(interval=1, stop=4)
)
HEAD = ("classifier.weight", "classifier.bias")


def follow(method, rounds=3, people=PEOPLE, model=MODEL):
    """Rounds with every device's memory before and after each: what is sent, heard and kept, by round and device."""
    fleet = Watch(LocalFleet(people))
    memories: list[dict[str, dict]] = []
    with scope(fleet, Scope("r", 0, -1, 0)) as open_:
        states = [method.begin(model, open_, people[0])]
        now = {id: kept.memory for id, kept in fleet.pending().items()}
        memories.append(now)
        open_.commit()
    for t in range(rounds):
        with scope(fleet, Scope("r", 0, t, 0)) as open_:
            states.append(method.round(states[-1], t, open_))
            now = {**now, **{id: kept.memory for id, kept in fleet.pending().items()}}
            memories.append(now)
            open_.commit()
    return states, fleet, memories


def residual(memory, name, like):
    return memory.get(FEEDBACK, {}).get("residual", {}).get(name, torch.zeros_like(like))


# --- the way up under masks ----------------------------------------------------------------------------------------

SHAPES = {"w": (40, 30), "b": (40,), "n.running_mean": (40,)}


def drawn(seed, masks):
    random = generator(seed)
    return masked({name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}, masks)


def mask_of(seed):
    return {"w": torch.rand(SHAPES["w"], generator=generator(seed)) < 0.3}


def test_what_is_sent_and_what_is_owed_make_up_the_change_and_the_debt_before():
    rule, memory, masks = Rule(under_masks(CODED), True, False, gates.Open(), 0.0, 0), {}, mask_of(1)
    debt = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for t in range(6):
        start, weights = drawn(t, masks), drawn(100 + t, masks)
        packed, memory = sent(replace(rule, t=t), start, weights, masks, 1.0, memory, person())
        got = packed.dense(start, everywhere(start, masks))
        owed = memory[FEEDBACK]["residual"]
        for name in owed:
            goal = weights[name] - start[name] + debt[name]
            assert torch.allclose(got[name] + owed[name], goal, atol=1e-6)
            assert not torch.equal(got[name], goal)  # the codes do lose something
        assert torch.equal(got["n.running_mean"], weights["n.running_mean"] - start["n.running_mean"])
        assert not got["w"][~masks["w"]].any()
        assert not owed["w"][~masks["w"]].any()
        debt |= owed


def test_debts_of_pruned_weights_are_forgotten_and_those_of_kept_ones_are_paid():
    rule, old, new = Rule(under_masks(CODED), True, False, gates.Open(), 0.0, 0), mask_of(1), mask_of(2)
    _, memory = sent(rule, drawn(1, old), drawn(2, old), old, 1.0, {}, person())
    owed = memory[FEEDBACK]["residual"]["w"]
    assert owed[old["w"] & ~new["w"]].any()
    still = drawn(3, new)
    packed, memory = sent(replace(rule, t=1), still, still, new, 1.0, memory, person())  # learned nothing: pays alone
    paid, rest = packed.dense(still, everywhere(still, new))["w"], memory[FEEDBACK]["residual"]["w"]
    assert torch.allclose(paid + rest, torch.where(new["w"], owed, 0), atol=1e-7)
    assert paid.any()


def test_a_closed_gate_leaves_debts_as_they_are():
    rule, masks = Rule(under_masks(CODED), True, False, gates.Loss(rule="best", every=0), 0.0, 0), mask_of(1)
    packed, memory = sent(rule, drawn(1, masks), drawn(2, masks), masks, 1.0, {}, person())
    assert packed is not None
    packed, after = sent(replace(rule, t=1), drawn(3, masks), drawn(4, masks), masks, 1.5, memory, person())
    assert packed is None
    assert same(after[FEEDBACK]["residual"], memory[FEEDBACK]["residual"])


# --- FedTiny, coded and gated --------------------------------------------------------------------------------------


def test_no_upload_holds_a_pruned_weight_and_the_model_is_the_mean_of_the_decoded():
    states, fleet = run(replace(TINY, growth=Growth(interval=100)), rounds=2)
    for t in range(2):
        state, mean = states[t], tree.Mean()
        masks = state.held.masks
        for at, _, answer in fleet.heard:
            if at != t:
                continue
            change = answer.packed.dense(state.model.weights, everywhere(state.model.weights, masks))
            assert all(not change[name][~mask].any() for name, mask in masks.items())
            mean.add(changed(answer.packed, state.model.weights, masks), answer.examples)
        assert same(mean.result(), states[t + 1].model.weights)


@pytest.mark.slow
def test_masks_that_move_keep_their_count_and_the_model_its_zeros():
    states, fleet = run(TINY, rounds=4)
    assert any(state.traded for state in states[1:])
    for state in states[1:]:
        assert sum(int(m.sum()) for m in state.held.masks.values()) == sum(
            int(m.sum()) for m in states[0].held.masks.values()
        )
        assert all(not state.model.weights[name][~mask].any() for name, mask in state.held.masks.items())
    exact = run(replace(TINY, uplink=parse([])), rounds=4)[1]

    def up(fleet):
        return [len(answer.packed.payload) for t, _, answer in fleet.heard if t >= 0]

    assert max(up(fleet)) < 0.3 * min(up(exact))  # 4 of 32 bits, and statistics and headers


@pytest.mark.slow
def test_exact_changes_are_fedtiny_itself_but_for_rounding():
    plain = run(replace(TINY, uplink=parse([])), rounds=2)[0][-1]
    gate = gates.Chance(share=1.0)  # always open, yet a gate: changes go up
    other = run(replace(TINY, uplink=parse([]), gate=gate), rounds=2)[0][-1]
    for name, value in plain.model.weights.items():
        assert torch.allclose(value, other.model.weights[name], atol=1e-5)


@pytest.mark.slow
def test_a_device_that_skips_costs_a_mark_and_computes_no_gradients():
    states, fleet = run(replace(TINY, gate=gates.Chance(share=0.0)), rounds=3)
    uploads = [(t, id) for t, id, value in fleet.heard if t >= 0 and not isinstance(value, Skip)]
    skips = [value for t, _, value in fleet.heard if isinstance(value, Skip)]
    assert uploads == [(0, person.id) for person in PEOPLE]  # the first of each, by the rule of `chance`
    assert len(skips) == 2 * len(PEOPLE)
    assert all(len(encode(value)) < 64 for value in skips)
    assert states[1].traded > 0
    for state in states[2:]:
        assert same(state.model.weights, states[1].model.weights)  # nobody had anything new
        assert same(state.held.masks, states[1].held.masks)
        assert (state.skips, state.traded) == (len(PEOPLE), 0)
    later = [request.train.sent.masks for t, _, request in fleet.sent if t == 2]
    assert later == [None] * len(PEOPLE)  # who skipped holds the masks all the same


@pytest.mark.slow
def test_a_skip_counts_for_nothing_in_the_mean():

    gate = gates.Chance(share=0.5)
    states, fleet = run(replace(TINY, gate=gate, growth=Growth(interval=100)), rounds=4)
    seen = set()
    for t in range(4):
        weights, masks = states[t].model.weights, states[t].held.masks
        mean = tree.Mean()
        for at, _, value in fleet.heard:
            if at == t and not isinstance(value, Skip):
                mean.add(changed(value.packed, weights, masks), value.examples)
        seen.add(states[t + 1].skips)
        if mean.weight:
            assert same(mean.result(), states[t + 1].model.weights)
    assert seen - {0, len(PEOPLE)}, "no round had both uploads and skips"


def test_a_mark_that_nobody_asked_for_is_dropped():
    def skip(answer, t):
        return replace(answer, value=Skip()) if t == 0 and answer.device.id == "a" else answer

    states, _ = run(replace(TINY, uplink=parse([])), rounds=1, change=skip)
    assert states[1].dropped == 1


@pytest.mark.slow
def test_a_damaged_upload_is_dropped_with_what_its_device_owes():
    def damage(answer, t):
        if t != 0 or answer.device.id != "a":
            return answer
        payload = answer.value.packed.payload
        return replace(answer, value=replace(answer.value, packed=replace(answer.value.packed, payload=payload[:-9])))

    states, _ = run(TINY, rounds=2, change=damage)
    assert (states[1].dropped, states[2].dropped) == (1, 0)
    assert all(bool(torch.isfinite(value).all()) for value in states[2].model.weights.values())


# --- wireless pruning with 8-bit changes and error feedback --------------------------------------------------------

RADIO = WirelessPruning(
    optimizer=STEPS,
    bits=8,
    feedback=True,
    mask=Mask(explore=0.0),
    channel="true",
    bonus=0.0,
    judge=0,
    allocation=Fixed(0.6),
)


@pytest.mark.slow
def test_a_device_sends_what_it_keeps_and_owes_the_rest():
    _, fleet, memories = follow(RADIO, rounds=4)
    checked = 0
    for t, id, value in fleet.heard:
        if not isinstance(value, Trained) or value.packed is None:
            continue
        request = next(
            r.train for at, who, r in fleet.sent if (at, who) == (t, id) and isinstance(r, TrainWithFeedback)
        )
        masks = derived(request.arch, request.shared, request.how.rule, request.grant.mask)
        assert masks is not None
        sent = (request.arch, request.shared, request.how.rule, masks)
        kept = sent_masks(*sent, request.grant.mask.ratio, request.grant.sends)
        got = value.packed.dense(request.shared, everywhere(request.shared, kept))
        before, after = memories[t].get(id, {}), memories[t + 1][id]
        for name, mask in masks.items():
            like = request.shared[name]
            assert not got[name][~kept[name]].any()
            old, new = residual(before, name, like), residual(after, name, like)
            assert torch.equal(new[~mask], old[~mask])  # a debt waits where nothing was learned
            moved = got[name] + new - old  # the change of the kept weights
            assert moved[mask].any()
            checked += 1
    assert checked >= 6


@pytest.mark.slow
def test_the_server_averages_shared_weights_plus_decoded_changes():
    states, fleet = run(RADIO, rounds=2)
    for t in range(2):
        shared = split(states[t].model.weights, HEAD)[0]
        mean = MaskedMean()
        for at, id, value in fleet.heard:
            if at != t or not isinstance(value, Trained):
                continue
            grant = next(
                r.train.grant
                for at_, who, r in fleet.sent
                if (at_, who) == (t, id) and isinstance(r, TrainWithFeedback)
            )
            masks = derived(MODEL.arch, shared, RADIO.mask, grant.mask)
            change = value.packed.dense(shared, everywhere(shared, masks))
            mean.add(masked(tree.add(shared, change), masks), masks, value.examples)
        assert same(mean.result(shared), split(states[t + 1].model.weights, HEAD)[0])


def test_bits_are_those_of_the_plan():
    states, fleet = run(RADIO, rounds=1)
    uploads = [value for t, _, value in fleet.heard if isinstance(value, Trained) and value.packed is not None]
    bits = RADIO.metrics(states[1])["uplink_bits"]
    really = 8 * sum(len(value.packed.payload) for value in uploads)
    statistics = sum(v.numel() for n, v in MODEL.weights.items() if "running" in n)
    # beside q bits a weight: 32 of a statistic, and of each tensor a range and a head
    assert bits <= really <= bits + len(uploads) * (24 * statistics + 8 * 24 * len(MODEL.weights))


@pytest.mark.slow
def test_without_pruning_and_a_great_many_levels_feedback_changes_little():
    plain = run(replace(RADIO, bits=32, feedback=False, allocation=Fixed(0.0)), rounds=2)[0][-1]
    coded = run(replace(RADIO, allocation=Fixed(0.0)), rounds=2)[0][-1]
    gap = tree.norm(tree.subtract(plain.model.weights, coded.model.weights))
    assert 0 < gap < 0.05 * tree.norm(tree.subtract(plain.model.weights, MODEL.weights))


# --- PruneFL with a personal head ----------------------------------------------------------------------------------

GROUP = Model.init(Arch("cnn-bn", {"size": 8, "norm": "group"}), 1)
OWN = PruneFL(
    optimizer=SGD(lr=0.1, batch=8, steps=3),
    interval=2,
    personal=("head",),
    judge=1,
    scouting=InitialPruneConfig(batches=2, iterations=40, every=10, gate=0.0),
    time=Measured(communication=2e-3, base=0.1),
)


@pytest.mark.slow
def test_no_head_is_in_any_message_or_mask():
    states, fleet, memories = follow(OWN, rounds=4, model=GROUP)
    heads = [split(GROUP.weights, HEAD)[1]]
    for memory in memories:
        heads += [kept[PERSONAL] for kept in memory.values() if PERSONAL in kept]
    assert len(heads) >= 1 + 4 * len(PEOPLE)
    needles = {bytes(head["classifier.weight"].numpy().tobytes()) for head in heads}
    needles |= {bytes(head["classifier.weight"][:1].numpy().tobytes()) for head in heads}  # nor a row of it
    assert len(needles) >= 2 * (1 + 4 * len(PEOPLE) - len(PEOPLE))
    messages = [bytes(encode(part)) for _, _, part in [*fleet.sent, *fleet.heard]]
    assert len(messages) > 8 * len(PEOPLE)
    assert not any(needle in message for message in messages for needle in needles)
    kinds = {type(part) for _, _, part in fleet.sent}
    assert kinds == {OwnInitialPrune, OwnTrain, Evaluate}
    for state in states:
        assert not set(HEAD) & set(state.held.masks)
        assert same(split(state.model.weights, HEAD)[1], split(GROUP.weights, HEAD)[1])
        assert all(not state.model.weights[name][~mask].any() for name, mask in state.held.masks.items())
    assert any(not mask.all() for mask in states[-1].held.masks.values())


@pytest.mark.slow
def test_heads_differ_and_are_trained_in_every_round():
    _, _, memories = follow(OWN, rounds=2, model=GROUP)
    last = [memories[-1][person.id][PERSONAL]["classifier.weight"] for person in PEOPLE]
    before = [memories[-2][person.id][PERSONAL]["classifier.weight"] for person in PEOPLE]
    assert not torch.equal(last[0], last[1])
    assert all(not torch.equal(now, then) for now, then in zip(last, before, strict=True))


@pytest.mark.slow
def test_the_verdict_is_of_each_devices_own_head():
    states, _, memories = follow(OWN, rounds=1, model=GROUP)
    found = [
        evaluate(states[1].model.replace({**states[1].model.weights, **memories[1][p.id][PERSONAL]}), p.valid)
        for p in PEOPLE
    ]
    mean = sum(len(p.valid) * score.accuracy for p, score in zip(PEOPLE, found, strict=True))
    assert math.isclose(OWN.metrics(states[1])["personal_accuracy"], mean / sum(len(p.valid) for p in PEOPLE))


@pytest.mark.slow
def test_without_a_personal_part_the_one_model_is_judged_on_each_device():
    method = replace(OWN, personal=())
    states, _ = run(method, rounds=2, model=GROUP)
    found = [evaluate(states[2].model, p.valid) for p in PEOPLE]
    mean = sum(len(p.valid) * score.accuracy for p, score in zip(PEOPLE, found, strict=True))
    assert math.isclose(method.metrics(states[2])["personal_accuracy"], mean / sum(len(p.valid) for p in PEOPLE))
    assert same(states[2].model.weights, run(replace(method, judge=0), rounds=2, model=GROUP)[0][2].model.weights)


@pytest.mark.slow
def test_a_device_that_forgot_begins_with_a_head_of_the_seed():
    states, fleet = run(OWN, rounds=3, model=GROUP, forget=1)
    assert [len([1 for t, _, value in fleet.heard if t == at]) for at in (0, 1, 2)][1] == 0
    assert not same(states[3].model.weights, states[2].model.weights)


@pytest.mark.slow
def test_scout_sends_the_shared_part_alone():
    _, fleet = run(OWN, rounds=0, model=GROUP)
    scouted = [value for _, _, value in fleet.heard if isinstance(value, InitiallyPruned)]
    assert scouted
    assert not set(HEAD) & (scouted[0].weights.keys() | scouted[0].shelf.keys() | scouted[0].masks.keys())


# --- what has no meaning is refused with the reason ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("uplink", "reason"),
    [
        ([{"topk": 0.1}], "both ends know them already"),
        ([{"randk": 0.1}], "both ends know them already"),
        (["known"], "puts 'known' in by itself"),
        (["ef21", {"affine": 8}], "use ef14"),
        (["ef14"], "without a lossy stage"),
        ([{"affine": {"bits": 8, "scope": "channel"}}], "per channel after known"),
    ],
)
def test_fedtiny_refuses_chains_that_have_no_meaning_under_masks(uplink, reason):
    with pytest.raises((ConfigError, ValueError), match=reason):
        recipes.load("fedtiny-gated", "", {"method.uplink": uplink})


@pytest.mark.parametrize(
    ("recipe", "settings", "reason"),
    [
        ("fedtiny-gated", {"method.gate": {"name": "lazy"}}, "masks that may have changed"),
        ("wireless-feedback", {"method.bits": 32}, "has no effect with bits = 32"),
        ("prunefl-personal", {"method.judge": -1}, "judge = -1"),
    ],
)
def test_settings_without_meaning_are_refused(recipe, settings, reason):
    with pytest.raises((ConfigError, ValueError), match=reason):
        recipes.load(recipe, "", settings)


@pytest.mark.parametrize(("personal", "reason"), [(("*",), "share more"), (("adapter*",), "no such weights")])
def test_prunefl_needs_something_shared_to_prune(personal, reason):
    with pytest.raises(ConfigError, match=reason):
        run(replace(OWN, personal=personal), rounds=0, model=GROUP)


def test_faults_are_told_together():
    assert len(faults(parse(["ef21", {"topk": 0.1}, {"signmag": 4}]), gates.Lazy())) == 3
