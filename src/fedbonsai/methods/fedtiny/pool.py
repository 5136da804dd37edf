"""The pool of FedTiny's candidates: how many weights each keeps in each layer (specs/fedtiny §1.1), and which.

Huang et al., ICDCS 2023. Candidates are magnitude-pruned copies of one model at one density; they differ in how that is
spread over the layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch

from fedbonsai.errors import ConfigError
from fedbonsai.model import Model
from fedbonsai.stages.pruning.count import parameters
from fedbonsai.stages.pruning.distributions import erk, exactly
from fedbonsai.stages.pruning.masks import Masks, keep_each, prunable
from fedbonsai.stages.pruning.scores import magnitude
from fedbonsai.tree import Tree, Weights, generator, size

Counts = Mapping[str, int]  # weights kept, by name


def whole(density: float, values: int) -> int:
    """How many of ``values`` a density allows; a product that is whole but for rounding is not cut by one.

    >>> whole(0.29, 100), int(0.29 * 100), whole(0.1, 99)
    (29, 28, 9)
    """
    return math.floor(density * values * (1 + 1e-12))


def allowed(model: Model, density: float, strict: bool, first: bool) -> tuple[Weights, int]:
    """The weights that are pruned, and how many of their values a density leaves (specs/fedtiny §2.6).

    Args:
        model: biases, normalisation and the last layer are never pruned.
        density: share that is kept.
        strict: of all parameters, those that are never pruned inside it; else of the prunable weights alone.
        first: whether the first layer is pruned.

    Raises:
        ConfigError: no layer is left, or less than one weight for each of them.
    """
    names = prunable(model)[0 if first else 1 : -1]
    if not names:
        raise ConfigError(f"{model.arch.name!r} has no layer between those that stay dense; choose a deeper network")
    forms = {name: model.weights[name] for name in names}
    counted = parameters(model) if strict else size(forms)
    dense = counted - size(forms)
    budget = whole(density, counted) - dense
    if budget < len(forms):
        also = f", and {dense} of them (biases, normalisation, first and last layer) are never pruned" * bool(dense)
        least = math.ceil(1000 * (dense + len(forms)) / counted) / 1000
        raise ConfigError(
            f"density = {density:g} leaves {whole(density, counted)} of {counted} values of {model.arch.name!r}{also}: not one "
            f"for each of the {len(forms)} layers that are; choose another density, at least {least:g}, or a larger network"
        )
    return forms, budget


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


def by_magnitude(weights: Tree, counts: Counts) -> Masks:
    """The largest weights of each layer."""
    return keep_each(magnitude({name: weights[name] for name in counts}), counts)
