"""Masks that are exact in count: keep the best scores, ties to the lower index, so that every machine decides alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedbonsai.model import Model, skeleton
from fedbonsai.tree import Tree, Weights

Masks = dict[str, Tensor]  # bool, by parameter name


def prunable(model: Model, least: int = 2) -> list[str]:
    """Names of the weights that masks may touch: matrices and kernels; biases and normalisation stay dense.

    Args:
        model: whose parameters.
        least: dimensions that a weight must have.
    """
    return [name for name, value in skeleton(model).parameters.items() if value.ndim >= least]


def keep_top(score: Tensor, kept: int) -> Tensor:
    """Mask of the ``kept`` largest scores of a tensor; ties go to the lower index, NaN counts as the lowest.

    Raises:
        ValueError: more or fewer than the tensor has.
    """
    if not 0 <= kept <= score.numel():
        raise ValueError(f"kept = {kept}: the tensor has {score.numel()} values")
    flat = torch.nan_to_num(score.detach().reshape(-1).double(), nan=-torch.inf, neginf=-torch.inf, posinf=torch.inf)
    order = torch.argsort(flat, descending=True, stable=True)[:kept]
    mask = torch.zeros(flat.numel(), dtype=torch.bool)
    mask[order] = True
    return mask.reshape(score.shape)


def keep_each(scores: Tree, kept: Mapping[str, int]) -> Masks:
    """A mask for each tensor with its own count."""
    return {name: keep_top(score, kept[name]) for name, score in scores.items()}


def keep_global(scores: Tree, kept: int) -> Masks:
    """Masks of the ``kept`` largest scores over all tensors together, in the tensors' order where they tie."""
    flat = torch.cat([score.reshape(-1).double() for score in scores.values()])
    chosen = keep_top(flat, kept)
    masks: Masks = {}
    begin = 0
    for name, score in scores.items():
        masks[name] = chosen[begin : begin + score.numel()].reshape(score.shape)
        begin += score.numel()
    return masks


def masked(weights: Tree, masks: Tree) -> Weights:
    """Weights with exact zeros where nothing is kept."""
    return {
        name: torch.where(masks[name], value, torch.zeros_like(value)) if name in masks else value
        for name, value in weights.items()
    }


def density(masks: Tree) -> float:
    """Share of the masked weights that is kept."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.sum()) for mask in masks.values()) / total if total else 1.0
