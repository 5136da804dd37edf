"""specs/wireless check 9 to check 13 and check 17, on a small federation."""

import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedbonsai import training, tree
from fedbonsai.arch import Arch
from fedbonsai.core import Answer, Scope, scope
from fedbonsai.devices.channel import Cell
from fedbonsai.errors import BadMessage, ConfigError, Unanswered
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.wireless_pruning.aggregate import opened
from fedbonsai.methods.wireless_pruning.client import Allocation, ClientConfig, Train, Trained, train
from fedbonsai.methods.wireless_pruning.load import Cycles, load_of
from fedbonsai.methods.wireless_pruning.method import WirelessPruning
from fedbonsai.methods.wireless_pruning.plan import Common, DropStragglers, Fixed, Optimum
from fedbonsai.model import Model
from fedbonsai.runs import recipes, setup
from fedbonsai.runs.loop import loop
from fedbonsai.stages.codec import Packed
from fedbonsai.stages.personal import PERSONAL, Evaluate, Evaluated, split, trained_part
from fedbonsai.stages.pruning.derived_masks import Derived, Rule, derived, names_in, sent_masks
from fedbonsai.stages.pruning.masks import masked
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import seed_of
from fedbonsai.wire import encode
from tests import conformance
from tests.cases import Case
from tests.methods.rounds import CNN, MODEL, PEOPLE, Watch, run, same

STEPS = SGD(lr=0.1, momentum=0.5, batch=8)
PAPER = WirelessPruning(optimizer=STEPS, mask=Rule(explore=0.0), channel="true", bonus=0.0)
NOBODY = Fixed(0.0)  # prunes nothing
HEAD = ("classifier.weight", "classifier.bias")
GROUP = Model.init(Arch("cnn-bn", {"size": 8, "norm": "group"}), 1)
PRUNABLE = sum(MODEL.weights[name].numel() for name in MODEL.weights if "conv" in name)


def requests(fleet):
    return [(t, id, request) for t, id, request in fleet.sent if isinstance(request, Train)]


def uploads(fleet):
    return [(t, id, value) for t, id, value in fleet.heard if isinstance(value, Trained)]


def masks_of(request, cut=True):
    found = derived(request.arch, request.shared, request.how.rule, request.grant.mask)
    grant, sent = request.grant, (request.arch, request.shared, request.how.rule, found)
    return sent_masks(*sent, grant.mask.ratio, grant.sends) if cut else found


# --- specs/wireless check 9: degenerate cases ----------------------------------------------------------------


@pytest.mark.slow
def test_without_personal_part_and_pruning_it_is_fedavg_bit_for_bit():
    ours = run(replace(PAPER, personal=(), allocation=NOBODY), rounds=4)[0]
    theirs = run(Averaging(optimizer=STEPS), rounds=4)[0]
    for mine, other in zip(ours, theirs, strict=True):
        assert same(mine.model.weights, other.model.weights)


def test_sampled_devices_are_fedavgs_too():
    ours = run(replace(PAPER, personal=(), allocation=NOBODY, cohort=2), rounds=4)[0]
    theirs = run(Averaging(optimizer=STEPS, cohort=2), rounds=4)[0]
    assert same(ours[-1].model.weights, theirs[-1].model.weights)


def fedalt(rounds, people=PEOPLE, order="alt"):
    """FedAlt (or FedSim) written out: the plain course that no pruning must reproduce bit for bit."""
    weights, own = dict(MODEL.weights), {}
    for t in range(rounds):
        mean = tree.Mean()
        for person in people:
            seed = seed_of(0, person.id, t, 0)
            me, apart = replace(person, seed=seed), replace(person, seed=seed_of(seed, PERSONAL, 0, 0))
            mine = own.get(person.id, {name: MODEL.weights[name] for name in HEAD})
            start = {**weights, **mine}
            if order == "alt":
                first = frozen_train(start, apart, HEAD)
                start = {**start, **{name: first[name] for name in HEAD}}
                after = frozen_train(start, me, [name for name in start if name not in HEAD])
                own[person.id] = {name: start[name] for name in HEAD}
            else:
                after = training.train(MODEL.replace(start), me, STEPS).weights
                own[person.id] = {name: after[name] for name in HEAD}
            mean.add({name: value for name, value in after.items() if name not in HEAD}, len(person.train))
        weights = {**mean.result(), **{name: MODEL.weights[name] for name in HEAD}}
    return weights, own


