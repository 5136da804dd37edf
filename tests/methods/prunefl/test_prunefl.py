"""specs/prunefl §8.6, §8.7, §8.8 and §8.9, held masks, and who is asked for what."""

import math
from dataclasses import replace

import pytest
import torch

from fedbonsai import training
from fedbonsai.arch import Arch
from fedbonsai.core import Answer, Client, Samples, Scope, Silence, scope
from fedbonsai.errors import ConfigError, Forgotten, Unanswered
from fedbonsai.fleets.ledger import Ledger
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Metered, Wrapper
from fedbonsai.methods.prunefl import method as prunefl
from fedbonsai.methods.prunefl.client import KEPT, Train, train
from fedbonsai.methods.prunefl.importance import Wanted, processed
from fedbonsai.methods.prunefl.initial_prune import InitialPruneConfig
from fedbonsai.methods.prunefl.method import PruneFL, State
from fedbonsai.model import Model
from fedbonsai.stages import held_masks
from fedbonsai.stages.held_masks import HeldMasks
from fedbonsai.stages.pruning.masks import masked, prunable
from fedbonsai.stages.pruning.per_time import halved
from fedbonsai.stages.pruning.time_model import Measured
from fedbonsai.training.optimizers import SGD
from fedbonsai.wire import encode

MLP = Arch("mlp", {"widths": (30,), "size": 2, "classes": 3})
START = Model.init(MLP, 1)
NAMES = prunable(START)
SIZES = {name: START.weights[name].numel() for name in NAMES}
COSTS = Measured(communication=2e-3, base=0.1)
QUICK = InitialPruneConfig(batches=2, iterations=120, every=10)


def person(id="a", count=60, seed=0):
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (count,), generator=random)
    x = torch.randn(count, 1, 2, 2, generator=random) * 0.5 + y[:, None, None, None]
    return Client(id, 7 + seed, Samples(x, y), Samples(x[:0], y[:0]))


PEOPLE = [person(id, seed=k) for k, id in enumerate("abcd")]


def method(**more):
    return PruneFL(
        **({"optimizer": SGD(lr=0.1, batch=20, steps=5), "interval": 2, "scouting": QUICK, "time": COSTS} | more)
    )


def run(how, fleet, rounds):
    """States after begin and after every round."""
    with scope(fleet, Scope("r", 0, -1, 0)) as open_:
        states = [how.begin(START, open_, PEOPLE[0])]
        open_.commit()
    for t in range(rounds):
        with scope(fleet, Scope("r", 0, t, 0)) as open_:
            states.append(how.round(states[-1], t, open_))
            open_.commit()
    return states


class Watching(Wrapper):
    """Remembers every message and every answer; some devices are silent in some rounds."""

    def __init__(self, inner, silent=()):
        super().__init__(inner)
        self.sent, self.got, self.mute = [], [], silent

    def ask(self, task, send, at_least=1):
        t = self._scope.round
        self.sent.append((t, {d.id: m for d, m in send.items()}))
        answers = self.inner.ask(task, {d: m for d, m in send.items() if (t, d.id) not in self.mute}, 0)

        def each():
            for answer in answers:
                self.got.append((t, answer.device.id, answer.value))
                yield answer
            yield from answers.silent.values()
            yield from (Silence(d, "test") for d in send if (t, d.id) in self.mute)

        return type(answers)(each(), at_least)


def masks_of(seed=3, share=0.4):
    random = torch.Generator().manual_seed(seed)
    return {name: torch.rand(START.weights[name].shape, generator=random) < share for name in NAMES}


def ask(masks, sgd=None, since=0, asked=True, accumulate=False, derived=False, memory=None, me=PEOPLE[0]):
    """One client's task under given masks."""
    sent = HeldMasks(masks).send(START.weights, [me], 0)[me]
    wanted = Wanted(asked, accumulate, derived, since)
    request = Train(MLP, sent, sgd or SGD(lr=0.1, batch=20, steps=5), wanted)
    return train.run(request, me, memory or {})


# --- importances ---------------------------------------------------------------------------------------------------


