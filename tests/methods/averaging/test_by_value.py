"""Rounds of averaging by value: every way up and down that keeps a state, three unequal clients, against numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedbonsai.core import Answers, Client, Samples, Silence
from fedbonsai.fleets.local import LocalFleet
from fedbonsai.fleets.wrappers import Wrapper
from fedbonsai.methods.averaging import method as averaging
from fedbonsai.methods.averaging.method import Averaging
from fedbonsai.methods.fl_pqsu.client import Train as Asked
from fedbonsai.methods.fl_pqsu.method import FlPqsu
from fedbonsai.stages.broadcast import Downlink
from fedbonsai.stages.codec import parse
from fedbonsai.stages.pruning.filters import All
from fedbonsai.stages.pruning.gates import Agreement, Lazy, Loss
from fedbonsai.stages.selective import OWN, Rule, selected
from fedbonsai.stages.updates import FEEDBACK
from fedbonsai.stages.weighting import Weighting
from fedbonsai.training.optimizers import SGD
from fedbonsai.wire import decode, encode
from tests.methods.averaging import by_hand as hand
from tests.methods.hand import DATA, INPUTS, MODEL, PEOPLE, SINGLE, SINGLES, WHOLE, Played, close, descended
from tests.methods.rounds import same

IDS = tuple(DATA)
STEPS = SGD(lr=0.3, momentum=0.5, weight_decay=0.02, batch=WHOLE, steps=3)
BY_HAND = {"steps": 3, "lr": 0.3, "momentum": 0.5, "decay": 0.02}
TOP2, TOP6 = ({"topk": {"count": count, "min_numel": 0}} for count in (2, 6))
CODES = {  # chains beside their arithmetic
    "whole": ([], hand.exact),
    "top2": ([TOP2], hand.topk(2)),
    "top6": ([TOP6], hand.topk(6)),
    "affine": ([{"affine": 5}], hand.affine(5)),
}
DELTA = Downlink(parse([TOP6]), delta=True)
LOST = ((1, "b"), (2, "b"), (3, "c"))


def chain(name, feedback=()):
    return parse([*feedback, *CODES[name][0]])


def down(name, delta):
    return Downlink(chain(name), delta), hand.Downlink(CODES[name][1], delta)


def followed(method, simulated, rounds=4, lost=(), people=PEOPLE, kind=averaging.Train, tolerance=1e-9):
    """The run beside its simulation; in fp32 where weights come coded, which are of the network's own type."""
    single = bool(method.downlink.chain.stages) and not method.downlink.delta
    people, model, tolerance = (SINGLES, SINGLE, 2e-5) if single else (people, MODEL, tolerance)
    played = Played(method, people=people, model=model, rounds=rounds, lost=lost)
    for t in range(rounds):
        asked, state = list(played.sent(t, kind)), played.states[t + 1]
        figures = simulated.step(t, asked, [id for at, id in lost if at == t])
        close(state.model.weights, simulated.w, tolerance)
        assert method.metrics(state) == pytest.approx(figures, rel=max(1e-6, tolerance))
        for id, device in simulated.devices.items():
            kept = played.memories[t + 1][id].memory.get(FEEDBACK) if id in played.memories[t + 1] else None
            assert (kept is not None) == bool(device.kept and device.kind)
            if kept is not None:
                close(kept["residual" if device.kind == "ef14" else "estimate"], device.kept, tolerance)
    return played


@pytest.mark.parametrize("rate", [1.0, 0.6])
@pytest.mark.parametrize("up", ["whole", "top6", "affine"])
@pytest.mark.parametrize(
    ("way", "delta"), [("whole", False), ("affine", False), ("whole", True), ("top2", True), ("affine", True)]
)
def test_every_way_down_under_every_way_up(way, delta, up, rate):
    """Most of all: what clients learned is a change of what they received, not of the server's model."""
    real, simulated = down(way, delta)
    method = Averaging(STEPS, uplink=chain(up), downlink=real, rate=rate)
    followed(method, hand.Averaging(BY_HAND, CODES[up][1], simulated, rate=rate), lost=LOST, tolerance=1e-8)


@pytest.mark.parametrize("cohort", [0, 2])
@pytest.mark.parametrize("reset", [0, 2])
@pytest.mark.parametrize("up", ["top2", "affine"])
def test_error_feedback_is_lent_decays_and_is_dropped(up, reset, cohort):
    real, simulated = down("top6", True)
    feedback = [{"ef14": {"decay": 0.5, "reset": reset}}]
    method = Averaging(STEPS, uplink=chain(up, feedback), downlink=real, rate=0.8, cohort=cohort)
    other = hand.Averaging(BY_HAND, CODES[up][1], simulated, "ef14", 0.5, reset, 0.8)
    followed(method, other, rounds=5, lost=LOST, tolerance=1e-8)


