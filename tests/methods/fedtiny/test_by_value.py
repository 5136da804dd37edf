"""FedTiny by value: selection and whole rounds against a simulation, written from specs/fedtiny §1 to §3."""

from math import ceil, cos, floor, log2, pi

import numpy as np
import pytest
import torch
from torch import nn

from fedbonsai.arch import Arch, network
from fedbonsai.methods.fedtiny.growth import Growth
from fedbonsai.methods.fedtiny.method import FedTiny
from fedbonsai.methods.fedtiny.pool import Selection
from fedbonsai.methods.fedtiny.pool import pool as pool_of
from fedbonsai.model import Model
from fedbonsai.stages.codec import parse
from fedbonsai.stages.pruning.gates import Loss
from fedbonsai.training.optimizers import SGD
from fedbonsai.tree import seed_of
from fedbonsai.zoo.parts import chain, cut
from tests.methods import by_hand as hand
from tests.methods.rounds import run

LAYERS = ("stem.fc", "stem.norm", "relu", "features.fc1", "features.norm1", "relu", "classifier")
PRUNED = ("stem.fc.weight", "features.fc1.weight")
PEOPLE = hand.people(valid=(7, 0, 5))


@network("test-normalised")
def normalised():
    stem = chain(flatten=nn.Flatten(), fc=nn.Linear(4, 6, bias=False), norm=nn.BatchNorm1d(6), relu=nn.ReLU())
    features = chain(fc1=nn.Linear(6, 5, bias=False), norm1=nn.BatchNorm1d(5), relu1=nn.ReLU())
    return cut(stem, features, nn.Linear(5, 3))


def start():
    """Drawn weights, with gains, biases and statistics that are not those of a new network."""
    random, model = torch.Generator().manual_seed(2), Model.init(Arch("test-normalised"), 5)
    moved = {n: v + 0.3 * torch.rand(v.shape, generator=random) for n, v in model.weights.items()}
    return model.replace(moved | {name: model.weights[name] for name in PRUNED})


START = start()


def budget(how):
    """specs/fedtiny §2.6: of 94 parameters 54 may be pruned; the others count."""
    return floor(how.density * 94) - (94 - 54)


def moments_of(w, me, how):
    """specs/fedtiny §1.2, pass A: running means and variances of one candidate on one device."""
    (x, y), parts = hand.samples(me.valid if len(me.valid) else me.train), []
    moving = {n: v for n, v in w.items() if "running" in n}
    for begin, end in hand.cuts(len(y), how.batch):
        found = hand.forward(w, LAYERS, x[begin:end], True)[2]
        now = {
            f"{k}.running_{part}": v for k, pair in found.items() for part, v in zip(("mean", "var"), pair, strict=True)
        }
        moving = {n: (1 - how.momentum) * v + how.momentum * now[n] for n, v in moving.items()}
        parts.append((end - begin, now))
    return len(y), moving if how.statistics == "ema" else merged(parts, how.merge)


def merged(parts, how):
    """specs/fedtiny (2), (3) or (3')."""
    shares, trees = [n for n, _ in parts], [tree for _, tree in parts]
    if how == "averaged":
        return hand.mean(trees, shares)
    square = {n: lambda tree, n=n: tree[n.replace("var", "mean")] ** 2 * n.endswith("var") for n in trees[0]}
    found = hand.mean([{n: v + square[n](tree) for n, v in tree.items()} for tree in trees], shares)
    return {n: v - square[n](found) for n, v in found.items()}


def top(score, count, among):
    """Places of the largest scores; what is chosen must not hang on rounding."""
    flat = sorted((-s, k) for k, (s, fine) in enumerate(zip(score.ravel(), among.ravel(), strict=True)) if fine)
    if 0 < count < len(flat):
        assert flat[count][0] - flat[count - 1][0] > 1e-6, "a tie: take other inputs"
    return [k for _, k in flat[:count]]


def kept(score, count):
    mask = np.zeros(score.size, bool)
    mask[top(score, count, np.ones(score.size, bool))] = True
    return mask.reshape(score.shape)