def frozen_train(start, me, names):
    """Training of some parameters, by putting the others' gradients to zero."""

    def hook(gradients):
        for name, value in gradients.items():
            if name not in names:
                value.zero_()

    return training.train(MODEL.replace(start), me, STEPS, hook=hook).weights


@pytest.mark.slow
@pytest.mark.parametrize("order", ["alt", "sim"])
def test_without_pruning_it_is_fedalt_or_fedsim_bit_for_bit(order):
    states, fleet = run(replace(PAPER, allocation=NOBODY, order=order), rounds=3)
    weights, own = fedalt(3, order=order)
    assert same(dict(states[-1].model.weights), weights)
    for id, kept in memories(fleet).items():
        assert same(kept[PERSONAL], own[id])


def memories(fleet):
    """What each client keeps after the run."""
    return {id: kept.memory for id, kept in fleet.inner._slots._accepted.items()}


def test_with_everything_personal_it_is_local_training():
    states, fleet = run(replace(PAPER, personal=("*",), allocation=NOBODY, downlink="none"), rounds=2)
    assert same(dict(states[-1].model.weights), dict(MODEL.weights))
    assert all(value.packed is None for _, _, value in uploads(fleet))
    for person in PEOPLE:
        alone = MODEL
        for t in range(2):
            seed = seed_of(seed_of(0, person.id, t, 0), PERSONAL, 0, 0)
            alone = alone.replace(training.train(alone, replace(person, seed=seed), STEPS).weights)
        assert same(memories(fleet)[person.id][PERSONAL], dict(alone.weights))


# --- specs/wireless check 10: masks --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("explore", [0.0, 0.1])
def test_masks_are_exact_derived_alike_and_what_they_drop_stays_home(scope, explore):
    method = replace(PAPER, mask=Rule(scope=scope, explore=explore), allocation=Common(), deadline=0.4)
    _, fleet = run(method, rounds=3)
    asked, answered = requests(fleet), uploads(fleet)
    assert {request.grant.mask.explore for _, _, request in asked} == {explore}
    for (_, _, request), (_, _, value) in zip(asked, answered, strict=True):
        names, ratio = names_in(CNN, request.shared), request.grant.mask.ratio
        assert ratio > 0.1
        masks = masks_of(request)
        total = sum(mask.numel() for mask in masks.values())
        gone = sum(int((~mask).sum()) for mask in masks.values())
        assert total == PRUNABLE
        assert gone == int(ratio * PRUNABLE)
        assert same(masks, masks_of(request))
        u = torch.cat([request.shared[name].reshape(-1).double() for name in names])
        um = torch.cat([masked(request.shared, masks)[name].reshape(-1).double() for name in names])
        if not explore and scope == "global":
            assert float((u - um).square().sum()) <= ratio * float(u.square().sum())
        # exactly the kept values are in the payload, four bytes each; the rest is heads of records
        kept = PRUNABLE - gone + sum(v.numel() for n, v in request.shared.items() if n not in names)
        assert 4 * kept <= len(value.packed.payload) <= 4 * kept + 16 * len(request.shared)
        assert value.masks is None
        weights = value.packed.dense(request.shared, masks)
        assert all(bool((weights[name][~masks[name]] == 0).all()) for name in names)


def test_pruned_weights_are_zero_while_training_and_get_no_update():
    _, fleet = run(replace(PAPER, allocation=Common(), deadline=0.4), rounds=1)
    _, _, request = requests(fleet)[0]
    masks = masks_of(request)
    start = MODEL.replace({**masked(request.shared, masks), **split(MODEL.weights, HEAD)[1]})
    found = trained_part(start, PEOPLE[0], STEPS, request.shared, masks)
    assert found.steps > 0
    assert all(bool((found.weights[name][~mask] == 0).all()) for name, mask in masks.items())
    assert same(split(found.weights, HEAD)[1], split(MODEL.weights, HEAD)[1])


