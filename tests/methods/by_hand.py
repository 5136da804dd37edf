"""Linear layers, batch normalisation and ReLUs in numpy, of which the simulations of whole rounds are made.

A simulation shares its inputs with the library: initial weights, samples, and the seeds by which batches are shuffled.
"""

import numpy as np
import torch

from fedbonsai.core import Client, Samples
from fedbonsai.tree import seed_of

EPSILON = 1e-5  # of batch normalisation


def person(id, count, labels, shift, valid=0):
    """A client with samples and labels of its own kind; no two of them are alike in anything."""
    random = torch.Generator().manual_seed(count)
    y = torch.multinomial(torch.tensor(labels), count + valid, replacement=True, generator=random)
    x = torch.randn(count + valid, 1, 2, 2, generator=random) * (0.6 + 0.4 * shift) + shift
    x += torch.nn.functional.one_hot(y, 4).reshape(-1, 1, 2, 2) * (1.5 - shift)
    return Client(id, 0, Samples(x[:count], y[:count]), Samples(x[count:], y[count:]))


def people(valid=(0, 0, 0)):
    """Three clients of 21, 9 and 14 samples; of the second, 9 samples in batches of 8 are one batch."""
    kinds = ((21, (0.7, 0.2, 0.1), 0.3), (9, (0.1, 0.1, 0.8), -0.4), (14, (0.2, 0.6, 0.2), 0.9))
    return tuple(person(id, *kind, part) for id, kind, part in zip("abc", kinds, valid, strict=True))


def arrays(tree):
    """A model's tensors in double precision, or masks as they are."""
    return {name: value.numpy().astype(bool if value.dtype == torch.bool else float) for name, value in tree.items()}


def samples(part):
    return part.x.numpy().astype(float).reshape(len(part), -1), part.y.numpy()


def cuts(count, batch):
    """Where an epoch is cut; a last sample alone joins the batch before."""
    begins = list(range(0, count, batch))
    if len(begins) > 1 and count - begins[-1] == 1:
        begins.pop()
    return list(zip(begins, [*begins[1:], count], strict=True))


def batches(part, batch, seed, epochs=1, steps=0):
    """Shuffled batches of whole epochs, or as many as there are steps."""
    (x, y), random, left = (
        samples(part),
        torch.Generator().manual_seed(seed),
        steps or epochs * len(cuts(len(part), batch)),
    )
    while left:
        order = torch.randperm(len(y), generator=random).numpy()
        for begin, end in cuts(len(y), batch)[:left]:
            yield x[order[begin:end]], y[order[begin:end]]
            left -= 1


def seed(id, t, ask=0, run=0):
    """Of a client in a round."""
    return seed_of(run, id, t, ask)


def forward(w, layers, x, training):
    """Scores; what the backward pass needs; mean and unbiased variance of a batch, by normalising layer."""
    kept, moments = [], {}
    for layer in layers:
        if layer == "relu":
            kept.append(x > 0)
            x = x * (x > 0)
        elif f"{layer}.running_mean" in w:
            mean, var = w[f"{layer}.running_mean"], w[f"{layer}.running_var"]
            if training:
                mean, var = x.mean(0), x.var(0)
                moments[layer] = mean, x.var(0, ddof=1)
            scale = 1 / np.sqrt(var + EPSILON)
            x = (x - mean) * scale
            kept.append((x, scale))
            x = x * w[f"{layer}.weight"] + w[f"{layer}.bias"]
        else:
            kept.append(x)
            x = x @ w[f"{layer}.weight"].T + w.get(f"{layer}.bias", 0)
    return x, kept, moments


def entropies(scores, y):
    """Cross-entropy of each sample, and probabilities."""
    odds = np.exp(scores - scores.max(1, keepdims=True))
    odds /= odds.sum(1, keepdims=True)
    return -np.log(odds[np.arange(len(y)), y]), odds


def loss_of(w, layers, part):
    """Mean cross-entropy in evaluation mode."""
    x, y = samples(part)
    return entropies(forward(w, layers, x, False)[0], y)[0].mean()


