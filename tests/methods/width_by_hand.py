"""Rounds of the width methods in numpy: five hidden units of which devices hold some, and the mean over the holders."""

import numpy as np

from tests.methods.hand import BODY, BODY_BIAS, CLASSES, HEAD, HEAD_BIAS, NAMES


def part(w, units):
    """The network of some hidden units."""
    return {BODY: w[BODY][units], BODY_BIAS: w[BODY_BIAS][units], HEAD: w[HEAD][:, units], HEAD_BIAS: w[HEAD_BIAS]}


def loss_and_gradient(w, x, y, ratio=1.0, labels=range(CLASSES)):
    """Mean cross-entropy with sums divided by the ratio, and scores of classes that are not among the labels at zero."""
    hidden = np.tanh((x @ w[BODY].T + w[BODY_BIAS]) / ratio)
    has = np.isin(np.arange(CLASSES), list(labels))
    z = np.where(has, hidden @ w[HEAD].T + w[HEAD_BIAS], 0.0)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    right = np.eye(CLASSES)[y]
    by_z = np.where(has, (p - right) / len(y), 0.0)
    by_sum = (by_z @ w[HEAD]) * (1 - hidden**2) / ratio
    gradient = {BODY: by_sum.T @ x, BODY_BIAS: by_sum.sum(0), HEAD: by_z.T @ hidden, HEAD_BIAS: by_z.sum(0)}
    return -np.log(p[right.astype(bool)]).mean(), gradient


def descended(w, x, y, steps, lr, momentum, ratio=1.0, labels=range(CLASSES)):
    """Heavy-ball steps on all samples at once, and the mean of the losses before them."""
    w, speed, losses = dict(w), {name: np.zeros_like(w[name]) for name in NAMES}, []
    for _ in range(steps):
        loss, gradient = loss_and_gradient(w, x, y, ratio, labels)
        losses.append(loss)
        for name in NAMES:
            speed[name] = momentum * speed[name] + gradient[name]
            w[name] = w[name] - lr * speed[name]
    return w, np.mean(losses)


def over_holders(w, parts):
    """The mean of parts, each (weights, units, labels whose rows of the output count, weight); else as it was."""
    sums, counts = ({name: np.zeros_like(w[name]) for name in NAMES} for _ in range(2))
    for small, units, labels, weight in parts:
        units, labels = list(units), list(labels)
        for total, value in ((sums, small), (counts, {name: np.ones_like(small[name]) for name in NAMES})):
            total[BODY][units] += weight * value[BODY]
            total[BODY_BIAS][units] += weight * value[BODY_BIAS]
            total[HEAD][np.ix_(labels, units)] += weight * value[HEAD][labels]
            total[HEAD_BIAS][labels] += weight * value[HEAD_BIAS][labels]
    return {name: np.where(counts[name] > 0, sums[name] / np.maximum(counts[name], 1e-9), w[name]) for name in NAMES}