def selected(how):
    """specs/fedtiny §1.2 to §1.4: place, weights and masks of the chosen candidate, and bytes."""
    w, pick = hand.arrays(START.weights), how.selection
    forms = {name: START.weights[name] for name in PRUNED}
    pool = pool_of(  # random: an input
        forms, budget(how), pick.size(how.density), pick.noise, seed_of(0, "pool", -1, 0), pick.base
    )
    assert all(sum(counts.values()) == budget(how) for counts in pool)
    masks = [{name: kept(np.abs(w[name]), counts[name]) for name in PRUNED} for counts in pool]
    made, losses = [], []
    for mask in masks:
        pruned = hand.under(w, mask)
        if pick.by == "adaptive":
            pruned |= merged([moments_of(pruned, me, pick) for me in PEOPLE], pick.merge)
        made.append(pruned)
        found = [(me.valid if len(me.valid) else me.train) for me in PEOPLE]
        shares = [len(part) if pick.weighted else 1 for part in found]
        losses.append(np.average([hand.loss_of(pruned, LAYERS, part) for part in found], weights=shares))
    place = 0 if pick.by == "none" else int(np.argmin(losses))
    norms = 8 * 11 * len(pool) * (pick.by == "adaptive")
    down, up = sum(storage(w, mask) for mask in masks) + norms, norms + 4 * len(pool)
    spent = (0, 0) if pick.by == "none" else (3 * down, 3 * up)
    return place, made[place], masks[place], {"selection_down": spent[0], "selection_up": spent[1]}, losses