@pytest.mark.slow
def test_bits_are_counted_as_the_paper_counts_them():
    method = replace(PAPER, allocation=Fixed(0.3))
    states, _ = run(method, rounds=1)
    parts = method.parts(MODEL, (1, 8, 8))
    s0, kept = 32 * parts.count(parts.fixed), PRUNABLE - int(0.3 * PRUNABLE)
    assert states[-1].figures["uplink_bits"] == len(PEOPLE) * (32 * kept + s0)
    bitmap = replace(method, mask=Rule(criterion="taylor", explore=0.0))
    assert run(bitmap, rounds=1)[0][-1].figures["uplink_bits"] == len(PEOPLE) * (32 * kept + s0 + PRUNABLE)
    load, other = (m.schedule(states[0], 0, ["a", "b"], parts) for m in (method, bitmap))
    assert other.full > load.full


@pytest.mark.slow
def test_masks_by_own_gradients_go_up_and_are_checked():
    for criterion in ("taylor", "prunefl"):
        method = replace(PAPER, allocation=Fixed(0.5), mask=Rule(criterion=criterion, explore=0.0))
        states, fleet = run(method, rounds=2)
        assert states[-1].figures["dropped"] == 0
        masks = [value.masks for _, _, value in uploads(fleet)]
        assert all(sum(int((~mask).sum()) for mask in found.values()) == PRUNABLE // 2 for found in masks)
        assert not same(masks[0], masks[1])
        assert states[-1].figures["uncovered"] < 0.5  # each device's own

        def forged(answer, t):
            wider = {name: torch.ones_like(mask) for name, mask in answer.value.masks.items()}
            return replace(answer, value=replace(answer.value, masks=wider)) if answer.device.id == "a" else answer

        assert (
            run(method, rounds=1, change=lambda a, t: forged(a, t) if isinstance(a.value, Trained) else a)[0][
                -1
            ].figures["dropped"]
            == 1
        )


# --- specs/wireless check 11: aggregation --------------------------------------------------------------------


@pytest.mark.slow
def test_the_server_averages_each_coordinate_over_those_that_kept_it():
    method = replace(PAPER, cell=Cell(shadowing=12.0), deadline=0.4)
    states, fleet = run(method, rounds=3)
    for t in range(3):
        asked = {id: request for s, id, request in requests(fleet) if s == t}
        kept, weights, examples = {}, {}, {}
        for s, id, value in uploads(fleet):
            if s == t and value.packed is not None:
                like = asked[id].shared
                kept[id] = masks_of(asked[id]) or {n: torch.ones_like(like[n]).bool() for n in names_in(CNN, like)}
                weights[id], examples[id] = value.packed.dense(like, masks_of(asked[id])), value.examples
        before, after = states[t].model.weights, states[t + 1].model.weights
        for name in kept["a"]:
            cover = sum(masks[name].int() for masks in kept.values())
            assert torch.equal(after[name][cover == 0], before[name][cover == 0])
            for id, masks in kept.items():
                alone = masks[name] & (cover == 1)
                assert torch.equal(after[name][alone], weights[id][name][alone])
            shares = sum(masks[name].double() * examples[id] for id, masks in kept.items())
            total = sum(weights[id][name].double() * masks[name] * examples[id] for id, masks in kept.items())
            some = cover > 0
            assert torch.allclose(after[name][some], (total / shares)[some].float(), atol=1e-6)


@pytest.mark.slow
def test_if_nobody_learns_the_server_stays_where_it_is():
    still = replace(PAPER, optimizer=SGD(lr=0.0, batch=8), cell=Cell(shadowing=12.0), deadline=0.4)
    states, _ = run(still, rounds=3, model=GROUP)  # running statistics would move
    assert states[-1].figures["mean_ratio"] > 0
    shared = split(GROUP.weights, HEAD)[0]
    assert all(torch.equal(states[-1].model.weights[name], value) for name, value in shared.items())


# --- specs/wireless check 12: personal parts -----------------------------------------------------------------


def test_personal_weights_never_go_up():
    states, fleet = run(replace(PAPER, deadline=0.4), rounds=3)
    kept = memories(fleet)
    assert set(kept) == {"a", "b", "c"}
    for memory in kept.values():
        assert set(memory[PERSONAL]) == set(HEAD)
        assert not torch.equal(memory[PERSONAL][HEAD[0]], MODEL.weights[HEAD[0]])
        needle = memory[PERSONAL][HEAD[0]][3, :4].numpy().tobytes()
        assert all(needle not in bytes(encode(value)) for _, _, value in fleet.heard)
    for _, _, value in uploads(fleet):
        assert value.masks is None
        assert isinstance(value.packed, Packed)
    assert all(torch.equal(states[-1].model.weights[name], MODEL.weights[name]) for name in HEAD)
    # down they go once, as what a new device begins with
    assert [request.first is not None for t, _, request in requests(fleet)] == [True] * 3 + [False] * 6


def test_a_device_that_is_left_out_trains_its_own_part_alone():
    """With and without the device's data the shared part, and what others keep, is the same."""
    cell = Cell(shadowing=25.0)
    method = replace(PAPER, allocation=DropStragglers(), cell=cell, deadline=0.6)
    states, fleet = run(method, rounds=1)
    out = [id for _, id, request in requests(fleet) if not request.grant.trains]
    assert out
    assert len(out) < 3
    for _, id, value in uploads(fleet):
        assert (value.packed is None) == (id in out)
    assert all(not torch.equal(memories(fleet)[id][PERSONAL][HEAD[0]], MODEL.weights[HEAD[0]]) for id in out)

    def negative(person):
        return replace(person, train=replace(person.train, stored=-person.train.x))

    others = tuple(negative(person) if person.id in out else person for person in PEOPLE)
    again, other = run(method, people=others, rounds=1)
    assert same(dict(again[-1].model.weights), dict(states[-1].model.weights))
    for person in PEOPLE:
        alike = same(memories(other)[person.id][PERSONAL], memories(fleet)[person.id][PERSONAL])
        assert alike == (person.id not in out)


@pytest.mark.parametrize("order", ["alt", "sim"])
def test_who_is_left_out_trains_its_own_part_with_weight_decay_too(order):
    sgd = replace(STEPS, weight_decay=1e-3)
    cell, rule = Cell(shadowing=25.0), DropStragglers()
    _, fleet = run(replace(PAPER, allocation=rule, cell=cell, deadline=0.6, optimizer=sgd, order=order), rounds=1)
    out = [id for _, id, request in requests(fleet) if not request.grant.trains]
    assert out
    assert set(memories(fleet)) == {"a", "b", "c"}
    for person in (person for person in PEOPLE if person.id in out):
        me = replace(person, seed=seed_of(seed_of(0, person.id, 0, 0), PERSONAL, 0, 0))
        own = split(trained_part(MODEL, me, sgd, HEAD).weights, HEAD)[1]
        assert same(memories(fleet)[person.id][PERSONAL], own)


def test_who_forgot_gets_everything_again():
    states, fleet = run(replace(PAPER, deadline=0.4), rounds=4, forget=2)
    first = [(t, request.first is not None) for t, _, request in requests(fleet)]
    assert [given for t, given in first if t == 2] == [False] * 3
    assert [g for t, g in first if t == 3] == [True] * 3
    assert same(dict(states[3].model.weights), dict(states[2].model.weights))
    assert states[3].held == ()
    assert states[3].seconds > states[2].seconds  # the cell was in use all the same
    assert states[4].held == ("a", "b", "c")
    assert not same(dict(states[4].model.weights), dict(states[3].model.weights))


# --- specs/wireless check 13: coverage -----------------------------------------------------------------------


def test_the_uncovered_share_is_the_least_ratio():
    states, _ = run(replace(PAPER, deadline=0.3), rounds=4)
    ratios = [state.figures["least_ratio"] for state in states[1:]]
    assert max(ratios) > 0
    for state, ratio in zip(states[1:], ratios, strict=True):
        assert state.figures["uncovered"] == int(ratio * PRUNABLE) / PRUNABLE


@pytest.mark.slow
def test_exploration_reaches_every_weight_in_the_end():
    paper = replace(PAPER, allocation=Fixed(0.5), optimizer=SGD(lr=0.01, batch=8), judge=0)
    frozen = run(paper, rounds=25)[0][-1].figures
    explored = run(replace(paper, mask=Rule(explore=0.2)), rounds=25)[0]
    assert frozen["uncovered"] == 0.5
    assert frozen["never_covered"] > 0.4
    never = [state.figures["never_covered"] for state in explored[1:]]
    assert never[0] > 0.2
    assert never[-1] < 0.01
    assert never == sorted(never, reverse=True)


# --- the plan ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_round_meets_its_deadline():
    for allocation in (Optimum(), Optimum(block=180e3), Optimum(surrogate="error"), Common(), DropStragglers()):
        states, fleet = run(replace(PAPER, allocation=allocation), rounds=2)
        for state in states[1:]:
            figures = state.figures
            assert figures["round_latency"] <= figures["deadline"] * (1 + 1e-9)
            assert figures["deadline"] == pytest.approx(0.5 * figures["full_latency"])
        assert states[-1].seconds == pytest.approx(sum(state.figures["round_latency"] for state in states[1:]))
        bands = [request.grant.bandwidth for t, _, request in requests(fleet) if t == 1]
        assert sum(bands) <= 10e6 * (1 + 1e-9)
        assert min(bands) >= 0


@pytest.mark.slow
def test_uploads_are_cut_to_what_the_true_channel_carries():
    method = replace(PAPER, channel="mean", deadline=0.5)
    states, fleet = run(method, rounds=6)
    cut = [request for _, _, request in requests(fleet) if request.grant.mask.ratio < request.grant.sends < 1]
    assert cut
    assert sum(state.figures["cut_short"] for state in states[1:]) == len(cut)
    for request in cut:
        trained, sent = masks_of(request, cut=False), masks_of(request)
        assert sum(int((~mask).sum()) for mask in sent.values()) == int(request.grant.sends * PRUNABLE)
        if trained is not None:
            assert not any(bool((sent[name] & ~trained[name]).any()) for name in sent)
    assert all(state.figures["dropped"] == 0 for state in states[1:])
    for state in states[1:]:
        assert state.figures["round_latency"] <= state.figures["deadline"] * (1 + 1e-9)


def test_quantised_uploads():
    exact, coarse = (run(replace(PAPER, bits=bits), rounds=1) for bits in (32, 8))
    sizes = [len(value.packed.payload) for _, _, value in uploads(coarse[1])]
    assert max(sizes) < 0.4 * max(len(value.packed.payload) for _, _, value in uploads(exact[1]))
    assert coarse[0][-1].figures["full_latency"] < exact[0][-1].figures["full_latency"]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_quantised_bits_travel_as_they_are_counted(bits, feedback, ratio):
    """q bits for every weight, kept or never pruned; statistics of normalisation are exact."""
    method = replace(PAPER, bits=bits, feedback=feedback, allocation=Fixed(ratio))
    states, fleet = run(method, rounds=1)
    assert states[-1].figures["dropped"] == 0
    parts = method.parts(MODEL, (1, 8, 8))
    assert {name.rpartition(".")[2] for name in parts.statistics} == {"running_mean", "running_var"}
    weights = PRUNABLE - int(ratio * PRUNABLE) + parts.count(parts.fixed) - parts.count(parts.statistics)
    counted = bits * weights + 32 * parts.count(parts.statistics)
    assert states[-1].figures["uplink_bits"] == len(PEOPLE) * counted
    tensors = len(uploads(fleet)[0][2].packed.payload) - counted // 8
    assert 0 <= tensors <= 8 * len(MODEL.weights)  # ranges and heads
    load = load_of((np.zeros(1), np.zeros(1)), parts, bits, False, Cell(), np.ones(1), "none")
    assert load.bits(1 - int(ratio * PRUNABLE) / PRUNABLE)[0] == pytest.approx(counted)


def test_an_upload_that_is_hardly_cut_is_read():
    """Less than one weight is withheld: masks that keep everything."""
    shared, own = split(MODEL.weights, HEAD)
    for bits in (32, 8):
        for ratio, sends in ((0.0, 1e-6), (1e-7, 1e-6), (0.3, 0.3 + 1e-6)):
            grant = Allocation(True, Derived(ratio), sends, 1.0)
            how = ClientConfig(PAPER.mask, "alt", STEPS, STEPS, bits)
            value, _ = train.run(Train(CNN, shared, own, how, grant), PEOPLE[0], {})
            opened(value, CNN, shared, how, grant)


def uploaded_by(method, rounds=8):
    _, fleet = run(method, rounds=rounds)
    return {id: sum(value.packed is not None for _, other, value in uploads(fleet) if other == id) for id in "abc"}


@pytest.mark.slow
def test_nobody_starves():
    """In a cell that never fades the same devices would always be left out."""
    cell = Cell(shadowing=25.0, fading="none")
    base = replace(PAPER, cell=cell, deadline=0.6, ratio_max=0.2, judge=0)
    assert uploaded_by(base) == {"a": 0, "b": 8, "c": 0}
    assert min(uploaded_by(replace(base, bonus=5.0)).values()) >= 2


def test_where_nobody_can_be_served_the_round_gets_longer():
    """Slow processors that pruning does not relieve: half of T_full is less than they compute."""
    slow = Cycles(slowest=1e6, fastest=1e6, prunes=False)
    figures = run(replace(PAPER, compute=slow, optimizer=replace(STEPS, steps=3)), rounds=1)[0][-1].figures
    assert figures["participation"] == 1
    assert 0 < figures["mean_ratio"] < 0.9
    assert 0.5 * figures["full_latency"] < figures["deadline"] < figures["full_latency"]
    some = replace(PAPER, cell=Cell(shadowing=25.0), ratio_max=0.2, deadline=0.6)
    assert run(some, rounds=1)[0][-1].figures["left_out"] > 0
    assert run(replace(some, remedy="extend"), rounds=1)[0][-1].figures["left_out"] == 0


@pytest.mark.slow
def test_all_baselines_have_the_same_channel_and_deadline():
    """specs/wireless §6: what shares split and passes differs in its plan alone."""
    pruned = ("optimum", "common-ratio", "equal-bandwidth", "decoupled", "alternating", "random-prune", "fixed-ratio")
    found: dict[str, list[float]] = {}
    for name in (*pruned, "drop-stragglers", "modern"):
        method = replace(recipes.load("wireless-baselines", name).method, judge=0)
        state = run(replace(method, optimizer=SGD(lr=0.0, batch=64)), rounds=0)[0][0]
        plans = [method.schedule(state, t, ["a", "b", "c"], method.parts(MODEL, (1, 8, 8))) for t in range(3)]
        found[name] = [plan.full for plan in plans]
        assert len(set(found[name])) == 3  # fading is drawn anew
        if name != "drop-stragglers":  # its deadline moves where nobody can be served unpruned
            limits = [0.5 * plan.full if method.allocation.waits else float("inf") for plan in plans]
            assert [plan.deadline for plan in plans] == limits
    assert all(full == found["optimum"] for full in found.values())


# --- judging -------------------------------------------------------------------------------------------------------


def test_devices_are_judged_with_their_own_part_whole_and_masked():
    states, fleet = run(replace(PAPER, allocation=Fixed(0.5)), rounds=2)
    verdicts = {id: value for t, id, value in fleet.heard if t == 1 and isinstance(value, Evaluated)}
    asked = {id: request for t, id, request in fleet.sent if t == 1 and isinstance(request, Evaluate)}
    shared = split(states[-1].model.weights, HEAD)[0]
    for person in PEOPLE:
        own = memories(fleet)[person.id][PERSONAL]
        masks = derived(CNN, shared, PAPER.mask, asked[person.id].derived)
        whole = training.evaluate(MODEL.replace({**shared, **own}), person.valid)
        under = training.evaluate(MODEL.replace({**masked(shared, masks), **own}), person.valid)
        assert (verdicts[person.id].dense, verdicts[person.id].masked) == (whole.accuracy, under.accuracy)
    figures = states[-1].figures
    assert figures["personal_accuracy"] == pytest.approx(np.mean([v.dense for v in verdicts.values()]))
    assert figures["masked_p10"] == min(v.masked for v in verdicts.values())


@pytest.mark.slow
def test_it_is_judged_when_due_and_judging_moves_nothing():
    often, rarely = (run(replace(PAPER, judge=judge), rounds=4)[0] for judge in (1, 2))
    assert ["personal_accuracy" in state.figures for state in rarely[1:]] == [False, True, False, True]
    assert same(dict(often[-1].model.weights), dict(rarely[-1].model.weights))
    tuned = run(replace(PAPER, judge=2, finetune=5), rounds=4)[0]
    assert same(dict(tuned[-1].model.weights), dict(rarely[-1].model.weights))
    assert tuned[-1].figures["personal_loss"] != rarely[-1].figures["personal_loss"]


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"bits": 16}, "bits"),
        ({"deadline": 0.0}, "deadline"),
        ({"ratio_max": 1.0}, "ratio_max"),
        ({"finetune": 3, "judge": 0}, "finetune"),
        ({"allocation": Optimum(surrogate="error"), "mask": Rule(criterion="random", explore=0.0)}, "magnitudes"),
    ],
)
def test_settings_without_meaning_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        replace(PAPER, **settings)


