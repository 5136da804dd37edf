"""FedTiny's candidates: the settings by which they are drawn and chosen, and how many weights each keeps in each layer.

Huang et al., ICDCS 2023 (specs/fedtiny §1.1). Candidates are magnitude-pruned copies of one model at one density; they differ
in how that is spread over the layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from fedbonsai.errors import ConfigError
from fedbonsai.stages.pruning.distributions import erk, exactly
from fedbonsai.tree import Tree, generator

Counts = Mapping[str, int]  # weights kept, by name


@dataclass(frozen=True)
class Selection:
    """The pool of candidates and how one is chosen."""

    by: Literal["adaptive", "vanilla", "none"] = "adaptive"
    """`adaptive` measures statistics first, `vanilla` judges with the server's own, `none` takes the first candidate."""
    pool: int = 0
    """Candidates (C); 0 means 0.1 / density, at least one."""
    noise: float = 0.5
    """Largest change of a layer's density, as a share of the density (epsilon); the first candidate has none."""
    base: Literal["uniform", "erk"] = "uniform"
    """Densities of the layers before noise: one for all (the paper's), or by the Erdős-Rényi kernel, more in small layers."""
    statistics: Literal["cumulative", "ema"] = "cumulative"
    """How a device goes over its batches: all alike, or by an exponential average."""
    momentum: float = 0.1
    """Of the exponential average (rho)."""
    merge: Literal["pooled", "averaged"] = "pooled"
    """Variances: exact pooling, or the plain mean."""
    weighted: bool = True
    """Weigh losses by samples."""
    batch: int = 64
    """Samples in a batch."""
    nested: bool = True
    """Send the union of the candidates once, instead of each by itself."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.pool < 0 or self.batch < 2:
            raise ValueError(f"pool = {self.pool}, batch = {self.batch}: expected pool >= 0 and batch >= 2")
        if not (0 <= self.noise <= 1 and 0 < self.momentum <= 1):
            raise ValueError(f"noise = {self.noise}, momentum = {self.momentum}: expected shares of 1")

    def size(self, density: float) -> int:
        """C, the number of candidates at a density."""
        return 1 if self.by == "none" else self.pool or pool_size(density)


def pool_size(density: float) -> int:
    """C = max(1, round(0.1 / d)): all candidates together hold a tenth of the dense model.

    >>> [pool_size(density) for density in (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001)]
    [1, 1, 2, 5, 10, 20, 100]
    """
    return max(1, round(0.1 / density))


def pool(
    forms: Tree, budget: int, count: int, noise: float, seed: int, base: Literal["uniform", "erk"] = "uniform"
) -> list[dict[str, int]]:
    """Numbers of weights that each candidate keeps in each layer; every candidate keeps exactly ``budget`` in all.

    Args:
        forms: prunable weights; only shapes count.
        budget: weights kept.
        count: candidates; fewer come back where so many different ones were not found.
        noise: largest change of a layer's density, as a share of it; the first candidate has none.
        seed: of the draws.
        base: densities of the layers before noise: one for all, or by the Erdős-Rényi kernel.

    Raises:
        ConfigError: less than one weight a layer.
    """
    total = sum(value.numel() for value in forms.values())
    if not len(forms) <= budget <= total:
        raise ConfigError(f"{budget} weights for {len(forms)} layers of {total}: choose another density")
    random, found = generator(seed), list[dict[str, int]]()
    kernel = erk(forms, budget / total) if base == "erk" else {}
    flat = [budget / total] * len(forms)
    densities = [kernel[name] / value.numel() for name, value in forms.items()] if kernel else flat
    layers = torch.tensor(densities, dtype=torch.float64)
    for attempt in range(20 * count):
        draws = torch.rand(len(forms), generator=random, dtype=torch.float64) * 2 - 1
        shares = layers * (1 + noise * draws * (attempt > 0))
        raw = [share * value.numel() for share, value in zip(shares.clamp(0, 1).tolist(), forms.values(), strict=True)]
        scale = budget / sum(raw) if sum(raw) else 0.0
        counts = {
            name: min(value.numel(), max(1, math.floor(scale * want + 1e-9)))
            for (name, value), want in zip(forms.items(), raw, strict=True)
        }
        counts = exactly(counts, forms, budget)
        if counts not in found:
            found.append(counts)
        if len(found) == count:
            break
    return found