def slopes(w, layers, x, y):
    """Mean cross-entropy of a batch in training mode, its gradient by name, and the batch's moments."""
    scores, kept, moments = forward(w, layers, x, True)
    each, odds = entropies(scores, y)
    back, found = (odds - np.eye(scores.shape[1])[y]) / len(y), {}
    for layer, held in zip(reversed(layers), reversed(kept), strict=True):
        if layer == "relu":
            back = back * held
        elif layer in moments:
            x, scale = held
            found[f"{layer}.weight"], found[f"{layer}.bias"] = (back * x).sum(0), back.sum(0)
            back = back * w[f"{layer}.weight"]
            back = scale * (back - back.mean(0) - x * (back * x).mean(0))
        else:
            found[f"{layer}.weight"], found[f"{layer}.bias"] = back.T @ held, back.sum(0)
            back = back @ w[f"{layer}.weight"]
    return each.mean(), {name: value for name, value in found.items() if name in w}, moments


def step(w, slope, lr, momentum=0.0, speed=None):
    """One step of descent in place; ``speed`` holds the momentum from step to step."""
    for name, value in slope.items():
        if speed is not None:
            value = speed[name] = momentum * speed.get(name, 0) + value
        w[name] = w[name] - lr * value


def under(w, masks):
    """Zero where nothing is kept."""
    return {name: value * masks[name] if name in masks else value for name, value in w.items()}


def trained(w, layers, seen, lr, momentum=0.0, masks=()):
    """Weights after descent over batches; losses and lengths of the batches; gradients, added up before any mask."""
    w, speed, losses, counts, total = under(w, masks), {}, [], [], {}
    for x, y in seen:
        loss, slope, moments = slopes(w, layers, x, y)
        for name, value in slope.items():
            total[name] = total.get(name, 0) + value
        step(w, slope, lr, momentum, speed)
        w = under(w, masks)
        for layer, (mean, var) in moments.items():
            w[f"{layer}.running_mean"] = 0.9 * w[f"{layer}.running_mean"] + 0.1 * mean
            w[f"{layer}.running_var"] = 0.9 * w[f"{layer}.running_var"] + 0.1 * var
        losses.append(loss)
        counts.append(len(y))
    return w, losses, counts, total


def coded(values, bits):
    """2^bits levels at equal steps from the least to the largest value; each value becomes the nearest."""
    low, span, top = values.min(), np.ptp(values), 2**bits - 1
    place = (values - low) / (span or 1) * top
    assert np.abs(place % 1 - 0.5).min() > 1e-4, "half way between two codes: take other inputs"
    return low + span / top * np.round(place)


class Gate:
    """What a client remembers of its losses: it uploads if one is below a remembered one, or after enough skips."""

    def __init__(self):
        self.reference, self.skipped = None, 0

    def __call__(self, gate, loss):
        best = gate.initial if self.reference is None else self.reference * (1 + gate.slack)
        assert abs(loss / best - 1) > 1e-4, "as good as the loss to beat: take other inputs"
        passes = loss < best or self.skipped + 1 == gate.every
        self.skipped = 0 if passes else self.skipped + 1
        if gate.rule == "best":
            self.reference = loss if passes else self.reference
        elif gate.rule == "previous" or self.reference is None:
            self.reference = loss
        else:
            self.reference = gate.memory * self.reference + (1 - gate.memory) * loss
        return passes


def mean(trees, shares):
    """Of trees, by shares of any sum."""
    return {name: sum(s * tree[name] for s, tree in zip(shares, trees, strict=True)) / sum(shares) for name in trees[0]}


def close(found, wanted, what="", rtol=2e-5, atol=2e-6):
    """Compare a tree of the library with a simulated one, by value and in single precision."""
    assert found.keys() == wanted.keys(), what
    for name, value in found.items():
        np.testing.assert_allclose(value.numpy(), wanted[name], rtol, atol, err_msg=f"{what} {name}")


def figures(found, wanted, what=""):
    """Compare the metrics that a simulation knows."""
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, 2e-5, 1e-7, err_msg=f"{what} {name}")
