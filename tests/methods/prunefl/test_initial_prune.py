"""specs/prunefl §8.7, §8.10 and §8.11: initial pruning at one device, and who does it."""

from dataclasses import replace

import pytest
import torch

from fedbonsai.arch import Arch
from fedbonsai.arch import _builders as networks_known
from fedbonsai.core import Answer, Samples, Scope, scope
from fedbonsai.errors import ConfigError, Unanswered
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.methods.prunefl import initial_prune as room
from fedbonsai.methods.prunefl.initial_prune import (
    InitialPrune,
    InitialPruneConfig,
    accepted,
    initial_prune,
    minibatches,
)
from fedbonsai.model import Model, cached_module
from fedbonsai.stages.pruning.masks import masked
from fedbonsai.stages.pruning.per_time import turned
from fedbonsai.training.evaluate import Score
from fedbonsai.training.optimizers import SGD
from fedbonsai.work import collecting
from tests.methods.prunefl.test_prunefl import (
    COSTS,
    NAMES,
    PEOPLE,
    QUICK,
    SIZES,
    START,
    Watching,
    masks_of,
    method,
    person,
    run,
)

SGD5 = SGD(lr=0.1, batch=20, steps=5)
REQUEST = InitialPrune(START, SGD5, QUICK, COSTS.of_sizes(SIZES, 5), True, 10**9)


def prune(how, me=PEOPLE[0], stale=True):
    times = COSTS.of_sizes(SIZES, 5)
    return initial_prune.run(InitialPrune(START, SGD(lr=0.1, batch=20, steps=5), how, times, stale, 10**9), me, {})[0]


def test_the_gate_decides_when_the_first_reconfiguration_comes(monkeypatch):  # specs/prunefl §8.11
    looks = iter([False, True])
    monkeypatch.setattr(room, "reached", lambda *_: next(looks))
    found = prune(InitialPruneConfig(batches=1, iterations=120, every=50))
    assert found.at == (11, 61, 111)


@pytest.mark.parametrize(("accuracy", "open_"), [(1.49 / 62, False), (1.51 / 62, True), (0.0242, True)])
def test_the_gate_for_62_classes(monkeypatch, accuracy, open_):  # specs/prunefl §8.11
    monkeypatch.setattr(room.training, "evaluate", lambda *_: Score(0.0, {"accuracy": accuracy}, 1))
    model = Model.init(Arch("mlp", {"widths": (5,), "size": 2, "classes": 62}), 0)
    assert room.reached(model, [PEOPLE[0].train], 1.5, "cpu") is open_


@pytest.mark.slow
def test_initial_pruning_shrinks_only_unless_it_may_regrow():
    shrinking = prune(replace(QUICK, regrow=False, tolerance=0.0, iterations=400))
    assert list(shrinking.densities) == sorted(shrinking.densities, reverse=True)
    assert shrinking.densities[-1] < shrinking.densities[0] < 1
    for name, mask in shrinking.masks.items():
        assert not bool(shrinking.weights[name][~mask].any())
        assert not bool(shrinking.shelf[name][mask].any())
        assert bool(mask.any())
    steady = prune(QUICK)
    assert len(steady.at) >= 6  # five changes need six
    assert prune(QUICK, stale=False).shelf == {}


def test_the_modelled_time():
    found = prune(InitialPruneConfig(batches=2, iterations=7, gate=99))
    assert found.at == ()
    assert found.seconds == pytest.approx(7 * 2 * 0.1)  # no slopes here


def test_a_silent_device_is_replaced():
    fleet = Watching(LocalFleet(PEOPLE), silent={(-1, "a"), (-1, "b")})
    states = run(method(), fleet, 1)
    assert [list(sent) for t, sent in fleet.sent if t < 0] == [["a"], ["b"], ["c"]]
    first = next(sent for t, sent in fleet.sent if t == 0)
    assert {id for id, m in first.items() if m.sent.masks is None} == {"c"}
    assert states[0].held.holders == {"c": 1}
    with pytest.raises(Unanswered, match="initial pruning"):
        run(method(), Watching(LocalFleet(PEOPLE), silent={(-1, id) for id in "abcd"}), 0)


def test_the_number_of_minibatches_is_that_of_the_setting_and_not_of_local_steps():
    drawn = minibatches(person(count=300), SGD5, 10)
    assert [len(batch) for batch in drawn] == [20] * 10
    assert [len(batch) for batch in minibatches(person(count=45), SGD5, 10)] == [20, 20, 5]
    first = minibatches(person(count=300), SGD5, 10)
    assert all(torch.equal(a.x, b.x) for a, b in zip(drawn, first, strict=True))  # drawn once, the same ever after


