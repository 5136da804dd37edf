"""Online choice of the number of weights by the sign of a derivative, within an interval that follows what was useful.

Han, Wang, Leung, "Adaptive Gradient Sparsification for Efficient Federated Learning: An Online Learning Approach", ICDCS
2020, as PruneFL compares with it: what is chosen is k, the weights of the model, and what is cheap is time per loss. The
adaptation is that of specs/prunefl §6 item 4, which is from the authors' public code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from fedbonsai.stages.pruning.time_model import Seconds
from fedbonsai.tree import generator
from fedbonsai.wire import message

HOLDS = 11  # after so many rounds without a useful loss, k grows
WINDOW = 20  # updates of k after which the interval may move
WIDER = 1.5  # how far the interval reaches beyond the values that k had


@message("online/search@1")
class Search:
    """The number of weights k, the smaller one with which it is compared, and the interval in which it is sought.

    Attributes:
        k: weights of the model.
        probe: k', weights of the smaller model that is tried.
        fewest: smallest k' that there may ever be.
        bounds: smallest and largest k.
        low: end of the interval as it is now.
        high: the other end.
        reference: round from which the step shrinks.
        period: rounds that the interval before lasted.
        holds: rounds in a row without an update.
        updates: of k, since the interval was last looked at.
        seen: smallest and largest k of these.
    """

    k: int
    probe: int
    fewest: int
    bounds: tuple[int, int]
    low: int
    high: int
    reference: int = 0
    period: int = 0
    holds: int = 0
    updates: int = 0
    seen: tuple[int, int] = (0, 0)

    @staticmethod
    def begin(total: int, layers: int, share: float) -> Search:
        """All weights.

        Args:
            total: n, weights that may be pruned.
            layers: that keep a weight each, in the probe too.
            share: of n below which k never falls.
        """
        least = max(round(share * total), layers + 1)
        fewest = max(round(0.1 * least), layers)
        return Search(total, max(fewest, math.ceil(0.9 * total - 1e-9)), fewest, (least, total), least, total)

    def step(self, t: int) -> float:
        """eta_t = D / sqrt(2 (t - t_ref)), D the width of the interval."""
        return (self.high - self.low) / math.sqrt(2 * max(1, t - self.reference))

    def after(self, t: int, before: float, now: float, tried: float, costs: tuple[float, float], seed: int) -> Search:
        """The search after round ``t``.

        Args:
            t: round.
            before: loss of the model from which the round began.
            now: loss of the model with which it ended.
            tried: loss of that model pruned to ``probe``.
            costs: seconds of a round with ``k`` and with ``probe`` weights.
            seed: of the rounding, which is random.
        """
        eta, useful = self.step(t), before > now and before > tried
        if useful:
            slope = (costs[0] - costs[1] * (before - now) / (before - tried)) / (self.k - self.probe)
            wanted, holds = self.k - eta * ((slope > 0) - (slope < 0)), 0
        else:
            grow = self.holds + 1 == HOLDS
            wanted, holds = self.k + eta * grow, 0 if grow else self.holds + 1
        whole = math.floor(wanted)
        whole += bool(torch.rand((), generator=generator(seed), dtype=torch.float64) < wanted - whole)
        k = min(max(whole, self.low), self.high)
        found = replace(self, k=k, holds=holds)
        if useful:
            seen = (min(self.seen[0], k), max(self.seen[1], k)) if self.updates else (k, k)
            found = replace(found, updates=self.updates + 1, seen=seen)
            found = found.narrowed(t) if found.updates == WINDOW else found
        return replace(found, probe=max(self.fewest, min(found.k - 1, round(found.k - eta / 2))))

    def narrowed(self, t: int) -> Search:
        """The interval around the values of late, where it is small enough to be worth a new start of the steps."""
        low = max(self.bounds[0], math.floor(self.seen[0] / WIDER))
        high = min(self.bounds[1], math.ceil(self.seen[1] * WIDER))
        width, found = self.high - self.low, replace(self, updates=0)
        lasted = t - self.reference
        if 0 < high - low <= (math.sqrt(2) - 1) * width and lasted >= self.period:
            return replace(found, low=low, high=high, reference=t, period=lasted, k=min(max(self.k, low), high))
        return found


def seconds_of(times: Seconds, sizes: Mapping[str, int], k: int) -> float:
    """T(k): a round with ``k`` weights, the same share of each layer.

    It depends on k and on the whole network alone, and not on the mask of the moment: the authors' code evaluates it on
    the network that is cut already, which counts the cut twice.
    """
    return times.constant + k / sum(sizes.values()) * sum(times.each[name] * size for name, size in sizes.items())