def test_importances_equal_the_squared_change_by_the_rate():  # specs/prunefl §8.6, under plain SGD
    masks = masks_of()
    result, _ = ask(masks)
    found = result.update.result.dense(START.weights, masks)
    z = result.importance.dense({n: START.weights[n] for n in NAMES})
    n = result.update.examples
    assert n == 5 * 20
    start = masked(START.weights, masks)
    for name in NAMES:
        derived = n * ((start[name] - found[name]) / 0.1).square()
        assert torch.allclose(derived[masks[name]], z[name][masks[name]], rtol=1e-3, atol=1e-4 * float(z[name].max()))
    biases = [name for name in START.weights if name not in NAMES]
    rest = sum(float(((START.weights[b] - found[b]) / 0.1).square().sum()) for b in biases)
    assert result.rest == pytest.approx(n * rest, rel=1e-3)


def test_pruned_coordinates_are_zero_in_the_upload_and_have_gradients():  # specs/prunefl §8.7
    masks = masks_of()
    result, _ = ask(masks)
    found = result.update.result.dense(START.weights, masks)
    z = result.importance.dense({n: START.weights[n] for n in NAMES})
    for name in NAMES:
        assert not bool(found[name][~masks[name]].any())
        assert bool((z[name][~masks[name]] > 0).any())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["round", "interval"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_no_upload_of_any_round_has_a_pruned_coordinate(how, momentum):
    fleet = Watching(LocalFleet(PEOPLE))
    sgd = SGD(lr=0.1, batch=20, steps=5, momentum=momentum)
    states = run(method(importance=how, optimizer=sgd), fleet, 7)
    assert states[0].held.version < states[-1].held.version  # the mask did change
    uploads = [(t, value) for t, _, value in fleet.got if t >= 0]
    assert len(uploads) == 7 * 4
    for t, value in uploads:
        masks = states[t].held.masks  # under which round t was trained
        found = value.update.result.dense(START.weights, masks)
        for name, mask in masks.items():
            assert int((~mask).sum()) > 0
            assert not bool(found[name][~mask].any())
    for state in states:
        assert all(not bool(state.model.weights[n][~m].any()) for n, m in state.held.masks.items())


@pytest.mark.slow
def test_the_server_derives_what_plain_clients_need_not_send():
    derived, whole = (Watching(LocalFleet(PEOPLE)) for _ in range(2))
    plain = method(interval=1)
    states = run(plain, derived, 3)
    sizes = [len(v.importance.payload) for t, _, v in derived.got if t == 1]
    pruned = sum(int((~m).sum()) for m in states[1].held.masks.values())
    assert all(4 * pruned <= size < 4 * pruned + 60 for size in sizes)
    run(method(interval=1, optimizer=SGD(lr=0.1, batch=20, steps=5, momentum=1e-9)), whole, 3)
    every = sum(START.weights[n].numel() for n in NAMES)
    assert all(4 * every <= len(v.importance.payload) < 4 * every + 60 for t, _, v in whole.got if t == 1)


def test_importances_accumulate_until_asked():
    masks = masks_of()
    (first, memory), (once, _) = ask(masks, asked=False, accumulate=True), ask(masks)
    assert first.importance is None
    second, memory = ask(masks, accumulate=True, memory=memory)  # the same round again: the same importances
    assert KEPT not in memory
    forms = {n: START.weights[n] for n in NAMES}
    one, two = once.importance.dense(forms), second.importance.dense(forms)
    assert all(torch.allclose(2 * one[n], two[n]) for n in NAMES)
    assert second.rest == pytest.approx(2 * once.rest)


def test_what_was_accumulated_before_a_missed_reconfiguration_is_dropped():
    masks = masks_of()
    _, memory = ask(masks, asked=False, accumulate=True, since=0)
    late, _ = ask(masks, accumulate=True, since=50, memory=memory)
    assert late.rest == pytest.approx(ask(masks)[0].rest)


@pytest.mark.parametrize("rest", [-1.0, math.nan])
def test_importances_that_cannot_be_are_dropped_with_their_update(rest):
    class Lying(Wrapper):
        def ask(self, task, send, at_least=1):
            answers = self.inner.ask(task, send, at_least)

            def each():
                for a in answers:
                    bad = a.device.id == "b" and a.value.importance is not None if self._scope.round >= 0 else False
                    yield Answer(a.device, replace(a.value, rest=rest)) if bad else a

            return type(answers)(each(), at_least)

    states = run(method(interval=1), Lying(LocalFleet(PEOPLE)), 2)
    assert [state.dropped for state in states[1:]] == [0, 1]
    assert "b" not in {id for id, v in states[-1].held.holders.items() if v == states[-1].held.version}


# --- regrowth and schedules -----------------------------------------------------------------------------------------


def shrunk(stale=True):
    """A state whose pruned weights are worth more than all others, as clients with these data see it."""
    how = method(interval=2, regrowth="stale" if stale else "zero", time=Measured(communication=1e-9, base=1e3))
    masks = masks_of()
    shelf = masked(START.weights, {n: ~m for n, m in masks.items()})
    weights = masked(START.weights, masks)
    times = how.time.of_sizes(SIZES, 5)
    kept = {n: shelf[n] for n in NAMES} if stale else {}
    return how, State(START.replace(weights), 0, HeldMasks(masks), kept, times, (1, 2, 2))


@pytest.mark.parametrize("stale", [True, False])
def test_regrown_weights_have_their_old_value_or_zero(stale):  # specs/prunefl §8.7 and §8.8
    how, state = shrunk(stale)
    before, masks, fleet = state.shelf, state.held.masks, LocalFleet(PEOPLE)
    for t in range(3):
        with scope(fleet, Scope("r", 0, t, 0)) as open_:
            state = how.round(state, t, open_)
            open_.commit()
        if t < 2:  # bit-identical after aggregation
            assert state.shelf.keys() == before.keys()
            assert all(torch.equal(state.shelf[n], before[n]) for n in before)
    grown = {n: state.held.masks[n] & ~masks[n] for n in NAMES}
    assert sum(int(g.sum()) for g in grown.values()) > 20  # a weight costs almost nothing
    for name in NAMES:
        want = START.weights[name] if stale else torch.zeros_like(START.weights[name])
        assert torch.equal(state.model.weights[name][grown[name]], want[grown[name]])


@pytest.mark.slow
def test_reconfigurations_come_every_interval():  # specs/prunefl §8.9
    fleet = Watching(LocalFleet(PEOPLE))
    states = run(method(interval=3), fleet, 8)
    assert [t for t, sent in fleet.sent if t >= 0 and sent["a"].wanted.asked] == [3, 6]
    assert [state.since for state in states[1:]] == [0, 0, 0, 3, 3, 3, 6, 6]
    assert PruneFL().interval == 50
    assert [t for t in range(200) if t > 0 and t % PruneFL().interval == 0] == [50, 100, 150]


@pytest.mark.slow
def test_the_learning_rate_halves():  # specs/prunefl §8.9
    fleet = Watching(LocalFleet(PEOPLE))
    run(method(lr_half_life=2, lr_every=1), fleet, 5)
    assert [sent["a"].sgd.lr for t, sent in fleet.sent if t >= 0] == pytest.approx(
        [0.1 * 0.5 ** (t / 2) for t in range(5)]
    )


@pytest.mark.slow
def test_the_share_that_may_go_halves(monkeypatch):  # specs/prunefl §8.9
    seen, whole = [], prunefl.reconfigured

    def watched(weights, shelf, masks, z, times, fraction, *more):
        seen.append(fraction)
        return whole(weights, shelf, masks, z, times, fraction, *more)

    monkeypatch.setattr(prunefl, "reconfigured", watched)
    run(method(interval=2, fraction_half_life=2), LocalFleet(PEOPLE), 7)
    assert seen == pytest.approx([0.15, 0.075, 0.0375])  # rounds 2, 4 and 6
    assert [PruneFL().fraction * halved(t, PruneFL().fraction_half_life) for t in (0, 5_000)] == pytest.approx(
        [0.3, 0.21213], abs=1e-5
    )


# --- held masks -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_mask_travels_only_to_whom_it_is_new():
    fleet = Watching(LocalFleet(PEOPLE), silent={(1, "b"), (4, "c")})
    run(method(interval=2), fleet, 7)
    new = {t: "".join(id for id, m in sent.items() if m.sent.masks is not None) for t, sent in fleet.sent if t >= 0}
    # the scout is a; b and c were silent; the mask is rebuilt after rounds 2, 4 and 6
    assert new == {0: "bcd", 1: "", 2: "b", 3: "abcd", 4: "", 5: "abcd", 6: ""}


def test_a_client_without_the_mask_says_so_and_gets_it():
    held = HeldMasks(masks_of()).received(["a"])
    device = LocalFleet(PEOPLE).devices[0]
    sent = held.send(START.weights, [device], 0)[device]
    assert sent.masks is None
    with pytest.raises(Forgotten, match="version 1"):
        held_masks.received(sent, MLP, {})
    again = held.silent([device]).send(START.weights, [device], 0)[device]
    weights, masks, memory = held_masks.received(again, MLP, {})
    assert all(torch.equal(weights[n], w) for n, w in masked(START.weights, masks).items())
    assert all(torch.equal(w, weights[n]) for n, w in held_masks.received(sent, MLP, memory)[0].items())


def test_bits_only_for_values():
    held, device = HeldMasks(masks_of()), LocalFleet(PEOPLE).devices[0]
    kept = sum(int(m.sum()) for m in held.masks.values())
    rest = sum(w.numel() for n, w in START.weights.items() if n not in held.masks)
    size = len(held.send(START.weights, [device], 0)[device].values.payload)
    assert 4 * (kept + rest) <= size < 4 * (kept + rest) + 30
    assert held.renewed({n: m.clone() for n, m in held.masks.items()}) is held
    assert held.renewed({n: ~m for n, m in held.masks.items()}).version == 2


# --- what goes wrong on the way ---------------------------------------------------------------------------------------


def test_samples_processed_are_those_of_the_batches():
    sgd = SGD(lr=0.1, batch=20, steps=5)
    for count in (5, 20, 25, 41, 60, 300):
        assert processed(count, sgd) == sum(len(batch) for batch in training.batches(person(count=count), sgd))
    assert processed(25, sgd) == 20 + 5 + 20 + 5 + 20
    result, _ = ask(masks_of(), me=person(count=25))
    assert result.update.examples == 70


class Forgetting(LocalFleet):
    """Clients lose their memories before a round."""

    def __init__(self, people, t, ids):
        super().__init__(people)
        self.t, self.ids = t, ids

    def open(self, scope):
        if scope.round == self.t:
            self.restore({id: kept for id, kept in self._slots._accepted.items() if id not in self.ids})
        super().open(scope)


@pytest.mark.slow
@pytest.mark.parametrize("importance", ["round", "interval"])
def test_when_all_forget_their_masks_they_get_them_again(importance):
    fleet = Watching(Forgetting(PEOPLE, 2, "abcd"))
    states = run(method(interval=2, importance=importance), fleet, 5)  # round 2 would have been a reconfiguration
    new = {t: "".join(id for id, m in sent.items() if m.sent.masks is not None) for t, sent in fleet.sent if t >= 0}
    assert (new[2], new[3]) == ("", "abcd")
    assert all(torch.equal(states[3].model.weights[n], w) for n, w in states[2].model.weights.items())
    assert [sent["a"].wanted.asked for t, sent in fleet.sent if t >= 0] == [False, False, True, True, True]
    assert [state.since for state in states[1:]] == [0, 0, 0, 3, 4]  # made up for, then in step again


@pytest.mark.slow
def test_when_some_forget_in_a_reconfiguration_the_others_decide():
    fleet = Watching(Forgetting(PEOPLE, 2, "bd"))
    states = run(method(interval=2, importance="interval"), fleet, 4)
    assert states[3].since == 2
    assert states[3].held.version == states[2].held.version + 1
    assert [id for t, id, _ in fleet.got if t == 2] == ["a", "c"]
    sent = dict(fleet.sent)[3]
    assert all(m.sent.masks is not None for m in sent.values())


def test_all_silent_is_an_error_and_leaves_the_state():
    fleet = Watching(LocalFleet(PEOPLE), silent={(0, id) for id in "abcd"})
    with pytest.raises(Unanswered, match="at least 1 needed"):
        run(method(), fleet, 1)


@pytest.mark.slow
def test_a_round_that_is_tried_again_counts_importances_once():
    def after(failed):
        how, fleet = method(interval=3, importance="interval"), LocalFleet(PEOPLE)
        [state] = run(how, fleet, 0)
        for t in range(4):
            for attempt in range(1 + (t in failed)):
                with scope(fleet, Scope("r", 0, t, attempt)) as open_:
                    new = how.round(state, t, open_)
                    if attempt == (t in failed):
                        state = new
                        open_.commit()
        return state

    one, other = after({}), after({1, 3})
    assert one.since == other.since == 3
    assert all(torch.equal(one.held.masks[n], m) for n, m in other.held.masks.items())
    assert all(torch.equal(one.model.weights[n], w) for n, w in other.model.weights.items())


@pytest.mark.slow
def test_importances_begin_anew_after_a_reconfiguration():
    how, fleet = method(interval=2, importance="interval"), Watching(LocalFleet(PEOPLE))
    run(how, fleet, 5)
    memory = fleet.inner._slots.memory("a")
    assert KEPT not in memory  # sent in round 4
    masks = masks_of()
    _, memory = ask(masks, asked=False, accumulate=True)
    _, memory = ask(masks, accumulate=True, memory=memory)
    _, memory = ask(masks, asked=False, accumulate=True, since=2, memory=memory)
    second, _ = ask(masks, accumulate=True, since=2, memory=memory)
    assert second.rest == pytest.approx(2 * ask(masks)[0].rest)


class Claiming(Wrapper):
    """Device b claims a number of samples that nobody can have."""

    examples = 1 << 50

    def ask(self, task, send, at_least=1):
        answers = self.inner.ask(task, send, at_least)

        def each():
            for a in answers:
                if self._scope.round >= 0 and a.device.id == "b":
                    a = replace(a, value=replace(a.value, update=replace(a.value.update, examples=self.examples)))
                yield a

        return type(answers)(each(), at_least)


@pytest.mark.slow
@pytest.mark.parametrize("derive", [True, False])
@pytest.mark.parametrize("claim", [0, -3, 1 << 50])
def test_importances_of_a_dropped_update_do_not_count(monkeypatch, claim, derive):
    monkeypatch.setattr(Claiming, "examples", claim)
    sgd = SGD(lr=0.1, batch=20, steps=5, momentum=0.0 if derive else 1e-9)
    lying = run(method(interval=1, optimizer=sgd), Claiming(LocalFleet(PEOPLE)), 2)
    silent = run(method(interval=1, optimizer=sgd), Watching(LocalFleet(PEOPLE), silent={(0, "b"), (1, "b")}), 2)
    assert [state.dropped for state in lying[1:]] == [1, 1]
    assert all(torch.equal(lying[2].held.masks[n], m) for n, m in silent[2].held.masks.items())
    assert all(torch.equal(lying[2].model.weights[n], w) for n, w in silent[2].model.weights.items())


@pytest.mark.slow
def test_a_device_that_comes_back_after_many_masks_gets_the_newest():
    away = {(t, "d") for t in range(6)}
    fleet = Watching(LocalFleet(PEOPLE), silent=away)
    states = run(method(interval=1), fleet, 8)
    assert states[6].held.version >= 4
    sent = dict(fleet.sent)
    assert all(m.sent.version == states[6].held.version for m in sent[6].values())
    assert sent[6]["d"].sent.masks is not None
    answers = {(t, id): value for t, id, value in fleet.got}
    found = answers[6, "d"].update.result.dense(START.weights, states[6].held.masks)
    assert all(not bool(found[n][~m].any()) for n, m in states[6].held.masks.items())


def test_a_part_of_the_devices_at_a_time():
    fleet = Watching(LocalFleet(PEOPLE))
    states = run(method(interval=2, cohort=2, importance="interval"), fleet, 9)
    held = {}
    for sent in (sent for t, sent in fleet.sent if t >= 0):
        assert len(sent) == 2
        for id, m in sent.items():  # a mask travels exactly to those whose last one is another
            last = held.get(id, 1 if id == "a" else None)
            assert (m.sent.masks is None) == (last == m.sent.version)
            held[id] = m.sent.version
    assert [state.since for state in states[1:]] == [0, 0, 2, 2, 4, 4, 6, 6, 8]


@pytest.mark.slow
def test_statistics_of_normalisation_are_averaged_and_nothing_but_matrices_is_pruned():
    arch = Arch("resnet-tiny", {"channels": 1, "size": 8, "classes": 3})
    start = Model.init(arch, 0)
    wide = [replace(p, train=Samples(p.train.x.repeat(1, 1, 4, 4), p.train.y)) for p in PEOPLE[:2]]
    how = method(interval=1, scouting=InitialPruneConfig(batches=1, iterations=3, every=1, gate=0))
    fleet = Watching(LocalFleet(wide))
    with scope(fleet, Scope("r", 0, -1, 0)) as open_:
        first = how.begin(start, open_, wide[0])
        open_.commit()
    with scope(fleet, Scope("r", 0, 0, 0)) as open_:
        state = how.round(first, 0, open_)
    names = set(first.held.masks)
    assert len(names) == 1 + 12 + 1
    assert not any("shortcut" in name or "norm" in name or "bias" in name for name in names)
    assert any("shortcut" in name for name in start.weights)
    uploads = [v.update.result.dense(start.weights, first.held.masks) for t, _, v in fleet.got if t == 0]
    statistics = [name for name in start.weights if "running" in name]
    assert statistics
    for name in statistics:
        mean = (uploads[0][name] + uploads[1][name]) / 2
        assert torch.allclose(state.model.weights[name], mean, rtol=1e-5, atol=1e-7)


def test_an_upload_of_resnet_tiny_at_five_percent():
    model = Model.init(Arch("resnet-tiny", {"channels": 1, "size": 8}), 0)
    names = [n for n in prunable(model) if "shortcut" not in n]
    random = torch.Generator().manual_seed(0)
    masks = {n: torch.rand(model.weights[n].shape, generator=random) < 0.05 for n in names}
    sent = HeldMasks(masks).send(model.weights, [PEOPLE[0]], 0)[PEOPLE[0]]
    me = replace(PEOPLE[0], train=Samples(PEOPLE[0].train.x.repeat(1, 1, 4, 4), PEOPLE[0].train.y))
    request = Train(model.arch, sent, SGD(lr=0.1, batch=20, steps=1), Wanted(False, False, True, 0))
    result, _ = train.run(request, me, {})
    assert len(encode(result)) < 70_000
    found = result.update.result.dense(model.weights, masks)
    assert all(not bool(found[n][~m].any()) for n, m in masks.items())


def test_layers_that_lose_nothing_and_layers_of_one_weight():
    masks = {n: torch.ones_like(START.weights[n], dtype=torch.bool) for n in NAMES}
    result, _ = ask(masks, derived=True)
    z = result.importance.dense({n: START.weights[n] for n in NAMES}, {n: ~m for n, m in masks.items()})
    assert not any(bool(v.any()) for v in z.values())
    for mask in masks.values():
        mask.zero_()
        mask.view(-1)[0] = True
    result, _ = ask(masks, derived=True)
    found = result.update.result.dense(START.weights, masks)
    assert all(int((found[n] != 0).sum()) <= 1 for n in NAMES)


# --- both accounts ---------------------------------------------------------------------------------------------------


def test_the_ledger_and_the_papers_bytes():
    ledger = Ledger()
    how = method(interval=2)
    states = run(how, Metered(LocalFleet(PEOPLE), ledger), 3)
    rows = ledger.take()
    for t, state in enumerate(states[1:]):
        figures = how.metrics(state)
        for side in ("down", "up"):
            ours = sum(row["bytes"] for row in rows if row["round"] == t and row["direction"] == side)
            assert figures[f"paper_{side}"] < ours < figures[f"paper_{side}"] + 4 * 700  # heads of four small messages
    last = how.metrics(states[-1])
    assert last["scout_seconds"] > 0
    # by the authors' account the sum of the rounds, each under the mask it was trained with, and nothing before
    assert last["paper_seconds"] == pytest.approx(sum(how.metrics(state)["modelled_seconds"] for state in states[:-1]))
    assert last["whole_seconds"] > last["paper_seconds"] + last["scout_seconds"]
    assert last["conventional_seconds"] == pytest.approx(0.5 + 2e-3 * sum(SIZES.values()))
    assert last["scout_reconfigurations"] == len(states[0].densities) > 0
    assert last["macs"] == last["kept"]  # without convolutions a weight is one multiplication
    assert last["parameters"] == last["kept"] + 33
    assert how.metrics(states[2])["modelled_seconds"] == pytest.approx(0.5 + 2e-3 * how.metrics(states[2])["kept"])


def test_settings_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match="steps"):
        PruneFL(optimizer=SGD())
    with pytest.raises(ValueError, match="interval"):
        PruneFL(interval=0)
    with pytest.raises(ValueError, match="share"):
        PruneFL(fraction=1.0)
    with pytest.raises(ValueError, match="density"):
        PruneFL(density=0.0)
    with pytest.raises(ValueError, match="half_life"):
        PruneFL(lr_half_life=-1)
    with pytest.raises(ValueError, match="no effect"):
        PruneFL(lr_every=10)
    with pytest.raises(
        ValueError, match=r"interval = 0: expected at least 1; density = 2: expected a share in \(0, 1\]"
    ):
        PruneFL(interval=0, density=2)
    with pytest.raises(ConfigError, match="never"):
        run(method(never=("",)), LocalFleet(PEOPLE), 0)
