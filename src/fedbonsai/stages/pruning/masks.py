"""Masks that are exact in count: keep the best scores, ties to the lower index, so that every machine decides alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fedbonsai.model import Model, cached_module
from fedbonsai.tree import Tree, Weights

Masks = dict[str, Tensor]  # bool, by parameter name


LAYERS = (nn.Linear, _ConvNd, nn.Bilinear, nn.Embedding, nn.RNNBase)  # their tensors of two dimensions are matrices
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, getattr(nn, "RMSNorm", nn.LayerNorm))  # the last from torch 2.4 on


def prunable(model: Model) -> list[str]:
    """Names of the weights that masks may touch: matrices and kernels that are trained.

    Those of recurrent gates, of attention and of embeddings are among them; tied ones are named once. Biases and
    normalisation stay dense, gains of one dimension that a network multiplies by itself, and what a weight is computed from
    (weight_norm and other parametrizations): a row of zeros has no direction there.
    """
    net = cached_module(model)
    apart = _computed(net.module)
    return [
        name for name, value in net.parameters.items() if name not in apart and _multiplied(net.module, name, value)
    ]


def _multiplied(module: nn.Module, name: str, value: Tensor) -> bool:
    layer = module.get_submodule(name.rpartition(".")[0])
    if value.ndim < 2 or isinstance(layer, NORMS):
        return False
    return isinstance(layer, LAYERS) or sum(length > 1 for length in value.shape) > 1


def _computed(module: nn.Module) -> set[str]:
    """Parameters of parametrizations, and those of torch's older hooks that make a weight before each pass."""
    found: set[str] = set()
    for path, layer in module.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(layer, ParametrizationList):
            found |= {prefix + name for name, _ in layer.named_parameters()}
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm | SpectralNorm):
                found |= {f"{prefix}{hook.name}_{part}" for part in ("g", "v", "orig")}
    return found


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