def test_a_model_with_nothing_to_prune_or_to_judge_on_is_refused():
    with pytest.raises(ConfigError, match="may be pruned"):
        run(replace(PAPER, personal=("*",)))
    blind = tuple(replace(person, valid=person.valid[:0]) for person in PEOPLE)
    with pytest.raises(ConfigError, match=r"data\.valid"):
        run(PAPER, people=blind)
    assert run(replace(PAPER, judge=0), people=blind, rounds=1)[0][-1].figures["participation"] == 1


def test_damaged_uploads_are_dropped_with_what_their_clients_kept():
    def broken(answer: Answer, t):
        if isinstance(answer.value, Trained) and answer.device.id == "b":
            payload = answer.value.packed.payload
            return replace(answer, value=replace(answer.value, packed=Packed(payload[:-9] + b"x" + payload[-8:])))
        return answer

    states, fleet = run(PAPER, rounds=1, change=broken)
    assert states[-1].figures["dropped"] == 1
    assert states[-1].held == ("a", "c")
    assert set(memories(fleet)) == {"a", "c"}

    def all_broken(answer, t):
        return (
            replace(answer, value=replace(answer.value, packed=None)) if isinstance(answer.value, Trained) else answer
        )

    with pytest.raises(Unanswered):
        run(PAPER, rounds=1, change=all_broken)


