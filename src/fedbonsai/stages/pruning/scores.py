"""What makes a weight worth keeping: functions from weights (and gradients) to scores of the same form.

Magnitude (Han et al. 2015); squared gradient (PruneFL's importance); SNIP: |w g| (Lee et al., ICLR 2019); SynFlow (Tanaka
et al., NeurIPS 2020); Taylor: (w g)^2 (Molchanov et al. 2019); L1 of filters and neurons (Li et al., ICLR 2017); random.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedbonsai.model import Model, skeleton
from fedbonsai.tree import Tree, Weights, generator, seed_of


def magnitude(weights: Tree) -> Weights:
    """``|w|``."""
    return {name: value.abs() for name, value in weights.items()}


def squared_gradient(gradients: Tree) -> Weights:
    """``g^2``."""
    return {name: value.square() for name, value in gradients.items()}


def snip(weights: Tree, gradients: Tree) -> Weights:
    """``|w g|``."""
    return {name: (value * gradients[name]).abs() for name, value in weights.items()}


def taylor(weights: Tree, gradients: Tree) -> Weights:
    """``(w g)^2``: the squared first-order change of the loss when the weight goes."""
    return {name: (value * gradients[name]).square() for name, value in weights.items()}


def random(weights: Tree, seed: int) -> Weights:
    """Uniform draws, for comparison."""
    return {
        name: torch.rand(value.shape, generator=generator(seed_of(seed, "score " + name, 0, 0)))
        for name, value in weights.items()
    }


def filters(weight: Tensor) -> Tensor:
    """L1 norm of each output filter or neuron [out]; biases do not enter."""
    return weight.abs().reshape(weight.shape[0], -1).sum(1)


def synflow(model: Model, names: list[str], size: tuple[int, ...]) -> Weights:
    """Synaptic flow ``|w * dR/dw|`` with R the sum of the outputs of the network of absolute weights for an input of ones.

    Normalisation layers are bypassed, as they would level the flow. In float64, since it spans many orders of magnitude.

    Args:
        model: network.
        names: weights to score.
        size: of the input, [channels, height, width].
    """
    net = skeleton(model.replace({name: value.abs().double() for name, value in model.weights.items()}))
    net.module.eval()
    norms = [layer for layer in net.module.modules() if isinstance(layer, _BatchNorm | nn.GroupNorm)]
    handles = [layer.register_forward_hook(_bypass) for layer in norms]
    try:
        flow = net.module(torch.ones(1, *size, dtype=torch.float64)).sum()
        gradients = torch.autograd.grad(flow, [net.parameters[name] for name in names])
    finally:
        for handle in handles:
            handle.remove()
    return {n: (net.parameters[n].detach() * g).abs() for n, g in zip(names, gradients, strict=True)}


def _bypass(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return inputs[0]