@pytest.mark.parametrize("cohort", [0, 2])
@pytest.mark.parametrize(("way", "delta"), [("whole", False), ("affine", False), ("top6", True)])
def test_ef21_moves_by_the_mean_of_all_estimates(way, delta, cohort):
    real, simulated = down(way, delta)
    method = Averaging(STEPS, uplink=chain("top6", ["ef21"]), downlink=real, rate=0.7, cohort=cohort)
    other = hand.Averaging(BY_HAND, CODES["top6"][1], simulated, "ef21", rate=0.7)
    followed(method, other, rounds=5, lost=LOST[:1] if cohort else LOST)


class Forgetting(Wrapper):
    """Devices say in a round that they lost all they held, as those of Flower do."""

    def __init__(self, inner, when):
        super().__init__(inner)
        self.when = when

    def ask(self, task, send, at_least=1):
        gone = [device for device in send if (self.where()[0].round, device.id) in self.when]
        for device in gone:
            self.inner._slots._accepted.pop(device.id, None)
        answers = self.inner.ask(task, {device: send[device] for device in send if device not in gone}, 0)

        def rest():
            yield from answers
            yield from (Silence(device, "memory is not here", forgot=True) for device in gone)

        return Answers(rest(), at_least)


@pytest.mark.parametrize(("feedback", "code"), [("ef14", "top2"), ("ef21", "top2"), ("ef21", "affine")])
@pytest.mark.parametrize("cohort", [0, 2])
def test_who_lost_its_memory_bends_no_sum(feedback, code, cohort):
    """An estimate that is held at one end alone would bend the mean for ever: all estimates begin anew."""
    when, rounds = ((2, "b"), (3, "a"), (5, "c")), 8
    method = Averaging(STEPS, uplink=chain(code, [feedback]), downlink=DELTA, rate=0.7, cohort=cohort)
    played = Played(method, rounds=rounds, fleet=Forgetting(LocalFleet(PEOPLE), when))
    down = hand.Downlink(hand.topk(6), True)
    other = hand.Averaging(BY_HAND, CODES[code][1], down, feedback, reset=20 * (feedback == "ef14"), rate=0.7)
    for t in range(rounds):
        asked = [id for at, id, _ in played.fleet.sent if at == t]
        figures = other.step(t, asked, forgot=[id for at, id in when if at == t and id in asked])
        state = decode(encode(played.states[t + 1]))
        close(method.model(state).weights, other.w, 1e-8)
        assert method.metrics(state) == pytest.approx(figures, rel=1e-6)


def test_when_all_lost_theirs_estimates_begin_anew_too():
    method = Averaging(STEPS, uplink=chain("top2", ["ef21"]))
    played = Played(method, rounds=4, fleet=Forgetting(LocalFleet(PEOPLE), [(2, id) for id in IDS]))
    assert same(method.model(played.states[3]).weights, played.states[2].model.weights)
    plain = hand.Averaging(BY_HAND, hand.topk(2), hand.Downlink(hand.exact, False), "ef21")
    plain.w = {name: value.numpy() for name, value in played.states[2].model.weights.items()}
    plain.step(3, IDS)
    close(method.model(played.states[4]).weights, plain.w)


def test_ef21_refuses_to_drop_one_clients_estimate():
    with pytest.raises(ValueError, match=r"ef21\.reset = 3"):
        Averaging(uplink=chain("top2", [{"ef21": {"reset": 3}}]))


def test_fedprox_pulls_to_what_was_received():
    real, simulated = down("affine", False)
    method = Averaging(replace(STEPS, proximal=0.4), downlink=real)
    followed(method, hand.Averaging({**BY_HAND, "proximal": 0.4}, hand.exact, simulated))


# --- weights by distance -------------------------------------------------------------------------------------------

RULES = {
    "exp": Weighting(beta=1.5),
    "far": Weighting(beta=-1.0, kappa=0.3),
    "inverse": Weighting(beta=2.0, rule="inverse", eps=0.05),
    "attention": Weighting(rule="attention"),
    "uniform": Weighting(beta=1.5, prior="uniform"),
}
# one sample each, given several times: the order is of no matter, and who has more makes more steps
COUNTS = {"a": 3, "b": 6, "c": 11}
ALIKE = tuple(
    Client(
        p.id,
        7,
        Samples(
            p.train.x[:1].expand(COUNTS[p.id], 1, 2, 2).contiguous(), p.train.y[:1].expand(COUNTS[p.id]).contiguous()
        ),
        p.valid,
    )
    for p in PEOPLE
)


