"""What makes a weight worth keeping: functions from weights (and gradients) to scores of the same form.

Magnitude (Han et al. 2015); squared gradient (PruneFL's importance); SNIP: |w g| (Lee et al., ICLR 2019); SynFlow (Tanaka
et al., NeurIPS 2020); Taylor: (w g)^2 (Molchanov et al. 2019); L1 of filters and neurons (Li et al., ICLR 2017); random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedbonsai.model import Model
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

    Args:
        model: in float64 for deep networks, where the flow spans many orders of magnitude.
        names: weights to score.
        size: of the input, [channels, height, width].
    """
    module = model.replace({name: value.abs().double() for name, value in model.weights.items()}).build().eval()
    flow = module(torch.ones(1, *size, dtype=torch.float64)).sum()
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(flow, [parameters[name] for name in names])
    return {n: (parameters[n].detach() * g).abs() for n, g in zip(names, gradients, strict=True)}
