"""PruneFL by value: initial pruning and whole rounds against a simulation, written from specs/prunefl §1.2 to §1.7."""

from itertools import pairwise

import numpy as np
import pytest

from fedbonsai.arch import Arch
from fedbonsai.methods.prunefl.initial_prune import InitialPruneConfig
from fedbonsai.methods.prunefl.method import PruneFL
from fedbonsai.model import Model
from fedbonsai.stages.pruning.time_model import Measured
from fedbonsai.training.optimizers import SGD
from tests.methods import by_hand as hand
from tests.methods.rounds import run

LAYERS = ("stem.fc1", "relu", "classifier")
MLP = Arch("mlp", {"widths": (6,), "size": 2, "classes": 3})
START = Model.init(MLP, 3)
PRUNED = ("stem.fc1.weight", "classifier.weight")
PEOPLE = hand.people()
TIME = Measured(0.02, 0.04, 0.1, {"stem.fc1.weight": 0.004, "classifier.weight": 0.001}, 0.7)
SGD8 = SGD(lr=0.2, batch=8, steps=3)
QUICK = InitialPruneConfig(batches=2, iterations=26, every=5, gate=1.5)


def each(how):
    """Seconds of a round for each weight of a layer."""
    return {name: how.time.communication + how.optimizer.steps * how.time.slopes[name] for name in PRUNED}


def seconds(how, masks):
    fixed = how.time.latency + how.optimizer.steps * how.time.base
    return fixed + sum(t * masks[name].sum() for name, t in each(how).items())


def rebuilt(how, w, masks, z, rest, share):
    """specs/prunefl §1.4: protect the large ones, then take candidates by importance a second while the ratio rises."""
    t, new = each(how), {}
    for name, mask in masks.items():
        sizes = np.sort(np.abs(w[name][mask]))
        new[name] = mask & (np.abs(w[name]) >= sizes[int(np.floor(share * len(sizes)))])
    gain = rest + sum(z[name][new[name]].sum() for name in PRUNED)
    time = how.time.latency + how.optimizer.steps * how.time.base + sum(t[name] * new[name].sum() for name in PRUNED)
    room = int(how.density * sum(mask.size for mask in masks.values())) - sum(mask.sum() for mask in new.values())
    order = [(-z[n][p] / t[n], k, p) for k, n in enumerate(PRUNED) for p in zip(*np.nonzero(~new[n]), strict=True)]
    for ratio, layer, place in sorted(order):
        if -ratio <= gain / time or room <= 0:
            break
        name = PRUNED[layer]
        new[name][place], gain, time, room = True, gain + z[name][place], time + t[name], room - 1
    return new


def turned(how, w, shelf, old, new):
    """Weights under a new mask, and stored values; ``w`` is complete."""
    if how.regrowth == "zero":
        return hand.under(hand.under(w, old), new), {}
    return hand.under(w, new), {name: w[name] * ~new[name] for name in PRUNED}


def whole(w, shelf, masks):
    return {n: np.where(masks[n], v, shelf[n]) if n in shelf else v for n, v in w.items()}


def scouted(how, me):
    """specs/prunefl §1.6: what the first device makes of the dense model."""
    w, masks, shelf = hand.arrays(START.weights), {n: np.ones(START.weights[n].shape, bool) for n in PRUNED}, {}
    part = list(hand.batches(me.train, how.optimizer.batch, hand.seed(me.id, -1)))[: how.scouting.batches]
    x, y = np.concatenate([x for x, _ in part]), np.concatenate([y for _, y in part])
    first, speed, densities, cost = 0, {}, [], 0.0
    z = {name: np.zeros_like(value) for name, value in w.items()}
    for i in range(1, how.scouting.iterations + 1):
        if not first and i % 10 == 1:
            hits = (hand.forward(w, LAYERS, x, False)[0].argmax(1) == y).mean()
            first = i if hits >= how.scouting.gate / 3 else 0
        for batch in part:
            slope = hand.slopes(w, LAYERS, *batch)[1]
            z = {name: z[name] + slope[name] ** 2 for name in z}
            hand.step(w, slope, how.optimizer.lr, how.optimizer.momentum, speed)
            w = hand.under(w, masks)
            cost += how.time.base + sum(how.time.slopes[name] * masks[name].sum() for name in PRUNED)
        if not first or (i - first) % how.scouting.every:
            continue
        rest, old = sum(z[name].sum() for name in z if name not in PRUNED), masks
        if not how.scouting.regrow:
            z = hand.under(z, masks)
        full = whole(w, shelf, masks)
        masks = rebuilt(how, full, masks, z, rest, how.scouting.fraction)
        w, shelf = turned(how, full, shelf, old, masks)
        speed = {name: value * (old[name] & masks[name]) if name in masks else value for name, value in speed.items()}
        z = {name: np.zeros_like(value) for name, value in w.items()}
        densities.append(sum(m.sum() for m in masks.values()) / sum(m.size for m in masks.values()))
        last = [abs(b / a - 1) for a, b in pairwise(densities)][-5:]
        if len(last) == 5 and max(last) <= how.scouting.tolerance:
            break
    return w, masks, shelf, densities, cost


