"""Whole rounds of networks that are cut, by value: three or more unequal clients, every method, coded both ways.

Against `by_hand`, which is written from specs/collaborative §1.2, §2 and §4 and the card.
"""

import math

import pytest
import torch

from fedbonsai.arch import Arch
from fedbonsai.core import Device
from fedbonsai.methods.split import clusters
from fedbonsai.methods.split.method import Clusters, LocalLoss, Split
from fedbonsai.model import Model
from fedbonsai.stages.codec import parse
from fedbonsai.stages.weighting import Weighting
from fedbonsai.training.optimizers import SGD
from tests.methods.rounds import run
from tests.methods.torch_by_hand import (
    Descent,
    Uplink,
    affine_rows,
    behind,
    close,
    cross_entropy,
    folk,
    length,
    linear,
    mean_of,
    minus,
    part,
    plus,
    shares_of,
    slopes,
    sparse_rows,
    stem,
    trained,
)

DRAWN = Model.init(Arch("mlp", {"channels": 1, "size": 2, "classes": 3, "widths": (5, 4)}), 1)
MODEL = DRAWN.replace({name: value.double() for name, value in DRAWN.weights.items()})
LR, MOMENTUM, DECAY = 0.3, 0.5, 0.01
STEPS = SGD(lr=LR, momentum=MOMENTUM, weight_decay=DECAY, batch=100, epochs=2)  # two steps on all samples
HOW = (LR, MOMENTUM, DECAY)
BETA, RATE, RAMP = 1.5, 0.6, 1
LEAST = 6  # smaller tensors, here the biases, are never compressed
UP = parse(["ef14", {"topk": {"fraction": 0.3, "min_numel": LEAST}}, {"signmag": 8}])
ROWS = parse([{"topk": {"fraction": 0.4, "scope": "row", "min_numel": 0}}, {"signmag": 8}])
EIGHT = parse([{"affine": {"bits": 8, "scope": "channel"}}])
SENT = {"uplink": UP, "ramp": RAMP, "weighting": Weighting(beta=BETA), "rate": RATE}


def share(t):
    return 1.0 if t < RAMP else 0.3


def step(weights, changes, counts, rate=RATE):
    """W + eta sum alpha D, the shares and the distances."""
    alpha, d = shares_of(changes, counts, BETA)
    return plus(weights, mean_of(changes, alpha), rate), alpha, d


def figures_are(state, alpha, d, loss):
    assert state.figures["share_min"] == pytest.approx(min(alpha), abs=1e-9)
    assert state.figures["share_max"] == pytest.approx(max(alpha), abs=1e-9)
    assert state.figures["distance_mean"] == pytest.approx(sum(d) / len(d), abs=1e-9)
    assert state.figures["train_loss"] == pytest.approx(loss, abs=1e-6)
    assert max(alpha) - min(alpha) > 0.02  # else nothing is tested


def asked(fleet, t):
    """Ids in the order in which they were asked in a round, ask after ask."""
    return [id for at, id, _ in fleet.sent if at == t]


def front_and_back(weights):
    return {n: v for n, v in weights.items() if n.startswith("stem.")}, {
        n: v for n, v in weights.items() if not n.startswith("stem.")
    }


@pytest.mark.parametrize("version", [1, 2])
def test_split(version):
    """T1 and T1': coded activations up, coded cut gradients down; a back for each client, or one that all share."""
    people = folk((4, 7, 11))
    method = Split(STEPS, version=version, gradients=ROWS, activations=EIGHT, **SENT)
    states, fleet = run(method, people, rounds=3, model=MODEL)
    w, up, orders = dict(MODEL.weights), Uplink(0.3, LEAST), set()
    for t in range(3):
        start, behind_ = front_and_back(w)
        fronts, asks = {p.id: dict(start) for p in people}, asked(fleet, t)
        assert len(asks) == 9  # a front and two gradients each
        at_front, backs, at_back = {p.id: Descent(*HOW) for p in people}, {}, {}
        losses = []
        for number in range(2):
            order = asks[3 * number : 3 * number + 3]
            orders.add(tuple(order))
            for id in order:
                me, key = people[int(id)].train, id if version == 1 else ""
                back = backs.get(key, behind_)
                sent = affine_rows(stem(fronts[id], me.x))
                grads, (cut,), loss = slopes(lambda b, h, me=me: cross_entropy(behind(b, h), me.y), back, sent)
                backs[key] = at_back.setdefault(key, Descent(*HOW)).step(back, grads)
                pull = sparse_rows(cut, 0.4)
                grads, _, _ = slopes(lambda f, me=me, pull=pull: (stem(f, me.x) * pull).sum(), fronts[id])
                fronts[id] = at_front[id].step(fronts[id], grads)
                losses.append((loss, len(me.y)))
        changes = [up.send(p.id, minus(fronts[p.id], start), t, share(t)) for p in people]
        new, alpha, d = step(start, changes, [len(p.train) for p in people])
        if version == 1:
            learned = plus(behind_, minus(mean_of([backs[p.id] for p in people], alpha), behind_), RATE)
        else:
            learned = backs[""]
        w = {**new, **learned}
        close(states[t + 1].model.weights, w)
        figures_are(states[t + 1], alpha, d, sum(a * n for a, n in losses) / sum(n for _, n in losses))
    assert (len(orders) > 1) == (version == 2)


