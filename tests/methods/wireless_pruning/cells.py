"""Random loads and channels for the tests of the allocation; fixed seeds, no two devices alike."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from fedbonsai.methods.wireless_pruning.allocation import Load, min_latency

few_then_many = pytest.mark.parametrize(
    "seeds",
    [
        range(20),
        pytest.param(range(20, 40), marks=pytest.mark.slow),
        pytest.param(range(40, 220), marks=[pytest.mark.slow, pytest.mark.exhaustive]),
    ],
    ids=["few", "more", "many"],
)


@dataclass(frozen=True)
class Case:
    """One problem, with a deadline between the shortest possible round and the round without pruning."""

    load: Load
    snr: np.ndarray
    deadline: float
    bandwidth: float
    weights: np.ndarray
    ratio_max: float

    @property
    def args(self):
        return self.load, self.snr, self.deadline, self.bandwidth, self.weights, self.ratio_max

    def but(self, **changes):
        return replace(self, **changes)


def case(seed, devices=None, *, compute=True, tightness=None) -> Case:
    """SNRs at an equal split from -10 to +40 dB; compute from a tenth to ten times the upload."""
    rng = np.random.default_rng([seed, 2309])
    k = devices or int(rng.integers(2, 21))
    bandwidth = 10 ** rng.uniform(5, 7.5)
    snr = bandwidth / k * 10 ** rng.uniform(-1, 4, k)
    s1 = 10 ** rng.uniform(5, 7) * rng.uniform(0.5, 1.5, k)
    s0 = s1 * rng.uniform(0, 0.1, k)
    upload = np.median(s1 / (bandwidth / k * np.log2(1 + snr * k / bandwidth)))
    b = upload * 10 ** rng.uniform(-1, 1) * rng.uniform(0.3, 3, k) if compute else np.zeros(k)
    load = Load(upload * rng.uniform(0, 0.2, k), b, s0, s1)
    ratio_max = float(rng.uniform(0.5, 0.95))
    longest, shortest = (min_latency(load, snr, bandwidth, kept)[0] for kept in (1.0, 1 - ratio_max))
    part = rng.uniform(0.02, 0.95) if tightness is None else tightness
    deadline = shortest + part * (longest - shortest)
    return Case(load, snr, deadline, bandwidth, rng.dirichlet(np.full(k, 3.0)) + 1e-3, ratio_max)
