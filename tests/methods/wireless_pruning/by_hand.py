"""Wireless pruning in numpy, from docs/specs. The optimum is found from the conditions of specs/wireless §4.4
by roots of the latency itself (no Lambert W), and a grid of bands judges it.
"""

from math import inf, log

import numpy as np
import torch
from scipy.optimize import brentq

from fedbonsai.tree import seed_of
from tests.methods.hand import BODY, BODY_BIAS, DATA, HEAD, JUDGES, NAMES, START, descended, judged, minus, plus

FORWARD, BACKWARD = 20 / 3, 40 / 3  # cycles for a sample and weight (specs/wireless §2.3)
SHARED_HEAD = (BODY, BODY_BIAS)


class Load:
    """T = a + b x + (s0 + s1 x) / R of one device (specs/wireless §2.1)."""

    def __init__(self, a, b, s0, s1, snr):
        self.a, self.b, self.s0, self.s1, self.snr = a, b, s0, s1, snr

    def rate(self, band):
        return band * np.log1p(self.snr / band) / log(2)

    def seconds(self, x, band):
        return self.a + self.b * x + (self.s0 + self.s1 * x) / self.rate(band)

    def band(self, x, limit):
        """The band on which kept fraction x takes exactly so long; inf where none does."""
        left = limit - self.a - self.b * x
        if left <= 0 or (self.s0 + self.s1 * x) / left >= self.snr / log(2) * (1 - 1e-9):
            return inf
        return np.exp(brentq(lambda z: self.seconds(x, np.exp(z)) - limit, log(1e-9), log(1e30), xtol=1e-14))

    def kept(self, band, limit):
        """g: the kept fraction that takes exactly so long (specs/wireless §4.2)."""
        return ((limit - self.a) * self.rate(band) - self.s0) / (self.b * self.rate(band) + self.s1)

    def gain(self, band, limit):
        """g' (specs/wireless §4.4)."""
        z = self.snr / band
        slope = (np.log1p(z) - z / (1 + z)) / log(2)
        return ((limit - self.a) * self.s1 + self.b * self.s0) / (self.b * self.rate(band) + self.s1) ** 2 * slope


def shortest(loads, kept, total):
    """The shortest round at given kept fractions, and its bands (specs/wireless §4.7)."""

    def over(z):
        return min(sum(load.band(x, np.exp(z)) for load, x in zip(loads, kept, strict=True)), 1e30) - total

    equal = max(load.seconds(x, total / len(loads)) for load, x in zip(loads, kept, strict=True))
    limit = np.exp(brentq(over, log(equal) - 20, log(equal) + 1e-9, xtol=1e-15))
    return limit, np.array([load.band(x, limit) for load, x in zip(loads, kept, strict=True)])


def optimum(loads, alpha, limit, total, least):
    """Kept fractions and bands of the least weighted pruning, by specs/wireless §4.4 with one multiplier."""
    low, whole = ([load.band(x, limit) for load in loads] for x in (least, 1.0))
    assert sum(low) <= total * (1 + 1e-12)
    if sum(whole) <= total:
        return np.ones(len(loads)), np.array(whole)
    high = np.minimum(whole, total)

    def band(k, mu):
        ends = [alpha[k] * loads[k].gain(end, limit) - mu for end in (low[k], high[k])]
        if ends[1] >= 0 or ends[0] <= 0:
            return high[k] if ends[1] >= 0 else low[k]

        def over(z):
            return alpha[k] * loads[k].gain(np.exp(z), limit) / mu - 1

        return np.exp(brentq(over, log(low[k]), log(high[k]), xtol=1e-15))

    def bands(z):
        return np.array([band(k, np.exp(z)) for k in range(len(loads))])

    gains = [log(alpha[k] * loads[k].gain(end, limit)) for k in range(len(loads)) for end in (low[k], high[k])]
    found = bands(brentq(lambda z: bands(z).sum() - total, min(gains) - 1, max(gains) + 1, xtol=1e-15))
    kept = [np.clip(load.kept(b, limit), least, 1) for load, b in zip(loads, found, strict=True)]
    return np.where(found == whole, 1.0, kept), found


def admitted(needed, values, total):
    """The most valuable set of devices whose bands fit; the largest set where values are equal."""
    sets = [[k for k in range(len(needed)) if code >> k & 1] for code in range(1, 1 << len(needed))]
    fitting = [who for who in sets if sum(needed[k] for k in who) <= total]
    return max(fitting, key=lambda who: (sum(values[k] for k in who), -sum(needed[k] for k in who)), default=[])