def test_local_loss():
    """T2: front and head learn by themselves, the back from activations that go up in every second round."""
    people = folk((4, 7, 11))
    states, _ = run(LocalLoss(STEPS, every=2, activations=EIGHT, **SENT), people, rounds=3, model=MODEL)
    w, heads, up = dict(MODEL.weights), dict(states[0].heads), Uplink(0.3, LEAST)
    (head,) = {name.rpartition(".")[0] for name in heads}
    for t in range(3):
        front, back = front_and_back(w)
        start, fronts, losses = {**front, **heads}, {}, []
        changes = []
        for p in people:
            x, y = p.train.x, p.train.y
            end, loss = trained(start, lambda v, x=x, y=y: cross_entropy(linear(v, head, stem(v, x)), y), 2, HOW)
            fronts[p.id] = end
            changes.append(up.send(p.id, minus(end, start), t, share(t)))
            losses.append(loss)
        if t % 2 == 0:
            sgd = Descent(*HOW)
            for p in people:
                seen = affine_rows(stem(fronts[p.id], p.train.x))
                for _ in range(2):
                    grads, _, _ = slopes(lambda b, h=seen, y=p.train.y: cross_entropy(behind(b, h), y), back)
                    back = sgd.step(back, grads)
        new, alpha, d = step(start, changes, [len(p.train) for p in people])
        heads = {name: new[name] for name in heads}
        w = {**{name: new[name] for name in front}, **back}
        close(states[t + 1].model.weights, w)
        close(states[t + 1].heads, heads)
        figures_are(states[t + 1], alpha, d, sum(a * b for a, b in zip(alpha, losses, strict=True)))


def objective(scores, y, weight):
    """L of specs/collaborative §1.2: the sum of the cross-entropies and lambda times the Jensen-Shannon divergence."""
    p = [s.softmax(1) for s in scores]
    entropy = lambda q: -(q * q.log()).sum(1)  # noqa: E731
    middle = sum(p) / len(p)
    divergence = entropy(middle) - sum(entropy(q) for q in p) / len(p)
    return sum(cross_entropy(s, y) for s in scores) + weight * divergence.mean()


def turn(fronts, backs, at_back, own, x, y, weight):
    """One owner's two steps on the cluster's ensemble; returns fronts, backs and the losses."""
    at_front, losses = [Descent(*HOW) for _ in fronts], []  # only weights are handed over (card, deviation 3)
    for _ in range(2):
        exact = [stem(f, x) for f in fronts]
        seen = [h if j == own else affine_rows(h) for j, h in enumerate(exact)]
        scores = [behind(b, h).detach().requires_grad_() for b, h in zip(backs, seen, strict=True)]
        loss = objective(scores, y, weight)
        pulls = torch.autograd.grad(loss, scores)
        losses.append(float(loss.detach()))
        for j, pull in enumerate(pulls):
            grads, (cut,), _ = slopes(lambda b, h, pull=pull: (behind(b, h) * pull).sum(), backs[j], seen[j])
            backs[j] = at_back[j].step(backs[j], grads)
            cut = cut if j == own else sparse_rows(cut, 0.4)
            grads, _, _ = slopes(lambda f, cut=cut: (stem(f, x) * cut).sum(), fronts[j])
            fronts[j] = at_front[j].step(fronts[j], grads)
    return losses


