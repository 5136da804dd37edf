"""How much each update counts: by examples, and by its distance to the others.

specs/collaborative §3.2 (our definition; the article states only that the weights follow from Euclidean
distances). ``beta = 0`` is FedAvg.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Weighting:
    """Weights from examples and distances."""

    beta: float = 0.0
    """How fast a weight falls with the distance; 0 is FedAvg, below 0 far updates count more."""
    reference: Literal["mean", "global", "global_step"] = "mean"
    """Distance of an update to the mean update, to no update at all, or the latter for each local step."""
    rule: Literal["exp", "inverse", "attention"] = "exp"
    """exp(-beta * d / mean d); 1 / (d + eps * mean d)^beta; or exp(d), far counts more."""
    prior: Literal["examples", "uniform"] = "examples"
    """What a weight is before distances."""
    kappa: float = 0.0
    """Share of the prior that is mixed in."""
    eps: float = 1e-3
    """Of the rule `inverse`."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if not 0 <= self.kappa <= 1:
            raise ValueError(f"kappa = {self.kappa}: expected 0 to 1")
        if self.eps < 0:
            raise ValueError(f"eps = {self.eps}: expected a number >= 0")

    @property
    def needs_distances(self) -> bool:
        """Whether weights depend on anything but the prior."""
        return (self.beta != 0 or self.rule == "attention") and self.kappa < 1


def weights(distances: Sequence[float], examples: Sequence[float], how: Weighting) -> list[float]:
    """Weights that sum to 1.

    Args:
        distances: of each update; one that is not finite gets weight 0.
        examples: of each client; none gets weight 0.
        how: the rule.

    Returns:
        A weight for each, all 0 if no update can be used.

    >>> [round(w, 6) for w in weights([1, 2, 3], [0.5, 0.3, 0.2], Weighting(beta=1))]
    [0.661783, 0.240835, 0.097382]
    """
    usable = [n > 0 and math.isfinite(d) for d, n in zip(distances, examples, strict=True)]
    total = sum((n if how.prior == "examples" else 1.0) for n, fine in zip(examples, usable, strict=True) if fine)
    if not total:
        return [0.0] * len(usable)
    prior = [
        ((n if how.prior == "examples" else 1.0) / total) if fine else 0.0
        for n, fine in zip(examples, usable, strict=True)
    ]
    if not how.needs_distances:
        return prior
    scale = max(d for d, fine in zip(distances, usable, strict=True) if fine) or 1.0
    d = [x / scale if fine else 0.0 for x, fine in zip(distances, usable, strict=True)]  # no sum can overflow now
    mean = sum(d) / sum(usable)
    if how.rule == "inverse":
        exponents = [_inverse(x + how.eps * mean, how.beta) if mean else 0.0 for x in d]
        if any(e == math.inf and fine for e, fine in zip(exponents, usable, strict=True)):
            exponents = [0.0 if e == math.inf else -math.inf for e in exponents]  # at no distance at all: they share
    elif how.rule == "attention":
        exponents = [x * scale for x in d]
    else:
        exponents = [-how.beta * (x / mean if mean else 0.0) for x in d]
    if all(e == -math.inf for e, fine in zip(exponents, usable, strict=True) if fine):
        return prior
    top = max(e for e, fine in zip(exponents, usable, strict=True) if fine)
    raw = [p * math.exp(e - top) if fine else 0.0 for p, e, fine in zip(prior, exponents, usable, strict=True)]
    return _mixed(raw, prior, how.kappa)


def _inverse(distance: float, power: float) -> float:
    """Log of ``distance ** -power``."""
    if distance:
        return -power * math.log(distance)
    return math.inf if power > 0 else -math.inf


def _mixed(raw: list[float], prior: list[float], kappa: float) -> list[float]:
    total = sum(raw)
    return [(1 - kappa) * r / total + kappa * p for r, p in zip(raw, prior, strict=True)]