def test_an_upload_must_be_what_was_granted():
    _, fleet = run(replace(PAPER, allocation=Fixed(0.5)), rounds=1)
    (_, _, request), (_, _, value) = requests(fleet)[0], uploads(fleet)[0]
    how, grant = request.how, request.grant
    opened(value, CNN, request.shared, how, grant)
    less = replace(grant, mask=replace(grant.mask, ratio=0.25), sends=0.25)
    with pytest.raises(BadMessage):
        opened(value, CNN, request.shared, how, less)


# --- specs/wireless check 17: recipes and labels -------------------------------------------------------------


def presets(name):
    return ["modern", *tomllib.loads(recipes.text(name)).get("presets", {})]


@pytest.mark.parametrize(
    ("recipe", "preset"), [(name, p) for name in ("wireless-pruning", "wireless-baselines") for p in presets(name)]
)
def test_every_preset_makes_a_round(recipe, preset):
    method = recipes.load(recipe, preset).method
    method = replace(method, optimizer=replace(method.optimizer, epochs=1, batch=8), finetune=min(method.finetune, 2))
    states, _ = run(method, rounds=1, model=GROUP)
    assert states[-1].figures["personal_accuracy"] >= 0
    assert "round_latency" in states[-1].figures


def test_local_training_takes_its_time_in_either_order():
    full = {}
    for order in ("alt", "sim"):
        method = replace(PAPER, personal=("*",), allocation=NOBODY, downlink="none", order=order, judge=0)
        states, _ = run(method, rounds=1)
        full[order] = states[-1].figures["round_latency"]
        weights = sum(v.numel() for v in MODEL.build().parameters())
        slowest = max(20 * weights * len(p.train) / Cycles().frequency([p.id], 7)[0] for p in PEOPLE)
        assert full[order] == pytest.approx(slowest)
    assert full["alt"] == full["sim"]


