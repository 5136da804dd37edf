"""What papers and docs/specs say, without the library: networks, local steps, codecs and weights in plain torch.

Tests of whole rounds by value compare with this. Only inputs come from the library: initial weights, samples, and who was
asked in which order.
"""

import math

import numpy as np
import torch

from fedbonsai.core import Client, Samples


def folk(counts, size=2, classes=3, dtype=torch.float64, valid=0):
    """Clients "0", "1", ... with so many samples; labels are skewed, so that every client pulls another way."""
    made = []
    for i, n in enumerate(counts):
        g = torch.Generator().manual_seed(100 + i)
        x = torch.randn(n + valid, 1, size, size, generator=g, dtype=torch.float64).to(dtype)
        y = torch.randint(0, classes, (n + valid,), generator=g)
        y[: n // 2] = i % classes
        made.append(Client(str(i), 0, Samples(x[:n], y[:n]), Samples(x[n:], y[n:])))
    return tuple(made)


def part(weights, prefix):
    """Weights below a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def stem(w, x):
    return linear(w, "stem.fc1", x.flatten(1)).clamp(min=0)


def behind(w, h):
    """Scores from what the stem gives."""
    return linear(w, "classifier", linear(w, "features.fc2", h).clamp(min=0))


def net(w, x):
    return behind(w, stem(w, x))


def cross_entropy(scores, y):
    return -(scores - scores.logsumexp(1, keepdim=True))[torch.arange(len(y)), y].mean()


def slopes(loss, weights, *more):
    """Gradient of ``loss(weights, *more)`` by the weights and by what follows; and the loss."""
    w = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
    others = [value.detach().clone().requires_grad_() for value in more]
    value = loss(w, *others)
    value.backward()
    grads = {n: torch.zeros_like(v) if v.grad is None else v.grad for n, v in w.items()}
    return grads, [v.grad for v in others], float(value.detach())


class Descent:
    """Plain SGD with L2 penalty and heavy ball, whose buffer begins at zero."""

    def __init__(self, lr, momentum=0.0, decay=0.0):
        self.lr, self.momentum, self.decay, self.buffer = lr, momentum, decay, {}

    def step(self, weights, grads):
        out = {}
        for name, value in weights.items():
            g = grads[name] + self.decay * value
            self.buffer[name] = self.momentum * self.buffer.get(name, torch.zeros_like(value)) + g
            out[name] = value - self.lr * self.buffer[name]
        return out


def trained(weights, loss, steps, how, mask=None):
    """Weights after so many steps on one objective, and its mean value; pruned weights are zero after every step."""
    sgd, mask, seen, w = Descent(*how), mask or {}, [], dict(weights)
    for _ in range(steps):
        grads, _, value = slopes(loss, w)
        w = {n: v * mask[n] if n in mask else v for n, v in sgd.step(w, grads).items()}
        seen.append(value)
    return w, sum(seen) / steps


def mean_of(trees, shares):
    total = sum(shares)
    return {name: sum(t[name] * (s / total) for t, s in zip(trees, shares, strict=True)) for name in trees[0]}


def plus(left, right, scale=1.0):
    return {name: left[name] + scale * right[name] for name in left}


def minus(left, right):
    return plus(left, right, -1.0)


def length(tree):
    return math.sqrt(sum(float((v.double() ** 2).sum()) for v in tree.values()))


# --- codecs: specs/collaborative §2.2 and §2.3 ---------------------------------------------------------------


def kept(x, share):
    """Position mask of the k = ceil(share n) largest magnitudes of a flat array, ties to the lower index."""
    k = min(len(x), max(1, math.ceil(round(share * len(x), 9))))
    mask = np.zeros(len(x), bool)
    mask[np.argsort(-np.abs(x), kind="stable")[:k]] = True
    return mask


def signmag(x, mask, bits=8):
    """Q-signmag of the kept values, scattered into zeros; the two header numbers are fp32."""
    v, out = x[mask], np.zeros_like(x)
    low, high = (np.float64(np.float32(f(np.abs(v)))) for f in (np.min, np.max))
    top = 2 ** (bits - 1) - 1
    step = (high - low) / top
    q = np.clip(np.rint((np.abs(v) - low) / step), 0, top) if step else np.zeros_like(v)
    out[mask] = np.sign(v) * (low + step * q).astype(np.float32)
    return out


def sparse(value, share, bits=8):
    """A tensor as it arrives: top-k, sign and magnitude."""
    flat = value.detach().numpy().reshape(-1)
    return torch.from_numpy(signmag(flat, kept(flat, share), bits).reshape(value.shape))


def sparse_rows(value, share, bits=8):
    """Cut gradients: the positions are chosen in every row, the range is that of the whole."""
    rows = value.detach().numpy()
    mask = np.stack([kept(row, share) for row in rows])
    return torch.from_numpy(signmag(rows.reshape(-1), mask.reshape(-1), bits).reshape(rows.shape))


def affine_rows(value, bits=8):
    """Activations: Q-affine with a range for every sample."""
    rows, out = value.detach().numpy(), []
    for row in rows:
        low, high = np.float64(np.float32(row.min())), np.float64(np.float32(row.max()))
        step = (high - low) / (2**bits - 1)
        q = np.clip(np.rint((row - low) / step), 0, 2**bits - 1) if step else np.zeros_like(row)
        out.append((low + step * q).astype(np.float32).astype(row.dtype))
    return torch.from_numpy(np.stack(out))


class Uplink:
    """D + e -> what arrives; a tensor's residual stays with its key (client or cluster): specs/collaborative §2.4.

    Tensors of fewer than ``least`` values arrive as they are, in every round (specs/collaborative §2.1).
    """

    def __init__(self, share, least=0, decay=1.0):
        self.share, self.least, self.decay, self.residual, self.last = share, least, decay, {}, {}

    def send(self, key, change, t, share=None):
        held = self.residual.get(key, {})
        factor = self.decay if t - self.last.get(key, t - 1) > 1 else 1.0
        x = {name: value + factor * held[name] if name in held else value for name, value in change.items()}
        arrived = {n: sparse(v, share or self.share) if v.numel() >= self.least else v for n, v in x.items()}
        self.residual[key], self.last[key] = minus(x, arrived), t
        return arrived


def shares_of(changes, counts, beta):
    """alpha_k of specs/collaborative §3.2 with reference ``mean`` and the rule ``exp``; and the distances."""
    p = [n / sum(counts) for n in counts]
    middle = mean_of(changes, p)
    d = [length(minus(change, middle)) for change in changes]
    a = [p_k * math.exp(-beta * d_k / (sum(d) / len(d))) for p_k, d_k in zip(p, d, strict=True)]
    return [a_k / sum(a) for a_k in a], d


def close(found, wanted, within=1e-9):
    """All of ``wanted`` is in ``found``, and nothing else, by value."""
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value.to(found[name].dtype), rtol=0, atol=within)