def storage(w, masks):
    """specs/fedtiny §3: bytes with each tensor in its cheapest form."""
    bits = 32 * sum(value.size for name, value in w.items() if name not in masks)
    for mask in masks.values():
        n, m, rows = mask.size, int(mask.sum()), mask.shape[0]
        csr = m * (32 + ceil(log2(n // rows))) + rows * ceil(log2(m))
        bits += min(32 * n, n + 32 * m, m * (32 + ceil(log2(n))), csr)
    return ceil(bits / 8)


def wanted(how, r, masks):
    """specs/fedtiny §2.1 to §2.3: how many weights each layer of the unit trades in round r, from 1."""
    grow = how.growth
    if r % grow.interval or r > grow.stop:
        return {}
    groups = {"entire": [PRUNED], "layer": [PRUNED[:1], PRUNED[1:]], "block": [PRUNED[:1], PRUNED[1:]]}[grow.units]
    turn = (r // grow.interval - 1) % len(groups)
    whole = {"floor": floor, "ceil": ceil}[grow.rounding]
    found = {}
    for name in groups[turn] if grow.direction == "forward" else groups[-1 - turn]:
        active = masks[name].sum()
        count = whole(grow.share / 2 * (1 + cos(pi * r / grow.stop)) * active)
        found[name] = min(count, masks[name].size - active)
    return {name: count for name, count in found.items() if count}


def coded(value, mask, how):
    """Codes of the kept values of a tensor."""
    mask, found = np.ones(value.shape, bool) if mask is None else mask, np.zeros(value.shape)
    found[mask] = hand.coded(value[mask], how.uplink.parts["values"].bits)
    return found


def simulated(how, rounds, lost=()):
    """Weights, masks and metrics after begin and every round."""
    place, w, masks, spent, _ = selected(how)
    gates, owed, loss = {me.id: hand.Gate() for me in PEOPLE}, {}, np.nan
    yield w, masks, spent | {"candidate": place, "kept": budget(how), "density": budget(how) / 54}
    for t in range(rounds):
        counts, parts, sizes, losses, sent = wanted(how, t + 1, masks), [], [], [], []
        for me in PEOPLE:
            if (t, me.id) in lost:
                continue
            seen = hand.batches(
                me.train, how.optimizer.batch, hand.seed(me.id, t), how.optimizer.epochs, how.optimizer.steps
            )
            new, each_loss, lengths, _ = hand.trained(w, LAYERS, seen, how.optimizer.lr, how.optimizer.momentum, masks)
            if isinstance(how.gate, Loss):
                owed[me.id] = hand.under(owed.get(me.id, {}), masks)  # what is owed to a weight goes with it
                goal = {n: value - w[n] + owed[me.id].get(n, 0) for n, value in new.items()}
                change = {
                    n: coded(value, masks.get(n), how) if "running" not in n else value for n, value in goal.items()
                }
                if not gates[me.id](how.gate, each_loss[-1]):
                    continue
                owed[me.id] = {n: value - change[n] for n, value in goal.items() if "running" not in n}
            once = next(hand.batches(me.train, how.growth.batch, seed_of(hand.seed(me.id, t), "growth", 0, 0)))
            slope = hand.slopes(new, LAYERS, *once)[1]
            sent.append({n: (top(np.abs(slope[n]), k, ~masks[n]), slope[n].ravel()) for n, k in counts.items()})
            parts.append({n: w[n] + change[n] for n in w} if isinstance(how.gate, Loss) else new)
            sizes.append(len(me.train))
            losses.append(np.average(each_loss, weights=lengths))
        bits = sum(k * (32 + ceil(log2(masks[n].size))) for n, k in counts.items())
        loss = np.average(losses, weights=sizes) if parts else loss
        figures = {
            "train_loss": loss,
            "paper_down": 3 * storage(w, masks),
            "paper_up": len(parts) * (storage(w, masks) + ceil(bits / 8)),
        }
        w, masks, traded = hand.mean(parts, sizes) if parts else w, dict(masks), 0
        for name, count in counts.items() if parts else ():
            g = np.zeros(masks[name].size)
            for size, each in zip(sizes, sent, strict=True):
                g[each[name][0]] += size / sum(sizes) * each[name][1][each[name][0]]
            heard = np.isin(np.arange(g.size), [p for each in sent for p in each[name][0]])
            grown = top(np.abs(g), count, heard)
            gone = top(-np.abs(w[name]), len(grown), masks[name])
            flat, mask = w[name].ravel().copy(), masks[name].ravel().copy()
            flat[[*grown, *gone]], mask[grown], mask[gone] = 0, True, False
            w[name], masks[name] = flat.reshape(w[name].shape), mask.reshape(w[name].shape)
            traded += len(grown)
        yield w, masks, spent | figures | {"traded": traded, "candidate": place, "kept": budget(how)}


def agree(how, rounds, lost=()):
    """Run both; the weights traded in each round."""
    states, _ = run(how, PEOPLE, rounds, START, change=lambda a, t: None if (t, a.device.id) in lost else a)
    for t, (state, (w, masks, figures)) in enumerate(zip(states, simulated(how, rounds, lost), strict=True), -1):
        hand.close(state.held.masks, masks, f"masks, round {t}:", 0, 0)
        hand.close(state.model.weights, w, f"weights, round {t}:")
        hand.figures(how.metrics(state), figures, f"round {t}:")
    return [(state.traded, state.skips) for state in states[1:]]


def method(selection=None, growth=None, **more):
    pick = {"pool": 6, "noise": 0.7, "batch": 6} | (selection or {})
    grow = {"interval": 1, "stop": 5, "share": 0.5, "batch": 6} | (growth or {})
    sgd = SGD(lr=0.3, batch=8, epochs=2)
    return FedTiny(
        **({"optimizer": sgd, "density": 0.7, "selection": Selection(**pick), "growth": Growth(**grow)} | more)
    )


def test_the_candidate_of_least_loss_under_merged_statistics_is_trained():
    chosen = [
        selected(method(how))[0] for how in ({}, {"weighted": False}, {"merge": "averaged"}, {"statistics": "ema"})
    ]
    assert chosen[0] not in chosen[1:]  # so that one that were ignored would be seen
    assert all(traded for traded, _ in agree(method(), 4)[:3])


@pytest.mark.parametrize(
    ("selection", "growth"),
    [
        ({"weighted": False, "nested": False}, {"units": "entire", "batch": 64}),
        ({"merge": "averaged"}, {"units": "layer", "share": 0.9}),
        ({"statistics": "ema", "momentum": 0.3}, {"direction": "forward", "rounding": "ceil"}),
        ({"by": "vanilla"}, {"interval": 2, "stop": 6}),
        ({"by": "none"}, {"stop": 2}),
    ],
)
def test_each_way_to_select_and_to_grow(selection, growth):
    traded = [traded for traded, _ in agree(method(selection, growth), 4)]
    assert any(traded)
    assert traded[2:] == [0, 0] or growth.get("stop") != 2


def test_no_more_is_traded_than_is_pruned():
    assert agree(method(growth={"units": "entire", "share": 1.0}, density=0.9), 1) == [
        (54 - budget(method(density=0.9)), 0)
    ]


def test_a_device_that_is_not_heard_has_no_part_in_weights_or_gradients():
    sgd = SGD(lr=0.2, batch=8, steps=4, momentum=0.5)
    found = agree(method(growth={"units": "entire", "share": 0.3}, optimizer=sgd), 3, {(0, "a"), (2, "b")})
    assert all(traded for traded, _ in found)


def test_a_device_that_skips_owes_what_it_owed_and_has_no_part_in_the_round():
    gate, growth = Loss(rule="best", statistic="last", every=4), {"units": "entire", "share": 0.3, "stop": 8}
    found = agree(method(growth=growth, uplink=parse(["ef14", {"affine": 4}]), gate=gate), 5)
    skips = [skips for _, skips in found]
    assert skips.count(3) == 1  # a round of nobody leaves model and masks
    assert {1, 2} & {*skips}  # and some devices skip where others do not
    assert [traded > 0 for traded, _ in found] == [skips < 3 for _, skips in found]
