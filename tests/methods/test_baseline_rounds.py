"""Whole rounds of the baselines by value, with three unequal clients, against `by_hand`."""

import math
from dataclasses import replace

import pytest
import torch

from fedbonsai.arch import Arch
from fedbonsai.methods.feddst.method import FedDST
from fedbonsai.methods.fedgkt.method import FedGKT
from fedbonsai.methods.lotteryfl.method import LotteryFL, Rule
from fedbonsai.methods.moon.method import Moon
from fedbonsai.methods.online.method import Online
from fedbonsai.methods.scaffold.method import Scaffold
from fedbonsai.methods.small_dense.method import SmallDense
from fedbonsai.methods.static_mask.method import StaticMask
from fedbonsai.model import Model
from fedbonsai.stages.pruning.criteria import Magnitude, Schedule
from fedbonsai.stages.pruning.readjust import Readjustment
from fedbonsai.stages.pruning.time_model import Measured
from fedbonsai.training.optimizers import SGD
from tests.methods.rounds import run
from tests.methods.torch_by_hand import (
    behind,
    close,
    cross_entropy,
    folk,
    length,
    linear,
    mean_of,
    minus,
    net,
    plus,
    slopes,
    stem,
    trained,
)

MODEL = Model.init(Arch("mlp", {"channels": 1, "size": 2, "classes": 3, "widths": (5, 4)}), 1)
PEOPLE = folk((4, 7, 12), dtype=torch.float32, valid=5)
SERVER = replace(PEOPLE[0], seed=4)  # by which cohorts of two are drawn so that all three clients come, and come again
STEPS = SGD(lr=0.3, momentum=0.5, weight_decay=0.01, batch=100, epochs=2)  # two steps on all samples
HOW = (0.3, 0.5, 0.01)
NAMES = ("stem.fc1.weight", "features.fc2.weight", "classifier.weight")
NEAR = 1e-5


def data(id):
    """Samples and labels of a client."""
    return PEOPLE[int(id)].train.x, PEOPLE[int(id)].train.y


def asked(fleet, t):
    return [id for at, id, _ in fleet.sent if at == t]


def plain(id):
    x, y = data(id)
    return lambda w: cross_entropy(net(w, x), y)


def by_examples(trees, ids):
    return mean_of(trees, [len(data(id)[1]) for id in ids])


def loss_is(state, losses, ids):
    counts = [len(data(id)[1]) for id in ids]
    mean = sum(a * n for a, n in zip(losses, counts, strict=True)) / sum(counts)
    assert state.loss == pytest.approx(mean, abs=NEAR)


def only(weights, masks):
    return {n: v * masks[n] if n in masks else v for n, v in weights.items()}


def largest(value, count, among=None):
    """Mask of the ``count`` largest magnitudes, of those in ``among``."""
    flat = value.detach().abs().reshape(-1).tolist()
    allowed = range(len(flat)) if among is None else torch.nonzero(among.reshape(-1)).reshape(-1).tolist()
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[sorted(allowed, key=lambda i: (-flat[i], i))[:count]] = True
    return mask.reshape(value.shape)


def over_keepers(trees, masks, ids, old):
    """Each coordinate over the clients that keep it, by examples; where nobody does, what it was."""
    counts, out = [len(data(id)[1]) for id in ids], {}
    for name, value in old.items():
        keeps = [m[name].float() if name in m else torch.ones_like(value) for m in masks]
        total = sum(k * n for k, n in zip(keeps, counts, strict=True))
        mean = sum(t[name] * k * n for t, k, n in zip(trees, keeps, counts, strict=True)) / total.clamp(min=1e-9)
        out[name] = torch.where(total > 0, mean, value)
    return out


def test_scaffold():
    """Algorithm 1 with option II: means over the clients that were asked, c by their part of all."""
    sgd = SGD(lr=0.3, batch=100, epochs=3)
    states, fleet = run(Scaffold(sgd, rate=0.7, cohort=2), PEOPLE, rounds=4, model=MODEL, server=SERVER)
    w = dict(MODEL.weights)
    zero = {n: torch.zeros_like(v) for n, v in w.items()}
    c, own = zero, {}
    for t in range(4):
        changes, moves, losses, ids = [], [], [], asked(fleet, t)
        assert len(ids) == 2
        for id in ids:
            y, ck, seen = w, own.get(id, zero), []
            for _ in range(3):
                grads, _, loss = slopes(plain(id), y)
                y = {n: v - 0.3 * (grads[n] - ck[n] + c[n]) for n, v in y.items()}
                seen.append(loss)
            new = {n: ck[n] - c[n] + (w[n] - y[n]) / (3 * 0.3) for n in w}
            changes.append(minus(y, w))
            moves.append(minus(new, ck))
            losses.append(sum(seen) / 3)
            own[id] = new
        w = plus(w, mean_of(changes, [1, 1]), 0.7)
        c = plus(c, mean_of(moves, [1, 1]), 2 / 3)
        close(states[t + 1].model.weights, w, NEAR)
        close(states[t + 1].control, c, NEAR)
        loss_is(states[t + 1], losses, ids)
    assert len(own) == 3
    assert length(c) > 0.01