def coded(values, bits):
    """2^bits levels between the least and the largest value, which are fp32."""
    low, high = float(np.float32(values.min())), float(np.float32(values.max()))
    step = (high - low) / (2**bits - 1)
    code = np.clip(np.rint((values - low) / step), 0, 2**bits - 1) if step else np.zeros_like(values)
    return np.float32(low + step * code).astype(float)


class Simulation:
    """The server and its devices; ``how`` are the settings of the method, of which numbers alone are read."""

    def __init__(self, how, seed=7):
        self.how, self.seed = how, seed
        self.shared = [name for name in NAMES if not how.personal or name in SHARED_HEAD]
        self.prunable = [name for name in self.shared if name in (BODY, HEAD)]
        self.u = {name: START[name] for name in self.shared}
        self.first = {name: START[name] for name in NAMES if name not in self.shared}
        self.v = {id: dict(self.first) for id in DATA}
        self.debt, self.last, self.seconds = {id: {} for id in DATA}, {}, 0.0
        self.ever = {name: np.zeros(START[name].shape, bool) for name in self.prunable}

    # --- the plan --------------------------------------------------------------------------------------------------

    def draw(self, what, id, t=-1):
        return np.random.default_rng(seed_of(self.seed, f"{what}/{id}", t, 0))

    def snr(self, id, t=None):
        """p h / N0 with the defaults of 2.3, of a round or without fading."""
        cell, place = self.how.cell, self.draw("cell", id)
        where, shadow = place.random(), place.standard_normal()
        km = np.sqrt(35**2 + where * (500**2 - 35**2)) / 1000
        loss = 128.1 + 37.6 * np.log10(km) + cell.shadowing * shadow
        fading = 1.0 if t is None else self.draw("fading", id, t).standard_exponential()
        return 10 ** ((23 - loss + 174) / 10) * fading

    def predicted(self, id, t):
        """What the server believes (specs/wireless §7.2)."""
        by = self.how.channel
        if by == "last":
            return 0.5 * self.snr(id, t - 1)
        return {"true": self.snr(id, t), "mean": self.snr(id), "quantile": -log(0.9) * self.snr(id)}[by]

    def loads(self, ids, snrs):
        """specs/wireless §2.2, with the broadcast of all shared weights at the worst device's rate."""
        how, found = self.how, []
        joint, sgd = how.order == "sim", how.optimizer
        pruned = sum(START[n].size for n in self.prunable)
        fixed = sum(START[n].size for n in self.shared) - pruned
        own = sum(v.size for v in START.values()) - pruned - fixed
        louder = 10 ** ((46 - 23) / 10)
        worst = min(snrs) * louder
        down = how.bits * (pruned + fixed) / (how.cell.bandwidth * np.log2(1 + worst / how.cell.bandwidth))
        for id, snr in zip(ids, snrs, strict=True):
            count = len(DATA[id][1])
            n_u, n_v = sgd.steps * count, (how.personal_steps or sgd.steps) * count * (own > 0)
            hertz = 1e9 + 2e9 * self.draw("processor", id).random()
            both = FORWARD + BACKWARD
            of_shared = n_u * both if joint else n_v * FORWARD + n_u * both
            of_own = n_u * both if joint else n_v * both + n_u * (FORWARD + BACKWARD / 2)
            a, b = (fixed * of_shared + own * of_own) / hertz, pruned * of_shared / hertz
            if not how.compute.prunes:
                a, b = a + b, 0.0
            a += down if how.downlink == "broadcast" else 0.0
            found.append(Load(a, b, how.bits * fixed, how.bits * pruned, snr))
        return found

    def plan(self, t, ids):
        """Steps 1 of 1.3, then 7.2 and 7.3; everything by device id."""
        how, total, most = self.how, self.how.cell.bandwidth, self.how.ratio_max
        loads = self.loads(ids, [self.predicted(id, t) for id in ids])
        counts = [len(DATA[id][1]) if how.weights == "examples" else 1 for id in ids]
        alpha = np.array(counts) / sum(counts)
        full = shortest(loads, np.ones(len(ids)), total)[0]
        limit, ratio, who = how.deadline * full, np.zeros(len(ids)), list(range(len(ids)))
        bands = np.zeros(len(ids))
        if not how.allocation.waits:
            limit, ratio = inf, np.full(len(ids), how.allocation.ratio)
            latency, bands = shortest(loads, 1 - ratio, total)
        else:
            needed = [load.band(1 - most, limit) for load in loads]
            if sum(needed) > total:
                ages = np.array([t - self.last.get(id, -1) - 1 for id in ids])
                values = alpha * (1 + how.bonus * ages) if how.bonus else np.ones(len(ids))
                who = admitted(needed, values, total)
            if not who or (how.remedy == "extend" and len(who) < len(ids)):
                least = shortest(loads, np.full(len(ids), 1 - most), total)[0]
                limit, who = max(limit, least + how.deadline * (full - least)), list(range(len(ids)))
            kept, bands[who] = optimum([loads[k] for k in who], alpha[who], limit, total, 1 - most)
            ratio[who], latency = 1 - kept, limit
        trains = [k in who for k in range(len(ids))]
        sends, sent = list(trains), ratio.copy()
        if how.channel != "true":
            true = self.loads(ids, [self.snr(id, t) for id in ids])
            cut, bands = self.corrected([true[k] for k in who], 1 - ratio[who], alpha[who], limit), np.zeros(len(ids))
            latency, fractions, bands[who] = cut
            for k, x in zip(who, fractions, strict=True):
                sends[k], sent[k] = x > 0, max(ratio[k], 1 - x * (1 - ratio[k]))
        by = {id: (trains[k], ratio[k], sends[k], sent[k], bands[k]) for k, id in enumerate(ids)}
        return by, latency, limit, full

    def corrected(self, loads, kept, alpha, limit):
        """Uploads by the true channel: in the shortest time, or the least withheld (specs/wireless §7.2)."""
        uploads = [Load(o.a + o.b * x, 0.0, o.s0, o.s1 * x, o.snr) for o, x in zip(loads, kept, strict=True)]
        total = self.how.cell.bandwidth
        latency, bands = shortest(uploads, np.ones(len(loads)), total)
        if latency <= limit:
            return latency, np.ones(len(loads)), bands
        needed = [upload.band(0.01, limit) for upload in uploads]
        who = admitted(needed, np.ones(len(loads)), total)
        fractions, bands = np.zeros(len(loads)), np.zeros(len(loads))
        if who:
            fractions[who], bands[who] = optimum([uploads[k] for k in who], (alpha * kept)[who], limit, total, 0.01)
        return limit, fractions, bands

    # --- masks -----------------------------------------------------------------------------------------------------

    def flat(self, weights):
        return np.concatenate([weights[name].ravel() for name in self.prunable])

    def shaped(self, flat):
        ends = np.cumsum([START[name].size for name in self.prunable])[:-1]
        return {n: part.reshape(START[n].shape) for n, part in zip(self.prunable, np.split(flat, ends), strict=True)}

    def mask(self, u, id, t, ratio, explore):
        """The largest magnitudes, a share of others at random (specs/wireless §1.4 and §1.5); None keeps everything."""
        size = np.abs(self.flat(u))
        gone = int(ratio * len(size))
        lucky = min(int(explore * len(size)), len(size) - gone)
        if not gone:
            return None
        keep = np.zeros(len(size), bool)
        keep[np.argsort(-size, kind="stable")[: len(size) - gone - lucky]] = True
        rest = np.flatnonzero(~keep)
        random = torch.Generator().manual_seed(seed_of(self.seed, f"mask/{id}", t, 0))
        keep[rest[torch.randperm(len(rest), generator=random).numpy()[:lucky]]] = True
        return self.shaped(keep)

    def cut(self, u, masks, sent):
        """Of a mask, the largest weights that an upload has room for (specs/wireless §7.2)."""
        size = np.abs(self.flat(u))
        score = np.where(self.flat(masks) if masks else True, size, -1.0)
        keep = np.zeros(len(size), bool)
        keep[np.argsort(-score, kind="stable")[: len(size) - int(sent * len(size))]] = True
        return self.shaped(keep)

    # --- a round ---------------------------------------------------------------------------------------------------

    def step(self, t, ids, silent=()):
        """Round ``t`` with these devices, some of them silent: the figures that the log must have, and the plan."""
        how, before = self.how, dict(self.u)
        plan, latency, limit, full = self.plan(t, ids)
        trained = [ratio for trains, ratio, *_ in plan.values() if trains]
        explore = how.mask.explore if trained and min(trained) > 0 else 0.0
        uploads, losses, values = [], [], 0
        for id, (trains, ratio, sends, sent, _) in plan.items():
            if id in silent:
                continue
            masks = self.mask(before, id, t, ratio, explore) if trains else None
            u, loss = self.local(id, before, masks, trains)
            if trains or self.v[id]:
                losses.append((len(DATA[id][1]) if how.weights == "examples" else 1, loss.mean()))
            if not (trains and sends):
                continue
            kept = masks if sent <= ratio + 1e-9 else self.cut(before, masks, sent)
            whole = {name: np.ones(START[name].shape, bool) for name in self.shared}
            kept = {**whole, **(kept or {})}
            uploads.append((id, self.packed(id, u, before, masks, kept), kept))
            values += sum(int(mask.sum()) for mask in kept.values())
        self.average(before, uploads)
        now = {n: np.any([kept[n] for _, _, kept in uploads], 0) for n in self.prunable} if uploads else {}
        self.ever = {name: mask | now.get(name, False) for name, mask in self.ever.items()}
        self.last |= {id: t for id, _, _ in uploads}
        self.seconds += latency
        figures = {
            "train_loss": sum(s * loss for s, loss in losses) / sum(s for s, _ in losses),
            "dropped": 0,
            "mean_ratio": np.mean(trained) if trained else 0.0,
            "least_ratio": min(trained, default=0.0),
            "round_latency": latency,
            "full_latency": full,
            "wireless_seconds": self.seconds,
            "left_out": sum(not trains for trains, *_ in plan.values()),
            "missed": sum(trains and not sends for trains, _, sends, *_ in plan.values()),
            "cut_short": sum(sends and sent > ratio + 1e-9 for _, ratio, sends, sent, _ in plan.values()),
            "uncovered": 1 - self.flat(now).mean() if now else 1.0,
            "never_covered": 1 - self.flat(self.ever).mean(),
            "participation": len(uploads) / len(ids),
            "uplink_bits": how.bits * values,
            **({"deadline": limit} if limit < inf else {}),
            **self.verdict(t, plan, explore),
        }
        return figures, plan, explore

    def local(self, id, before, masks, trains):
        """Steps 3 to 5: the personal part on the masked shared one, then the shared part; or both in one pass."""
        how, sgd, (x, y) = self.how, self.how.optimizer, DATA[id]
        own, rest = list(self.v[id]), {"momentum": sgd.momentum, "decay": sgd.weight_decay}
        w = {**{n: value * (masks or {}).get(n, 1) for n, value in before.items()}, **self.v[id]}
        joint, loss = trains and how.order == "sim", np.array([])
        if own and not joint:
            steps, lr = how.personal_steps or sgd.steps, how.personal_lr or sgd.lr
            w, loss = descended(w, x, y, steps, lr, learn=own, **rest)
        if trains:
            learn = NAMES if joint else self.shared
            w, loss = descended(w, x, y, sgd.steps, sgd.lr, learn=learn, masks=masks, **rest)
        self.v[id] = {name: w[name] for name in own}
        return {name: w[name] for name in self.shared}, loss

    def packed(self, id, u, before, masks, kept):
        """Step 6: kept entries in q bits, or their change with what the device still owes."""
        bits = self.how.bits
        if bits == 32:
            return u
        if not self.how.feedback:
            return {n: self.quantised(value, kept[n]) for n, value in u.items()}
        change = {n: value * (masks or {}).get(n, 1) for n, value in minus(u, before).items()}
        goal = plus(change, self.debt[id]) if self.debt[id] else change
        said = {n: self.quantised(value, kept[n]) for n, value in goal.items()}
        self.debt[id] = minus(goal, said)
        return plus(before, said)

    def quantised(self, values, kept):
        found = np.zeros_like(values)
        if kept.any():
            found[kept] = coded(values[kept], self.how.bits)
        return found

    def average(self, before, uploads):
        """Step 7: each coordinate over those that sent it, else as it was."""
        self.u = dict(before)
        for name in self.shared if uploads else ():
            counts = [len(DATA[id][1]) if self.how.weights == "examples" else 1 for id, _, _ in uploads]
            shares = sum(kept[name] * float(c) for c, (_, _, kept) in zip(counts, uploads, strict=True))
            total = sum(kept[name] * u[name] * c for c, (_, u, kept) in zip(counts, uploads, strict=True))
            self.u[name] = np.where(shares > 0, total / np.where(shares > 0, shares, 1), before[name])

    def verdict(self, t, plan, explore):
        """specs/wireless §5: each device's model on its judges, with all shared weights and under this round's mask."""
        if not self.how.judge or (t + 1) % self.how.judge:
            return {}
        rows = []
        for id, (x, y) in JUDGES.items():
            ratio = plan[id][1] if id in plan else 0.0
            masks = self.mask(self.u, id, t, ratio, explore) or {}
            dense, loss = judged({**self.u, **self.v[id]}, x, y)
            under = judged({**{n: v * masks.get(n, 1) for n, v in self.u.items()}, **self.v[id]}, x, y)[0]
            rows.append((len(y), dense, under, loss))
        count, dense, under, loss = (np.array(column) for column in zip(*rows, strict=True))
        return {
            "personal_accuracy": count @ dense / count.sum(),
            "masked_accuracy": count @ under / count.sum(),
            "personal_p10": dense.min(),
            "masked_p10": under.min(),
            "personal_loss": count @ loss / count.sum(),
        }
