"""What a few seeds say: means with Student's interval, paired differences, Holm's correction, the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Args:
        mean: of the values; NaN for none.
        sd: their standard deviation (n - 1); NaN for fewer than two.
        half: half the width of the interval around the mean; infinite for fewer than two.
        n: how many.
    """

    mean: float
    sd: float
    half: float
    n: int

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half


@dataclass(frozen=True)
class Difference(Estimate):
    """Mean of differences over the seeds that two settings share.

    Args:
        p: two-sided, of Student's paired test that there is none; NaN for fewer than two seeds, and 1 or 0 where all
            differences are alike, none or some.
    """

    p: float = math.nan


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean, standard deviation and Student's interval of independent values.

    Args:
        values: one a seed.
        level: share of such intervals that hold the true mean, if the values are normal.
    """
    n = len(values)
    if n < 2:
        return Estimate(values[0] if values else math.nan, math.nan, math.inf, n)
    from scipy.stats import t

    sd = stdev(values)
    return Estimate(fmean(values), sd, float(t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n), n)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], level: float = 0.95) -> Difference:
    """Ours minus theirs, seed by seed; seeds that only one of both has are left out.

    Args:
        ours: value of each seed.
        theirs: those of the baseline.
        level: as for `estimate`.
    """
    gaps = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    found = estimate(gaps, level)
    if found.n < 2:
        p = math.nan
    elif found.sd == 0:
        p = 1.0 if found.mean == 0 else 0.0
    else:
        from scipy.stats import t

        p = 2 * float(t.sf(abs(found.mean) / found.sd * math.sqrt(found.n), found.n - 1))
    return Difference(found.mean, found.sd, found.half, found.n, p)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values of one family; NaN stays, and counts for none.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics, 1979.
    """
    order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
    corrected, floor = list(ps), 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, (len(order) - rank) * ps[i]))
        corrected[i] = floor
    return corrected


def front(points: Sequence[Sequence[float]], better: Sequence[str]) -> list[int]:
    """Places of the points that no other one dominates, in their order; of equal points all stay.

    Args:
        points: one row a setting; one with a NaN is never on the front.
        better: of each column ``"higher"`` or ``"lower"``.
    """
    signs = [{"higher": -1.0, "lower": 1.0}[way] for way in better]
    costs = [[sign * value for sign, value in zip(signs, point, strict=True)] for point in points]

    def dominated(i: int) -> bool:
        return any(other != costs[i] and all(a <= b for a, b in zip(other, costs[i], strict=True)) for other in costs)

    return [i for i, cost in enumerate(costs) if not any(map(math.isnan, cost)) and not dominated(i)]