@pytest.mark.parametrize(
    ("size", "counts"), [(2, (4, 7, 11, 5)), pytest.param(3, (4, 7, 5, 3, 6, 8, 9, 4, 10), marks=pytest.mark.slow)]
)
def test_clusters(size, counts):
    """T3: clusters whose members own the data in turn; each part, front or back, has a residual of its own."""
    people = folk(counts)
    method = Clusters(STEPS, size=size, gradients=ROWS, activations=EIGHT, cotraining=2.0, warmup=4, **SENT)
    states, fleet = run(method, people, rounds=3, model=MODEL)
    w, up = dict(states[0].model.weights), Uplink(0.3, LEAST)
    held = method.groups([Device(p.id) for p in people], people[0].seed, 0)
    for t in range(3):
        weight = 2.0 * (t + 1) / 4
        hows = {m.how.cotraining for at, _, m in fleet.sent if at == t and isinstance(m, clusters.Place)}
        assert hows == {weight}
        changes, owned, total, seen = [], [], 0.0, 0
        for number, group in enumerate(held):
            fronts = [part(w, f"fronts.{j}.") for j in range(size)]
            backs = [part(w, f"backs.{j}.") for j in range(size)]
            at_back = [Descent(*HOW) for _ in backs]  # a back's momentum lasts the round
            for own, device in enumerate(group):
                data = people[int(device.id)].train
                losses = turn(fronts, backs, at_back, own, data.x, data.y, weight)
                total, seen = total + sum(losses) * len(data), seen + len(losses) * len(data)
            ends = {f"fronts.{j}.{n}": v for j, f in enumerate(fronts) for n, v in f.items()}
            ends |= {f"backs.{j}.{n}": v for j, b in enumerate(backs) for n, v in b.items()}
            changes.append(up.send(number, minus(ends, w), t, share(t)))
            owned.append(sum(len(people[int(device.id)].train) for device in group))
        assert len(set(owned)) == len(owned)
        w, alpha, d = step(w, changes, owned)
        close(states[t + 1].model.weights, w)
        figures_are(states[t + 1], alpha, d, total / seen / size)
    for number in range(len(held)):  # both ends of the cut do hold something back, so that losing it would show
        for end in ("fronts.0.", f"backs.{size - 1}."):
            assert length(part(up.residual[number], end)) > 1e-4


def test_clusters_by_their_distance_for_each_step():
    """Reference ``global_step``: a cluster's steps are those of all its owners, in all their epochs."""
    people = folk((4, 7, 11, 5))
    sgd = SGD(lr=LR, batch=4, epochs=1)  # clients of 4, 7, 11 and 5 samples make 1, 2, 3 and 1 steps: 5 joins its last
    none = {"gradients": parse([]), "activations": parse([]), "uplink": parse([]), "ramp": 0}
    method = Clusters(sgd, cotraining=0.0, weighting=Weighting(BETA, "global_step"), **none)
    (before, after), fleet = run(method, people, rounds=1, model=MODEL)
    ends, norms, counts = [], [], []
    for group in method.groups([Device(p.id) for p in people], people[0].seed, 0):
        parts = [value for _, id, value in fleet.heard if id in {d.id for d in group}]
        end = {
            n: v
            for value in parts
            if isinstance(value, clusters.Updates)
            for u in value.parts.values()
            for n, v in u.result.items()
        }
        ends.append(minus({n: end[n] for n in before.model.weights}, before.model.weights))
        norms.append(length(ends[-1]) / sum({"0": 1, "1": 2, "2": 3, "3": 1}[d.id] for d in group))
        counts.append(sum(len(people[int(d.id)].train) for d in group))
    a = [n * math.exp(-BETA * d / (sum(norms) / 2)) for n, d in zip(counts, norms, strict=True)]
    close(after.model.weights, plus(before.model.weights, mean_of(ends, a)))
    assert after.figures["distance_mean"] == pytest.approx(sum(norms) / 2)


def test_clusters_score_by_the_mean_of_their_members():
    people = folk((4, 7))
    (state,), _ = run(Clusters(STEPS, **SENT), people, rounds=0, model=MODEL)
    x, w = people[0].train.x, state.model.weights
    scores = [behind(part(w, f"backs.{j}."), stem(part(w, f"fronts.{j}."), x)) for j in range(2)]
    with torch.no_grad():
        torch.testing.assert_close(state.model.build()(x), (scores[0] + scores[1]) / 2)
    assert math.isfinite(length(w))