@pytest.mark.parametrize("reference", ["mean", "global", "global_step"])
@pytest.mark.parametrize("rule", RULES)
def test_weights_by_distance(rule, reference):
    how = replace(RULES[rule], reference=reference)
    real, simulated = down("top6", True)
    sgd = replace(STEPS, steps=0, epochs=2, batch=3)  # two epochs of 1, 2 and 4 steps
    method = Averaging(sgd, uplink=chain("top2", ["ef14"]), ramp=2, downlink=real, weighting=how, rate=0.9)
    data = {p.id: (p.train.x.reshape(-1, INPUTS).numpy(), p.train.y.numpy()) for p in ALIKE}

    def local(start, id):
        x, y = data[id]
        sizes = [min(3, len(y) - begin) for begin in range(0, len(y), 3)] * 2
        w, losses = descended(start, x, y, len(sizes), 0.3, 0.5, 0.02)
        return w, np.average(losses, weights=sizes), len(sizes)

    other = hand.Averaging(
        BY_HAND, hand.topk(2), simulated, "ef14", reset=20, rate=0.9, weighting=how, ramp=2, data=data, local=local
    )
    followed(method, other, lost=LOST, people=ALIKE)


# --- selective updating --------------------------------------------------------------------------------------------

PQSU = FlPqsu(STEPS, pretrain=0, keep=All())
GATES = {
    "best": Loss("best", "last", initial=0.6, every=3),
    "previous": Loss("previous", "mean", initial=0.8, slack=0.01, every=0),
    "smoothed": Loss("smoothed", "valid", initial=1.2, memory=0.8, every=3),
    "lazy": Lazy(depth=2, xi=0.4, every=3),
    "agreement": Agreement(0.7, every=3),
}


SCATTERED = ((1, "a"), (2, "b"), (3, "c"), (5, "a"))
WAYS = [
    ("affine", ["ef14"], "affine", {"weigh": "examples"}),
    ("top6", [], "top2", {"skippers": "cache"}),
    ("affine", ["ef14"], "whole", {"skippers": "drop"}),
    ("affine", [], "affine", {"changes": False}),
    ("affine", [], "affine", {"changes": False, "skippers": "drop", "after_skip": "own", "weigh": "examples"}),
]


def refused(gate, settings):
    """Lazy compares with what both ends kept, agreement with changes of the global model."""
    return (
        gate == "lazy" and not {"changes", "skippers"}.isdisjoint(settings) and settings != {"skippers": "cache"}
    ) or (gate == "agreement" and "after_skip" in settings)


@pytest.mark.slow
@pytest.mark.parametrize(("gate", "way"), [(gate, way) for gate in GATES for way in WAYS if not refused(gate, way[3])])
def test_selective_updating(gate, way):
    up, feedback, way, settings = way
    real, simulated = down(way, way == "top2")
    method = replace(PQSU, uplink=chain(up, feedback), downlink=real, gate=GATES[gate], **settings)
    other = hand.Selective(method, CODES[up][1], simulated, *feedback)
    played, skips = Played(method, people=SINGLES, model=SINGLE, rounds=7, lost=SCATTERED), 0
    for t in range(7):
        state = played.states[t + 1]
        fresh, skipped, loss = other.step(t, list(played.sent(t, Asked)), [id for at, id in SCATTERED if at == t])
        close(state.model.weights, other.w, 2e-5)
        assert (state.tally.uploads, state.tally.skipped) == (len(fresh), len(skipped))
        if loss is not None:
            assert state.tally.loss == pytest.approx(loss, rel=1e-5)
        skips += len(skipped)
    assert skips


def test_a_round_that_changed_nothing_leaves_the_direction_of_the_one_before():
    """CMFL: nobody uploaded, so the model came again; a change is still held against the last direction there was.

    What does not move agrees with what did not.
    """
    rule, memory = Rule(parse([]), True, False, Agreement(0.9), 0.0, 0), {}
    first, second, there, back = (
        {"w": torch.tensor(v)} for v in ([0.0, 0, 0, 0], [1.0, -1, 2, 0], [2.0, -2, 3, 0], [0.0, 0, 1, 0])
    )
    found = []
    for start, end in ((first, back), (second, back), (second, there), (second, back)):
        packed, memory = selected(rule, start, end, 1.0, memory, PEOPLE[0])
        found.append(packed is not None)
    assert found == [True, False, True, False]


def test_a_model_of_ones_own_is_kept_from_a_skip_to_the_next_upload():
    rule, memory = Rule(parse([]), False, True, Loss("best", initial=2.0, every=0), 0.0, 0), {}
    start, end = ({"w": torch.tensor([value])} for value in (0.0, 1.0))
    kept = []
    for loss in (3.0, 1.0, 1.5):
        packed, memory = selected(rule, start, end, loss, memory, PEOPLE[0])
        assert (packed is None) == (loss != 1.0)
        kept.append(OWN in memory)
    assert kept == [True, False, True]