def test_published_is_the_specifications_paper_mode():
    method = recipes.load("wireless-pruning", "published").method
    assert (method.order, method.personal, method.mask, method.channel) == (
        "alt",
        ("head",),
        Rule("magnitude", "global", 0.0),
        "true",
    )
    assert method.allocation == Optimum()
    assert method.cell == Cell()
    assert method.downlink == "broadcast"
    assert method.compute.forward + method.compute.backward == 20
    assert method.bits == 32
    assert method.ratio_max == 0.9


def test_notes_say_what_a_report_must():
    notes = PAPER.notes()
    assert notes["label"] == "PMP-style, re-derived"
    assert [f"A{n}" for n in range(1, 14)] == [key.split()[0] for key in notes if key[0] == "A" and key[1].isdigit()]
    for value in ("radius 500.0", "noise -174.0", "power 23.0", "bandwidth 10000000.0", "shadowing 8.0"):
        assert value in notes["cell"]


@pytest.mark.slow
def test_without_the_wire_it_is_the_same():
    method = replace(PAPER, deadline=0.4)
    with_wire = run(method, rounds=2)[0][-1]
    fleet = Watch(LocalFleet(PEOPLE, wire=False))
    with scope(fleet, Scope("r", 0, -1, 0)) as open_:
        state = method.begin(MODEL, open_, PEOPLE[0])
        open_.commit()
    for t in range(2):
        with scope(fleet, Scope("r", 0, t, 0)) as open_:
            state = method.round(state, t, open_)
            open_.commit()
    assert bytes(encode(state)) == bytes(encode(with_wire))


