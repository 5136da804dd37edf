"""FedAvg with codecs both ways, weights by distance, and selective updating, in numpy.

From the papers that the cards cite: error feedback (Seide et al. 2014), EF21 and EF21-P (Richtarik et al. 2021,
Gruntkowska et al. 2023), the weighting of specs/collaborative §3.2, and FL-PQSU (Xu et al. 2021) with LAQ's and CMFL's
gates.
"""

import math

import numpy as np

from tests.methods.hand import DATA, JUDGES, NAMES, START, descended, judged, mean, minus, norm, plus


def topk(count):
    """The largest magnitudes of each tensor."""

    def code(values):
        flat = values.ravel()
        keep = np.argsort(-np.abs(flat), kind="stable")[:count]
        out = np.zeros_like(flat)
        out[keep] = flat[keep]
        return out.reshape(values.shape)

    return code


def affine(bits):
    """2^bits levels between the least and the largest value of each tensor, which are fp32."""

    def code(values):
        low, high = float(np.float32(values.min())), float(np.float32(values.max()))
        step = (high - low) / (2**bits - 1)
        codes = np.clip(np.rint((values - low) / step), 0, 2**bits - 1) if step else np.zeros_like(values)
        return np.float32(low + step * codes).astype(float)

    return code


def exact(values):
    return values


def each(code, weights):
    return {name: code(value) for name, value in weights.items()}


class Downlink:
    """The way down: whole, coded, or changes of a replica that all up-to-date devices hold."""

    def __init__(self, code, delta):
        self.code, self.delta, self.replica = code, delta, dict(START)

    def start(self, weights):
        """What devices train from."""
        if not self.delta:
            return each(self.code, weights)
        self.replica = plus(self.replica, each(self.code, minus(weights, self.replica)))
        return self.replica


class Feedback:
    """A device's: what it sends of its change, and what it keeps."""

    def __init__(self, kind, code, decay=1.0, reset=0):
        self.kind, self.code, self.decay, self.reset = kind, code, decay, reset
        self.kept, self.last = {}, None

    def said(self, change, t, arrives=True):
        """What is sent; memory moves on only if it arrives."""
        missed = 0 if self.last is None else t - self.last - 1
        kept = {} if self.reset and missed >= self.reset else self.kept
        zero = {name: np.zeros_like(value) for name, value in change.items()}
        kept = kept or zero
        if self.kind == "ef14":
            goal = plus(change, kept, self.decay if missed > 0 else 1.0)
            said = each(self.code, goal)
            after = minus(goal, said)
        elif self.kind == "ef21":
            said = each(self.code, minus(change, kept))
            after = plus(kept, said)
        else:
            said, after = each(self.code, change), zero
        if arrives:
            self.kept, self.last = after, t
        return said


class Averaging:
    """FedAvg, or with ``weighting`` its updates weighed by distance."""

    def __init__(
        self, sgd, up, down, kind="", decay=1.0, reset=0, rate=1.0, weighting=None, ramp=0, data=None, local=None
    ):
        self.data = data or DATA
        self.sgd, self.up, self.down, self.rate, self.weighting, self.ramp = sgd, up, down, rate, weighting, ramp
        self.w, self.estimate = dict(START), None
        self.devices = {id: Feedback(kind, up, decay, reset) for id in self.data}
        self.kind, self.local = kind, local or self.trained

    def trained(self, start, id):
        """Weights, mean loss and steps."""
        w, losses = descended(start, *self.data[id], **self.sgd)
        return w, losses.mean(), len(losses)

    def step(self, t, asked, lost=(), forgot=()):
        """A round; ``lost`` devices answer in vain, ``forgot`` ones have nothing left. Returns figures."""
        start = self.down.start(self.w)
        changes, counts, losses, steps, withheld = [], [], [], [], []
        for id in asked:
            if id in forgot:
                self.devices[id].kept, self.devices[id].last = {}, None
                continue
            w, loss, count = self.local(start, id)
            change, device = minus(w, start), self.devices[id]
            said = change if t < self.ramp else device.said(change, t, id not in lost)
            if id in lost:
                continue
            changes.append(said)
            counts.append(len(self.data[id][1]))
            losses.append(loss)
            steps.append(count)
            withheld.append(norm(device.kept) / norm(change) if self.kind == "ef14" and t >= self.ramp else 0.0)
        shares, figures = self.shares(changes, counts, steps)
        if self.kind == "ef21":
            total = sum(len(y) for _, y in self.data.values())
            part = mean(changes, counts)
            news = {name: value * sum(counts) / total for name, value in part.items()}
            self.estimate = plus(self.estimate, news) if self.estimate else news
            self.w = plus(self.w, self.estimate, self.rate)
            if forgot:  # nobody knows its part of the mean: all begin anew
                self.estimate = None
                for device in self.devices.values():
                    device.kept = {}
        else:
            self.w = plus(self.w, mean(changes, shares), self.rate)
        figures |= {"train_loss": np.dot(shares, losses) / sum(shares)}
        return figures | {"dropped": 0.0, "withheld": np.dot(shares, withheld) / sum(shares)}

    def shares(self, changes, counts, steps):
        """Weights of the updates, and their range."""
        how = self.weighting
        if how is None:
            return np.array(counts) / sum(counts), {}
        prior = np.array(counts if how.prior == "examples" else [1.0] * len(counts)) / (
            sum(counts) if how.prior == "examples" else len(counts)
        )
        if how.reference == "mean":
            middle = mean(changes, prior)
            d = np.array([norm(minus(change, middle)) for change in changes])
        else:
            d = np.array([norm(change) for change in changes])
            d = d / np.array(steps) if how.reference == "global_step" else d
        if how.rule == "exp":
            raw = prior * np.exp(-how.beta * d / d.mean())
        elif how.rule == "inverse":
            raw = prior / (d + how.eps * d.mean()) ** how.beta
        else:
            raw = prior * np.exp(d)
        found = (1 - how.kappa) * raw / raw.sum() + how.kappa * prior
        return found, {"share_min": found.min(), "share_max": found.max(), "distance_mean": d.mean()}