def test_moon():
    """FedAvg with the contrastive term, against the client's own last model, whichever round that was."""
    method = Moon(STEPS, mu=2.0, temperature=0.4, cohort=2)
    states, fleet = run(method, PEOPLE, rounds=4, model=MODEL, server=SERVER)
    w, previous, terms = dict(MODEL.weights), {}, 0

    def seen(v, x):
        return linear(v, "features.fc2", stem(v, x)).clamp(min=0)

    def cosine(a, b):  # features may be all zero behind a ReLU
        norms = (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-8)
        return (a * b).sum(1) / norms

    for t in range(4):
        ids, ends, losses = asked(fleet, t), [], []
        for id in ids:
            x, y = data(id)

            last = previous.get(id)

            def loss(v, x=x, y=y, last=last, now=w):
                plain_ = cross_entropy(net(v, x), y)
                if last is None:
                    return plain_
                z = seen(v, x)
                near, far = (torch.exp(cosine(z, seen(a, x).detach()) / 0.4) for a in (now, last))
                return plain_ + 2.0 * -torch.log(near / (near + far)).mean()

            terms += id in previous
            end, value = trained(w, loss, 2, HOW)
            ends.append(end)
            losses.append(value)
            previous[id] = end
        w = by_examples(ends, ids)
        close(states[t + 1].model.weights, w, NEAR)
        loss_is(states[t + 1], losses, ids)
    assert len(previous) == 3
    assert terms == 5


def test_feddst():
    """An ordinary round, then two in which clients trade by the gradient of one batch, and the server cuts back."""
    method = FedDST(STEPS, density=0.5, readjustment=Readjustment(1, 4, 0.4), after=1, batch=64)
    states, _ = run(method, PEOPLE, rounds=3, model=MODEL)
    masks, ids = dict(states[0].held.masks), ["0", "1", "2"]
    counts = {n: int(m.sum()) for n, m in masks.items()}
    assert sum(counts.values()) == 26
    w = only(MODEL.weights, masks)
    assert all(torch.equal(largest(MODEL.weights[n], counts[n]), masks[n]) for n in NAMES)
    traded = 0
    for t in range(3):
        ends, theirs, losses = [], [], []
        for id in ids:
            if t == 0:
                end, loss = trained(w, plain(id), 2, HOW, masks)
                new = masks
            else:
                share = 0.4 / 2 * (1 + math.cos(math.pi * t / 4))
                end, first = trained(w, plain(id), 1, HOW, masks)
                grads, _, _ = slopes(plain(id), end)
                new, left = {}, {}
                for n in NAMES:
                    swap = min(int(share * counts[n]), masks[n].numel() - counts[n])
                    left[n] = largest(end[n], counts[n] - swap, masks[n])
                    new[n] = left[n] | largest(grads[n], swap, ~left[n])
                end, second = trained(only(end, left), plain(id), 1, HOW, new)
                loss = (first + second) / 2
                traded += sum(int((new[n] ^ masks[n]).sum()) for n in NAMES)
            ends.append(end)
            theirs.append(new)
            losses.append(loss)
        w = over_keepers(ends, theirs, ids, w)
        if t:
            masks = {n: largest(w[n], counts[n]) for n in NAMES}
            w = only(w, masks)
        close(states[t + 1].model.weights, w, NEAR)
        assert all(torch.equal(states[t + 1].held.masks[n], masks[n]) for n in NAMES)
        loss_is(states[t + 1], losses, ids)
    assert traded > 6