# --- the conformance suite with a personal head, whose model alone does not say how well it learns -------------------

PERSONAL_CASE = Case(
    "wireless-pruning",
    asks=2,
    down=frozenset({"wireless-pruning/train@1", "personal/judge@1"}),
    up=frozenset({"wireless-pruning/trained@1", "personal/judged@1"}),
    preset="published",
    settings={"data.valid": 0.2},
    label="personal",
)


reference = conformance.kept(conformance.states)
untouched = conformance.untouched  # a fixture


@pytest.mark.slow
def test_conformance_of_states_and_messages():
    for check in (
        conformance.test_same_state_without_the_wire_and_nothing_that_was_sent_is_written_into,
        conformance.test_same_state_when_clients_work_in_another_order,
        conformance.test_another_seed_gives_another_state_from_the_first_round_on,
        conformance.test_state_travels_and_has_a_name,
    ):
        check(PERSONAL_CASE, reference)
    for check in (
        conformance.test_one_silent_client_does_not_stop_a_round,
        conformance.test_when_all_are_silent_nothing_is_averaged,
        conformance.test_a_flaky_fleet_is_survived_and_still_decided_by_the_seed,
        conformance.test_exchanges_and_message_kinds_are_as_declared,
    ):
        check(PERSONAL_CASE)