class Selective:
    """FL-PQSU without pruning: who skips counts with the last upload, and goes on from the global model or its own."""

    def __init__(self, how, up, down, kind=""):
        self.how, self.up, self.down, self.w = how, up, down, dict(START)
        self.devices = {id: Feedback(kind, up) for id in DATA}
        self.beat, self.skipped = dict.fromkeys(DATA), dict.fromkeys(DATA, 0)
        self.own, self.cache, self.sent, self.steps = {}, {}, {}, []
        self.before, self.toward = {}, {}

    def step(self, t, asked, lost=()):
        how, sgd = self.how, self.how.optimizer
        start, fresh, who, losses, counts = self.down.start(self.w), [], [], [], []
        for id in asked:
            begin = self.own.get(id, start)
            w, seen = descended(begin, *DATA[id], sgd.steps, sgd.lr, sgd.momentum, sgd.weight_decay)
            kept = (self.devices[id].kept, self.devices[id].last)
            goal = minus(w, begin) if how.changes else w
            said = self.devices[id].said(goal, t)
            uploads = self.passes(id, t, begin, w, said, goal, seen, id in lost)
            if not uploads or id in lost:
                self.devices[id].kept, self.devices[id].last = kept
            if id in lost:
                continue
            who.append(id)
            self.own.pop(id, None)
            if uploads:
                self.cache[id] = said
                fresh.append(id)
                losses.append(seen.mean())
                counts.append(len(DATA[id][1]))
            elif how.after_skip == "own":
                self.own[id] = said
        cached = how.skippers == "cache"
        counted = [
            id for id in DATA if id in self.cache and (id in fresh or (cached and (id in who or not how.changes)))
        ]
        if counted:
            new = mean([self.cache[id] for id in counted], [self.weight(id) for id in counted])
            new = plus(self.w, new) if how.changes else new
        else:
            new = self.w
        self.steps = [norm(minus(new, self.w)) ** 2, *self.steps]
        self.w = new
        return fresh, [id for id in who if id not in fresh], np.dot(losses, counts) / sum(counts) if fresh else None

    def weight(self, id):
        return len(DATA[id][1]) if self.how.weigh == "examples" else 1

    def passes(self, id, t, start, w, said, goal, losses, lost):
        """Whether a device uploads; its memory of that counts if its answer arrives."""
        gate = self.how.gate
        kind = type(gate).__name__
        loss, toward = losses.mean(), None
        if kind == "Loss":
            loss = {"mean": loss, "last": losses[-1], "valid": judged(w, *JUDGES[id])[1]}[gate.statistic]
            beat = gate.initial if self.beat[id] is None else self.beat[id] * (1 + gate.slack)
            passes = loss < beat
        elif kind == "Lazy":
            last, error = self.sent.get(id, (None, 0.0))
            wrong = norm(minus(goal, said)) ** 2 if not self.devices[id].kind else norm(self.devices[id].kept) ** 2
            far = norm(minus(said, last) if last else said) ** 2
            passes = last is None or far > gate.xi * math.fsum(self.steps[: gate.depth]) + 3 * (wrong + error)
        else:
            seen = self.before.get(id)
            toward = minus(start, seen) if seen and norm(minus(start, seen)) else self.toward.get(id)
            change = minus(w, start)
            signs = [np.sign(change[n]) == np.sign(toward[n]) for n in NAMES] if toward else []
            passes = not toward or np.mean(np.concatenate([sign.ravel() for sign in signs])) >= gate.least
        passes = bool(passes or (gate.every and self.skipped[id] + 1 >= gate.every))
        if lost:
            return passes
        if kind == "Loss":
            held = self.beat[id]
            if gate.rule == "best":
                self.beat[id] = loss if passes else held
            elif gate.rule == "previous" or held is None:
                self.beat[id] = loss
            else:
                self.beat[id] = gate.memory * held + (1 - gate.memory) * loss
        if kind == "Lazy" and passes:
            self.sent[id] = (said, wrong)
        if kind == "Agreement":
            self.before[id] = start
            self.toward[id] = toward
        self.skipped[id] = 0 if passes else self.skipped[id] + 1
        return passes