def test_a_device_without_samples_says_what_to_do():
    with pytest.raises(ConfigError, match=r"client a has no training samples.*data\.minimum"):
        initial_prune.run(REQUEST, person("a", 0), {})


@pytest.mark.parametrize(
    ("fault", "match"),
    [({"every": 0}, "every"), ({"batches": 0}, "batches"), ({"fraction": 1.0}, "share"), ({"gate": -1.0}, "gate")],
)
def test_settings_that_cannot_be_meant_is_refused(fault, match):
    with pytest.raises(ValueError, match=match):
        InitialPruneConfig(**fault)


def test_momentum_of_weights_that_come_back_is_zero(monkeypatch):  # specs/prunefl §1.7
    few, calls, seen, move = masks_of(), [], [], room.Moving.move

    def forced(weights, shelf, old, *_):
        calls.append(1)
        new = few if len(calls) == 1 else {n: torch.ones_like(m) for n, m in few.items()}
        return (*turned(weights, shelf, old, new, True), new)

    def watched(moving, *step):
        if len(calls) == 2 and not seen:
            seen.extend(value.clone() for value in moving.slots[0])
        move(moving, *step)

    monkeypatch.setattr(room, "reconfigured", forced)
    monkeypatch.setattr(room.Moving, "move", watched)
    how = InitialPruneConfig(batches=2, iterations=30, every=5, gate=0)
    initial_prune.run(replace(REQUEST, sgd=replace(SGD5, momentum=0.9), how=how), PEOPLE[0], {})
    found = dict(zip(cached_module(START).parameters, seen, strict=True))
    for name in NAMES:
        assert not bool(found[name][~few[name]].any())
        assert bool(found[name][few[name]].any())


def output_first(size: int = 2, classes: int = 3):
    """Three classes; the last weights are of a layer that gives five values and is used first."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.last = torch.nn.Linear(5, classes)
            self.first = torch.nn.Linear(size * size, 5)

        def forward(self, x):
            return self.last(self.first(x.flatten(1)))

    return Net()


def test_classes_are_those_of_the_output(monkeypatch):
    monkeypatch.setattr(room.training, "evaluate", lambda *_: Score(0.0, {"accuracy": 0.4}, 1))
    monkeypatch.setitem(networks_known, "output-first", output_first)
    model = Model.init(Arch("output-first"), 0)
    assert not room.reached(model, [PEOPLE[0].train], 1.5, "cpu")  # 0.4 < 1.5 / 3
    assert room.reached(model, [PEOPLE[0].train], 1.1, "cpu")  # 0.4 > 1.1 / 3, yet also > 1.5 / 5


def test_importances_begin_anew_after_each_reconfiguration(monkeypatch):
    seen, whole = [], room.reconfigured

    def watched(weights, shelf, masks, z, *more):
        seen.append((sum(float(v.double().sum()) for v in z.values()), more[3]))
        return whole(weights, shelf, masks, z, *more)

    monkeypatch.setattr(room, "reconfigured", watched)
    how = InitialPruneConfig(batches=2, iterations=15, every=7, gate=0, fraction=0.0)
    initial_prune.run(
        replace(REQUEST, sgd=replace(SGD5, lr=0.0), how=how), PEOPLE[0], {}
    )  # every iteration is the same
    first, second, third = seen  # in iterations 1, 8 and 15
    assert second == pytest.approx((7 * first[0], 7 * first[1]), rel=1e-4)
    assert third == pytest.approx(second, rel=1e-4)


def test_what_is_computed_is_reported():
    with collecting() as found:
        result = initial_prune.run(replace(REQUEST, how=replace(QUICK, tolerance=0.0)), PEOPLE[0], {})[0]
    trained = [episode for episode in found if episode.backward]
    assert sum(episode.steps for episode in trained) == 2 * QUICK.iterations
    assert sum(episode.backward for episode in trained) == 40 * QUICK.iterations
    kept = [episode.kept[NAMES[0]] for episode in trained]
    assert kept[0] == 1
    assert kept[-1] < 1
    assert len(trained) <= len(result.at) + 1


def test_channels_last_and_batch_statistics_change_nothing_of_the_rules():
    arch = Arch("cnn-bn", {"size": 8, "classes": 3})
    model = Model.init(arch, 0)
    names = [n for n, v in model.weights.items() if v.ndim > 1]
    times = COSTS.of_sizes({n: model.weights[n].numel() for n in names}, 5)
    me = person()
    me = replace(me, train=Samples(me.train.x.repeat(1, 1, 4, 4), me.train.y))
    how = InitialPruneConfig(batches=2, iterations=12, every=2, gate=0)
    found, memory = initial_prune.run(
        InitialPrune(model, replace(SGD5, channels_last=True), how, times, True, 10**9), me, {}
    )
    assert accepted(found, InitialPrune(model, SGD5, how, times, True, 10**9)) is not None
    assert found.densities[-1] < 0.9
    assert all(bool(torch.isfinite(v).all()) for v in found.weights.values())
    assert torch.equal(memory["masks"]["masks"][names[0]], found.masks[names[0]])


@pytest.mark.slow
def test_a_run_that_is_killed_during_the_initial_pruning_ends_in_the_same_state():
    def begun(fleet, attempt=0):
        with scope(fleet, Scope("r", 0, -1, attempt)) as open_:
            return method().begin(START, open_, PEOPLE[0])  # not committed, as if killed

    fleet = LocalFleet(PEOPLE)
    first, again, other = begun(fleet), begun(fleet), begun(LocalFleet(PEOPLE))
    for state in (again, other):
        assert state.densities == first.densities
        assert all(torch.equal(state.model.weights[n], w) for n, w in first.model.weights.items())
        assert all(torch.equal(state.held.masks[n], m) for n, m in first.held.masks.items())
    assert not fleet.pending()


@pytest.mark.slow
def test_a_bound_holds_from_the_initial_pruning_on():
    states = run(method(density=0.1, interval=1, time=replace(COSTS, base=1e3)), LocalFleet(PEOPLE), 4)
    every = sum(SIZES.values())
    assert [sum(int(m.sum()) for m in state.held.masks.values()) for state in states] == [int(0.1 * every)] * 5
    free = run(method(interval=1, time=replace(COSTS, base=1e3)), LocalFleet(PEOPLE), 1)
    assert sum(int(m.sum()) for m in free[0].held.masks.values()) > 0.5 * every


def test_reasons_of_all_devices_are_told():
    hot = replace(SGD5, lr=1e30)
    with pytest.raises(Unanswered, match=r"a: initial pruning gave values that are not finite.*; b: .*; d: "):
        run(method(optimizer=hot), LocalFleet(PEOPLE), 0)


class Answering(Wrapper):
    """The first device's answer is changed by a function."""

    def __init__(self, inner, change):
        super().__init__(inner)
        self.change = change

    def ask(self, task, send, at_least=1):
        answers = self.inner.ask(task, send, at_least)

        def each():
            for a in answers:
                mine = a.device.id == "a" and self._scope.round < 0
                yield Answer(a.device, self.change(a.value)) if mine else a

        return type(answers)(each(), at_least)