def simulated(how, rounds, lost=()):
    """Weights, masks, stored values and metrics after begin and every round; ``lost`` are answers that do not arrive."""
    w, masks, shelf, densities, cost = scouted(how, PEOPLE[0])
    tau, count = how.time.communication, sum(value.size for value in w.values())
    spent, holders, kept, since = 0.0, {"a"}, {}, 0
    rows = sum(mask.size for mask in masks.values())
    total = cost + tau / 8 * (8 * count + rows / 8 + 4 * rows * (how.regrowth == "stale"))
    begun = {"scout_seconds": cost, "scout_density": densities[-1], "scout_reconfigurations": len(densities)}
    begun["scout_growths"] = sum(b > a for a, b in pairwise([1.0, *densities]))
    dense = how.time.latency + how.optimizer.steps * how.time.dense + tau * rows
    yield w, masks, shelf, begun | {"modelled_seconds": seconds(how, masks), "conventional_seconds": dense}
    for t in range(rounds):
        half = 0.5 ** (t // how.lr_every * how.lr_every / how.lr_half_life) if how.lr_half_life else 1
        asked = t // how.interval > since // how.interval
        z, rest, parts, sizes, losses = {n: np.zeros_like(w[n]) for n in PRUNED}, 0.0, [], [], []
        for me in PEOPLE:
            seen = hand.batches(me.train, how.optimizer.batch, hand.seed(me.id, t), steps=how.optimizer.steps)
            new, each_loss, counts, g = hand.trained(
                w, LAYERS, seen, how.optimizer.lr * half, how.optimizer.momentum, masks
            )
            n = sum(counts)
            mine = {name: n * value**2 for name, value in g.items()}
            if how.importance == "interval":
                before = kept.get(me.id, (since, {}))
                if before[0] == since:
                    mine = {name: value + before[1].get(name, 0) for name, value in mine.items()}
            if (t, me.id) in lost:
                continue
            if how.importance == "interval":
                kept[me.id] = since, mine
            z = {name: z[name] + mine[name] for name in PRUNED}
            rest += sum(value.sum() for name, value in mine.items() if name not in PRUNED)
            parts.append(new)
            sizes.append(n)
            losses.append(np.dot(each_loss, counts) / n)
        n, s = sum(mask.sum() for mask in masks.values()), count - rows
        new_to = [me.id for me in PEOPLE if me.id not in holders]
        reported = asked * (rows - n if plain(how) else rows)
        spent += seconds(how, masks)
        total += seconds(how, masks) + tau / 8 * (8 * s + 4 * reported + bool(new_to) * rows / 8)
        bits = sum(mask.shape[0] * -(-mask.shape[1] // 8) for mask in masks.values())
        figures = {
            "train_loss": np.dot(losses, sizes) / sum(sizes),
            "dropped": 0,
            "paper_seconds": spent,
            "whole_seconds": total,
            "paper_down": 3 * 4 * (n + s) + len(new_to) * bits,
            "paper_up": len(parts) * (4 * (n + s) + asked * 4 * (rows - n)),
        }
        holders = {me.id for me in PEOPLE if (t, me.id) not in lost}
        w = hand.under(hand.mean(parts, sizes), masks)
        if asked:
            full, old = whole(w, shelf, masks), masks
            share = how.fraction * (0.5 ** (t / how.fraction_half_life) if how.fraction_half_life else 1)
            masks = rebuilt(how, full, masks, z, rest, share)
            w, shelf = turned(how, full, shelf, old, masks)
            kept, since = {id: held for id, held in kept.items() if (t, id) in lost}, t
            holders = holders if all((old[n] == masks[n]).all() for n in PRUNED) else set()
        n = sum(mask.sum() for mask in masks.values())
        figures |= {"modelled_seconds": seconds(how, masks), "kept": n, "density": n / rows}
        yield w, masks, shelf, figures


def plain(how):
    return how.importance == "round" and not how.optimizer.momentum


def agree(how, rounds, lost=()):
    """Run both; and the masks of all states, for what a case is there to show."""
    states, _ = run(how, PEOPLE, rounds, START, change=lambda a, t: None if (t, a.device.id) in lost else a)
    wanted = list(simulated(how, rounds, lost))
    for t, (state, (w, masks, shelf, figures)) in enumerate(zip(states, wanted, strict=True), -1):
        hand.close(state.held.masks, masks, f"masks, round {t}:", 0, 0)
        hand.close(state.model.weights, w, f"weights, round {t}:")
        hand.close(state.shelf, shelf, f"shelf, round {t}:")
        hand.figures(how.metrics(state), figures, f"round {t}:")
    return [masks for _, masks, _, _ in wanted]


def method(**more):
    return PruneFL(**({"optimizer": SGD8, "interval": 1, "fraction": 0.4, "scouting": QUICK, "time": TIME} | more))


def moves(masks):
    """How many weights came back and went, state by state."""
    flat = [np.concatenate([mask[name].ravel() for name in PRUNED]) for mask in masks]
    return [(int((b & ~a).sum()), int((a & ~b).sum())) for a, b in pairwise(flat)]


def test_masks_that_move_in_every_round_by_importances_that_the_server_derives():
    found = moves(agree(method(), 4))
    assert found[0] == (0, 0)  # the first reconfiguration is in round `interval`
    assert all(gone for _, gone in found[1:])
    assert sum(back for back, _ in found) >= 5


def test_importances_that_clients_add_up_from_one_reconfiguration_to_the_next():
    lost = {
        (1, "c"),
        (2, "b"),
    }  # a round without c's; b misses the reconfiguration, and what it added up is of no use then
    found = moves(agree(method(importance="interval", interval=2), 6, lost))
    assert [gone > 0 for _, gone in found] == [False, False, True, False, True, False]


def test_momentum_and_weights_that_come_back_from_zero():
    found = moves(agree(method(regrowth="zero", optimizer=SGD(lr=0.2, batch=8, steps=3, momentum=0.5)), 4))
    assert sum(back for back, _ in found) >= 5


def test_schedules_of_the_share_and_of_the_learning_rate():
    found = moves(agree(method(fraction=0.7, fraction_half_life=2, lr_half_life=3, lr_every=2), 5))
    assert sum(back + gone > 0 for back, gone in found[1:]) >= 3


def test_a_bound_on_the_density():
    masks = agree(method(density=0.3), 5)
    assert [sum(mask.sum() for mask in each.values()) for each in masks].count(int(0.3 * 42)) >= 3


@pytest.mark.parametrize(
    "more", [{"fraction": 0.5, "tolerance": 0.3}, {"fraction": 0.5, "batches": 3}, {"regrow": False}, {"gate": 0.0}]
)
def test_initial_pruning(more):
    scouting = InitialPruneConfig(**({"batches": 2, "iterations": 60, "every": 4, "gate": 1.5} | more))
    agree(method(scouting=scouting, interval=2), 1)


@pytest.mark.parametrize("regrowth", ["stale", "zero"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_what_comes_back_in_initial_pruning(regrowth, momentum):
    scouting = InitialPruneConfig(batches=3, iterations=60, every=4, fraction=0.7)
    how = method(regrowth=regrowth, optimizer=SGD(lr=0.2, batch=8, steps=3, momentum=momentum), scouting=scouting)
    assert next(simulated(how, 0))[3]["scout_growths"]
    agree(how, 1)
