"""The weights that FedPM never trains: random signs times one constant a layer, the same wherever they are drawn.

Both ends draw the signs from the run's seed, by a stream of bits that NumPy keeps the same in all releases (PCG64), so that
no weight ever travels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.random import PCG64
from torch import Tensor

from fedbonsai.arch import Arch
from fedbonsai.errors import ConfigError
from fedbonsai.model import Model, cached_module, parameter_specs
from fedbonsai.stages.pruning.masks import NORMS
from fedbonsai.tree import Weights


def names_of(arch: Arch) -> list[str]:
    """Parameters that a mask is learned for: all but the gains and biases of normalisation, which stay 1 and 0.

    Raises:
        ConfigError: none is left, or the network computes its weights from parameters.
    """
    net = cached_module(Model(arch, parameter_specs(arch)))
    layers = {name: net.module.get_submodule(name.rpartition(".")[0]) for name in net.parameters}
    if made := [name for name in layers if "parametrizations" in name or name.endswith(("_g", "_v", "_orig"))]:
        raise ConfigError(
            f"model {arch.name!r} computes weights from {', '.join(made[:3])}: fedpm puts random signs in the place of all "
            "parameters; take a network without weight_norm and the like"
        )
    names = [name for name, layer in layers.items() if not isinstance(layer, NORMS)]
    if not names:
        raise ConfigError(f"model {arch.name!r} has no parameters beside normalisation: fedpm has nothing to mask")
    return names


def frozen(arch: Arch, seed: int) -> Weights:
    """Signs from a stream of random bits, times e / sqrt(inputs of the layer), by name."""
    specs, stream = parameter_specs(arch), PCG64(seed)
    return {name: _signs(specs[name], stream) * _scale(name, specs) for name in names_of(arch)}


def still(arch: Arch) -> Weights:
    """All tensors as the network's builder makes them, but gains of normalisation 1 and its biases 0, whatever it makes of them.

    A builder that begins with gains of 0, as residual networks do, counts on their training.
    """
    specs = parameter_specs(arch)
    net, found = cached_module(Model(arch, specs)), dict(specs)
    for name in net.parameters:
        path, _, kind = name.rpartition(".")
        if isinstance(net.module.get_submodule(path), NORMS):
            found[name] = torch.zeros_like(specs[name]) if kind == "bias" else torch.ones_like(specs[name])
    return found


def _signs(like: Tensor, stream: PCG64) -> Tensor:
    words = np.atleast_1d(stream.random_raw(-(-like.numel() // 64)))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=like.numel(), bitorder="little")
    return (2 * torch.from_numpy(bits).to(like.dtype) - 1).reshape(like.shape)


def _scale(name: str, specs: Weights) -> float:
    """A bias has the scale of its layer's widest weight."""
    layer = name.rpartition(".")[0]
    beside = [value for other, value in specs.items() if other.rpartition(".")[0] == layer and value.ndim > 1]
    like = [specs[name]] if specs[name].ndim > 1 or not beside else beside
    return math.e / math.sqrt(max(value.numel() // (value.shape[0] if value.ndim > 1 else 1) for value in like))
