"""Whole rounds of wireless pruning by value: three unequal devices against a simulation in numpy (specs/wireless §1.3)."""

from dataclasses import replace

import numpy as np
import pytest

from fedbonsai.devices.channel import Cell
from fedbonsai.methods.wireless_pruning.client import Train, TrainWithFeedback
from fedbonsai.methods.wireless_pruning.load import Cycles
from fedbonsai.methods.wireless_pruning.method import WirelessPruning
from fedbonsai.methods.wireless_pruning.plan import Fixed
from fedbonsai.stages.personal import PERSONAL
from fedbonsai.stages.pruning.derived_masks import Rule
from fedbonsai.stages.updates import FEEDBACK
from fedbonsai.training.optimizers import SGD
from tests.methods.hand import DATA, WHOLE, Played, close
from tests.methods.wireless_pruning.by_hand import Load, Simulation, optimum, shortest

IDS = tuple(DATA)
SGD_ = SGD(lr=0.2, momentum=0.5, weight_decay=0.02, batch=WHOLE, steps=3)
BASE = WirelessPruning(
    optimizer=SGD_,
    personal_steps=2,
    personal_lr=0.35,
    mask=Rule(explore=0.0),
    channel="true",
    bonus=0.0,
    deadline=0.4,
    ratio_max=0.88,
)
WIDE, VAST = Cell(shadowing=12.0), Cell(shadowing=25.0)
# settings, seed of the run, and what becomes of devices a, b, c in each round: p pruned, w whole, c upload cut short,
# m trained but missed, o left out, - not asked
SCENES = {
    "published": (BASE, 4, "ppp ppp ppo"),
    "explored": (replace(BASE, deadline=0.25, mask=Rule(explore=0.2), order="sim", downlink="none"), 8, "opp opp owp"),
    "uniform": (replace(BASE, weights="uniform", personal_steps=0, personal_lr=0.0, cell=WIDE), 27, "ppp wpp ppp"),
    "believed": (replace(BASE, channel="quantile", cell=WIDE), 18, "ppm ppp pcp"),
    "mean": (replace(BASE, channel="mean", deadline=0.5, cell=Cell(shadowing=14.0)), 18, "mmm ppm cmc"),
    "last": (replace(BASE, channel="last", deadline=0.35, mask=Rule(explore=0.1), judge=2), 13, "opp oco ppp"),
    "left-out": (replace(BASE, cell=Cell(shadowing=18.0), ratio_max=0.5, bonus=2.0), 11, "opo poo owo"),
    "extended": (replace(BASE, cell=VAST, ratio_max=0.2, deadline=0.6, remedy="extend"), 16, "wwp pwp pwp"),
    "all-shared": (replace(BASE, personal=(), personal_steps=0, personal_lr=0.0, deadline=0.3), 13, "opp opp opp"),
    "fixed": (replace(BASE, allocation=Fixed(0.4), channel="mean", mask=Rule(explore=0.1)), 7, "ppp ppp ppp"),
    "codes": (replace(BASE, bits=5, channel="mean"), 17, "pco cco ppo"),
    "feedback": (replace(BASE, bits=4, feedback=True, channel="mean", deadline=0.35), 1, "cco mpo cpo"),
    "dense-kernels": (replace(BASE, compute=Cycles(prunes=False), deadline=0.7, cohort=2), 4, "pw- -po p-o"),
}


def told(method, played, t):
    requests = played.sent(t, TrainWithFeedback if method.feedback else Train)
    return {id: (request.train if method.feedback else request).grant for id, request in requests.items()}