BAD = {
    "type": lambda v: replace(v, weights={n: w.double() for n, w in v.weights.items()}),
    "shape": lambda v: replace(v, weights={n: w.reshape(-1) for n, w in v.weights.items()}),
    "empty layer": lambda v: replace(v, masks={n: torch.zeros_like(m) for n, m in v.masks.items()}),
    "masks missing": lambda v: replace(v, masks={}),
    "shelf of others": lambda v: replace(v, shelf={"x": torch.zeros(1)}),
    "not finite": lambda v: replace(v, shelf={n: w / 0 for n, w in v.shelf.items()}),
    "seconds": lambda v: replace(v, seconds=float("nan")),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_an_answer_that_does_not_fit_goes_to_the_next_device(change):
    fleet = Answering(LocalFleet(PEOPLE), change)
    [state] = run(method(), fleet, 0)
    assert state.held.holders == {"b": 1}
    assert fleet.inner._slots.memory("a") == {}  # its masks are not the server's
    assert "masks" in fleet.inner._slots.memory("b")


@pytest.mark.slow
def test_names_come_in_the_servers_order():
    def turned_round(value):
        parts = {part: dict(reversed(getattr(value, part).items())) for part in ("weights", "masks", "shelf")}
        return replace(value, **parts)

    states = [run(method(), Answering(LocalFleet(PEOPLE), change), 1) for change in (turned_round, lambda v: v)]
    for state in states[0]:
        assert list(state.model.weights) == list(START.weights)
        assert list(state.held.masks) == NAMES
    assert all(torch.equal(states[0][1].model.weights[n], w) for n, w in states[1][1].model.weights.items())


def test_what_a_device_sends_beside_its_mask_does_not_count():
    def leaking(value):
        return replace(value, weights={n: torch.ones_like(w) for n, w in value.weights.items()})

    [state] = run(method(), Answering(LocalFleet(PEOPLE), leaking), 0)
    assert all(torch.equal(w, state.model.weights[n]) for n, w in masked(state.model.weights, state.held.masks).items())
