"""Masked models for the tests of sparse networks."""

import torch

from fedbonsai.arch import Arch
from fedbonsai.model import Model

SHAPES = {"mlp": (1, 8), "conv2": (1, 8), "lenet5": (1, 14), "cnn-bn": (1, 12)}


def masked(name: str, density: float, seed: int = 0, **options):
    """A model that is exactly zero outside random masks, the masks of all its matrices and kernels, and its image."""
    channels, size = SHAPES.get(name, (3, 32))
    if name in ("resnet-tiny", "wrn-16"):
        size = 8
    model = Model.init(Arch(name, {"channels": channels, "size": size, "classes": 10, **options}), seed)
    random = torch.Generator().manual_seed(seed)
    masks = {
        weight: torch.rand(value.shape, generator=random) < density
        for weight, value in model.weights.items()
        if value.dim() > 1
    }
    weights = {weight: value * masks.get(weight, torch.tensor(True)) for weight, value in model.weights.items()}
    return model.replace(weights), masks, (channels, size, size)