def followed(method, seed, rounds=3, lost=(), forgets=()):
    """The run beside its simulation; the run, and what became of whom.

    ``lost`` are (round, id) of uploads that get lost, ``forgets`` of devices that have lost all they held by then.
    """
    forged = {
        t: lambda held, id=id: {other: kept for other, kept in held[-1].items() if other != id} for t, id in forgets
    }
    played = Played(method, rounds=rounds, seed=seed, lost=lost, forged=forged)
    simulated, course = Simulation(method, seed), list[str]()
    exact = 1e-6 if method.bits < 32 else 1e-9
    for t in range(rounds):
        grants, state = told(method, played, t), played.states[t + 1]
        for id in (id for at, id in forgets if at == t):
            simulated.v[id], simulated.debt[id] = dict(simulated.first), {}
        figures, plan, explore = simulated.step(t, list(grants), [id for at, id in (*lost, *forgets) if at == t])
        for id, (trains, ratio, sends, sent, band) in plan.items():
            grant = grants[id]
            assert grant.trains == trains, (t, id)
            assert grant.mask.ratio == pytest.approx(ratio, rel=1e-6, abs=1e-9), (t, id)
            assert grant.mask.explore == explore
            assert grant.uploads == (trains and sends), (t, id)
            assert grant.sends == pytest.approx(sent if sends else 1.0, rel=1e-6, abs=1e-9), (t, id)
            assert grant.bandwidth == pytest.approx(band, rel=1e-5), (t, id)
        course.append("".join(fate(*plan[id]) if id in plan else "-" for id in IDS))
        close({name: state.model.weights[name] for name in simulated.shared}, simulated.u, exact)
        for id in IDS:
            kept = played.memories[t + 1][id].memory if id in played.memories[t + 1] else {}
            close(kept.get(PERSONAL, {}), simulated.v[id] if kept else {}, exact)
            if FEEDBACK in kept:
                close(kept[FEEDBACK]["residual"], simulated.debt[id], exact)
        assert state.seconds == pytest.approx(simulated.seconds, rel=1e-9)
        assert dict(state.last) == simulated.last
        assert set(state.held) == (set() if not simulated.first else set(played.memories[t + 1]))
        assert state.figures.keys() == figures.keys()
        for name, value in figures.items():
            assert state.figures[name] == pytest.approx(value, rel=1e-6, abs=1e-9), (t, name)
    return played, " ".join(course)


def fate(trains, ratio, sends, sent, band):
    if not (trains and sends):
        return "m" if trains else "o"
    return "c" if sent > ratio + 1e-9 else "p" if ratio > 0 else "w"


@pytest.mark.parametrize("scene", SCENES)
def test_rounds_are_those_of_the_specification(scene):
    method, seed, course = SCENES[scene]
    assert followed(method, seed)[1] == course


@pytest.mark.parametrize("scene", ["published", "feedback"])
def test_an_upload_that_is_lost_counts_for_nobody_and_leaves_its_device_as_it_was(scene):
    """What it trained and owed is as before the round; it is no older for the plan than it is."""
    method, seed, _ = SCENES[scene]
    followed(method, seed, rounds=4, lost=((0, "b"), (1, "a"), (2, "b")))


@pytest.mark.parametrize("scene", ["published", "feedback"])
def test_who_lost_its_part_is_silent_once_and_begins_again(scene):
    method, seed, _ = SCENES[scene]
    played, _ = followed(method, seed, rounds=5, forgets=((2, "b"), (3, "a")))
    kind = TrainWithFeedback if method.feedback else Train
    first = [
        {id for id, request in played.sent(t, kind).items() if getattr(request, "train", request).first is not None}
        for t in range(5)
    ]
    assert first == [set(IDS), set(), set(), {"b"}, {"a"}]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("b", [0.0, 1.0])
def test_no_grid_of_bands_beats_the_optimum_of_the_simulation(seed, b):
    """The judge is judged: whatever three bands, the least ratios that are in time on them weigh no less."""
    draw = np.random.default_rng(seed)
    loads = [Load(draw.uniform(0, 0.1), b * draw.uniform(0.1, 1), 20, 300, 10 ** draw.uniform(2, 4)) for _ in range(3)]
    alpha, total, least = draw.dirichlet([2, 2, 2]), 400.0, 0.1
    low, high = (shortest(loads, np.full(3, x), total)[0] for x in (least, 1.0))
    limit = low + draw.uniform(0.2, 0.8) * (high - low)
    kept, bands = optimum(loads, alpha, limit, total, least)
    assert bands.sum() <= total * (1 + 1e-9)
    assert all(load.seconds(x, band) <= limit * (1 + 1e-9) for load, x, band in zip(loads, kept, bands, strict=True))
    grid = np.arange(1, 400) / 400 * total
    found = np.array([np.minimum([load.kept(band, limit) for band in grid], 1.0) for load in loads])
    first, second = np.meshgrid(np.arange(399), np.arange(399))
    third = 397 - first - second  # the three bands of a place are the whole
    fine = third >= 0
    share = np.array([found[0][first[fine]], found[1][second[fine]], found[2][third[fine]]])
    best = (alpha @ share)[(share >= least).all(0)].max()
    assert best <= alpha @ kept + 1e-12
    assert best >= alpha @ kept - 0.01