@pytest.mark.slow
@pytest.mark.parametrize("t", [-1, 1, *conformance.also(0, 2)])
def test_conformance_of_restarts(untouched, tmp_path, t):
    check = conformance.test_a_run_that_is_killed_in_any_round_ends_in_the_same_state
    check(PERSONAL_CASE, reference, untouched, tmp_path, t)


@pytest.mark.slow
def test_personal_models_learn():
    config = PERSONAL_CASE.config(rounds=12, **{"data.limit": 0, "data.partition": "pathological"})
    rows = loop(config, setup.run_context(config), "run").rows
    assert rows[-1]["personal_accuracy"] > 0.9
    assert rows[-1]["masked_accuracy"] > 0.85
    assert rows[-1]["personal_loss"] < rows[0]["personal_loss"]


@pytest.mark.slow
def test_every_report_prints_the_cell_the_label_and_the_choices(tmp_path, capsys):
    """specs/wireless check 17."""
    from fedbonsai.reports.files import write
    from fedbonsai.reports.series import together
    from fedbonsai.reports.terminal import show
    from fedbonsai.runs import recipes
    from fedbonsai.runs.run import execute

    config = recipes.load("wireless-pruning", "", {"rounds": 1, "data.clients": 3, "data.limit": 240, "name": "w"})
    series = together([execute(config, tmp_path / "w")])
    show(series, series[0], 0.5)
    texts = [" ".join(capsys.readouterr().out.split())]
    for kind in ("html", "md"):
        write(tmp_path / f"report.{kind}", series, series[0], 0.5)
        texts.append((tmp_path / f"report.{kind}").read_text())
    for text in texts:
        assert "PMP-style, re-derived" in text
        assert "bandwidth 10000000" in text or "bandwidth 20000000" in text
        assert all(f"A{k} " in text for k in range(1, 14))