def test_lotteryfl():
    """Each client prunes its own ticket where the masked global model is good enough, rewinds, and shares what it keeps."""
    method = LotteryFL(STEPS, rule=Rule(threshold=0.3, target=0.45, rate=0.3))
    states, _ = run(method, PEOPLE, rounds=4, model=MODEL)
    w, ids, decisions = dict(MODEL.weights), ["0", "1", "2"], []
    masks = {id: {n: torch.ones_like(w[n], dtype=torch.bool) for n in NAMES} for id in ids}
    for t in range(4):
        ends, losses, scores = [], [], []
        for id in ids:
            start, valid = only(w, masks[id]), PEOPLE[int(id)].valid
            score = float((net(start, valid.x).argmax(1) == valid.y).float().mean())
            share = sum(int(m.sum()) for m in masks[id].values()) / 52
            decisions.append(score > 0.3 and share > 0.45)
            if decisions[-1]:
                for n in NAMES:
                    have = int(masks[id][n].sum())
                    masks[id][n] = largest(w[n], have - max(1, int(0.3 * have)), masks[id][n])
                start = only(MODEL.weights, masks[id])
            end, loss = trained(start, plain(id), 2, HOW, masks[id])
            ends.append(end)
            losses.append(loss)
            scores.append(score)
        w = over_keepers(ends, [masks[id] for id in ids], ids, w)
        close(states[t + 1].model.weights, w, NEAR)
        for id in ids:
            assert all(torch.equal(states[t + 1].devices[id].masks[n], masks[id][n]) for n in NAMES)
        loss_is(states[t + 1], losses, ids)
        counts = [4, 7, 12]
        assert states[t + 1].accuracy == pytest.approx(sum(a * n for a, n in zip(scores, counts, strict=True)) / 23)
    assert 2 < sum(decisions) < 11


def test_online():
    """The size moves by the sign of the derivative; pruned weights keep their values on the server."""
    time = Measured(communication=0.01, base=0.05, latency=0.2)
    sgd = SGD(lr=0.3, momentum=0.5, weight_decay=0.01, batch=100, steps=2)
    states, fleet = run(
        Online(sgd, warmup=1, samples=3, least=0.2, time=time), PEOPLE, rounds=5, model=MODEL, server=PEOPLE[0]
    )
    w, ids, moved = dict(MODEL.weights), ["0", "1", "2"], set()
    k, probe, low, high = 52, 47, 10, 52  # all; ceil(0.9 n); [round(0.2 n), n]
    masks = {n: torch.ones_like(w[n], dtype=torch.bool) for n in NAMES}

    def under(weights, count):
        """The largest of each layer; how many of each is the library's, to within one of the same share."""
        kept = {n: int(m.sum()) for n, m in count.items()}
        total = sum(kept.values())
        assert all(abs(kept[n] - total / 52 * w[n].numel()) <= 1 for n in NAMES)
        return {n: largest(weights[n], kept[n]) for n in NAMES}

    for t in range(5):
        start, ends, losses = only(w, masks), [], []
        for id in ids:
            end, loss = trained(start, plain(id), 2, HOW, masks)
            ends.append(end)
            losses.append(loss)
        now = by_examples(ends, ids)
        w = {n: torch.where(masks[n], now[n], v) if n in masks else now[n] for n, v in w.items()}
        after = states[t + 1]
        close(after.model.weights, w, NEAR)
        loss_is(after, losses, ids)
        heard = [value for at, _, value in fleet.heard if at == t]
        if t < 1:
            assert all(len(value.y) == 0 for value in heard)
            continue
        x, y = torch.cat([v.x for v in heard]), torch.cat([v.y for v in heard])
        assert len(y) == 9
        share = {n: round(probe / 52 * w[n].numel()) for n in NAMES}
        share[NAMES[0]] += probe - sum(share.values())  # of equal layers the first gives way
        tried = {n: largest(w[n], share[n]) for n in NAMES}
        before, with_, less = (float(cross_entropy(net(v, x), y)) for v in (start, now, only(w, tried)))
        step = (high - low) / math.sqrt(2 * t)
        if before > with_ and before > less:
            cost, cheaper = 0.3 + 0.01 * k, (0.3 + 0.01 * probe) * (before - with_) / (before - less)
            wanted = k - step * math.copysign(1, (cost - cheaper) / (k - probe))
        else:
            wanted = k
        found = after.search.k
        assert found in {min(max(whole, low), high) for whole in (math.floor(wanted), math.ceil(wanted))}
        moved.add(found)
        k = found
        probe = max(1, min(k - 1, round(k - step / 2)), 3)
        assert after.search.probe == probe
        masks = under(w, after.held.masks)
        assert sum(int(m.sum()) for m in masks.values()) == k
        assert all(torch.equal(after.held.masks[n], masks[n]) for n in NAMES)
        assert all(len(torch.nonzero(~masks[n] & (w[n] != 0))) or k == 52 for n in NAMES)  # values are kept
    assert len(moved) > 1


@pytest.mark.parametrize("rewind", ["none", "init"])
def test_static_mask(rewind):
    """Iterative magnitude pruning after rounds 0 and 1: d^(1/2), then d, of the largest that remain."""
    method = StaticMask(
        STEPS, density=0.25, criterion=Magnitude(), schedule=Schedule(first=0, every=1, times=2), rewind=rewind
    )
    states, fleet = run(method, PEOPLE, rounds=4, model=MODEL)
    w, ids = dict(MODEL.weights), ["0", "1", "2"]
    masks = {n: torch.ones_like(w[n], dtype=torch.bool) for n in NAMES}
    for t in range(4):
        ends, losses = zip(*[trained(w, plain(id), 2, HOW, masks) for id in asked(fleet, t)], strict=True)
        w = by_examples(ends, ids)
        if t < 2:
            flat = torch.cat([w[n].reshape(-1) for n in NAMES])
            among = torch.cat([masks[n].reshape(-1) for n in NAMES])
            chosen = largest(flat, (26, 13)[t], among).split([w[n].numel() for n in NAMES])
            masks = {n: part.reshape(w[n].shape) for n, part in zip(NAMES, chosen, strict=True)}
            w = only(MODEL.weights if rewind == "init" else w, masks)
        close(states[t + 1].model.weights, w, NEAR)
        loss_is(states[t + 1], losses, ids)


def test_small_dense():
    """FedAvg of the narrower network, by examples."""
    pytest.importorskip("torch_pruning")
    states, fleet = run(SmallDense(STEPS, density=0.6, cohort=2), PEOPLE, rounds=3, model=MODEL, server=SERVER)
    w = dict(states[0].model.weights)
    assert sum(v.numel() for v in w.values()) <= 0.6 * sum(v.numel() for v in MODEL.weights.values())
    for t in range(3):
        ids = asked(fleet, t)
        ends, losses = zip(*[trained(w, plain(id), 2, HOW) for id in ids], strict=True)
        w = by_examples(ends, ids)
        close(states[t + 1].model.weights, w, NEAR)
        loss_is(states[t + 1], losses, ids)


def test_fedgkt():
    """Clients learn from labels and the server's logits, the server from features, labels and the clients' logits."""
    temperature, alpha = 2.0, 0.7
    server = SGD(lr=0.2, momentum=0.5, batch=1000, epochs=3)
    method = FedGKT(STEPS, server, alpha=alpha, temperature=temperature, cohort=2)
    states, fleet = run(method, PEOPLE, rounds=4, model=MODEL, server=SERVER)
    (head,) = {n.rpartition(".")[0] for n in states[0].client.weights if n.startswith("head.")}
    back = {n: v for n, v in MODEL.weights.items() if not n.startswith("stem.")}
    own, logits, taught = {}, {}, 0

    def small(v, x):
        return linear(v, head, stem(v, x))

    def taught_by(scores, y, teacher):
        t, s = (teacher / temperature).log_softmax(1), (scores / temperature).log_softmax(1)
        return cross_entropy(scores, y) + alpha * temperature**2 * (t.exp() * (t - s)).sum(1).mean()

    for t in range(4):
        ids, losses, pool = asked(fleet, t), [], []
        for id in ids:
            x, y = data(id)

            teacher = logits.get(id)

            def loss(v, x=x, y=y, teacher=teacher):
                scores = small(v, x)
                return cross_entropy(scores, y) if teacher is None else taught_by(scores, y, teacher)

            taught += id in logits
            own[id], value = trained(own.get(id, states[0].client.weights), loss, 2, HOW)
            losses.append(value)
            pool.append((stem(own[id], x), small(own[id], x), y))
        features, teacher, labels = (torch.cat(parts) for parts in zip(*pool, strict=True))
        back, server_loss = trained(
            back, lambda b, f=features, y=labels, s=teacher: taught_by(behind(b, f), y, s), 3, (0.2, 0.5)
        )
        logits |= {id: behind(back, seen) for id, (seen, _, _) in zip(ids, pool, strict=True)}
        stems = [{n: v for n, v in own[id].items() if n.startswith("stem.")} for id in ids]
        close(states[t + 1].model.weights, by_examples(stems, ids) | back, NEAR)
        close(states[t + 1].logits, logits, 5e-5)
        loss_is(states[t + 1], losses, ids)
        assert states[t + 1].server_loss == pytest.approx(server_loss, abs=NEAR)
    assert len(logits) == 3
    assert taught == 5
