"""What makes a weight worth keeping: functions from weights (and gradients) to scores of the same form.

Magnitude (Han et al. 2015); squared gradient (PruneFL's importance); SNIP: |w g| (Lee et al., ICLR 2019); SynFlow (Tanaka
et al., NeurIPS 2020); Taylor: (w g)^2 (Molchanov et al. 2019); L1 of filters and neurons (Li et al., ICLR 2017); random.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedbonsai.errors import ConfigError
from fedbonsai.model import Model, blank, cached_module, tokens
from fedbonsai.stages.pruning.masks import NORMS
from fedbonsai.tree import Tree, Weights, cast, dtype_of, generator, seed_of


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

    Normalisation layers are bypassed, as they would level the flow. In float64, since it spans many orders of magnitude;
    in the network's own types where it insists on them. A weight that the network does not use scores 0.

    Args:
        model: network.
        names: weights to score.
        size: of the input. Of tokens every one is put in.

    Raises:
        ConfigError: no flow reaches a layer that is whole, or it is not finite.
    """
    positive = {n: value.abs() if value.is_floating_point() else value for n, value in model.weights.items()}
    try:
        found = _flow(model.replace(cast(positive, torch.float64)), names, size)
    except RuntimeError:  # a network of one's own may name its types
        found = _flow(model.replace(positive), names, size)
    for name, score in found.items():
        whole = score is not None and bool(positive[name].all())
        if score is not None and (not bool(score.isfinite().all()) or (whole and not bool(score.any()))):
            raise ConfigError(
                f"synflow cannot score {name!r} of network {model.arch.name!r}: its flow is "
                f"{float(score.sum())}; layers that saturate or level their inputs stop it, choose another criterion"
            )
    return {n: torch.zeros_like(positive[n]) if score is None else score for n, score in found.items()}


def _flow(model: Model, names: list[str], size: tuple[int, ...]) -> dict[str, Tensor | None]:
    net = cached_module(model)
    net.module.eval()
    level = [layer for layer in net.module.modules() if isinstance(layer, NORMS)]
    for layer in level:
        vars(layer)["forward"] = _bypass  # instead of its own, which may take no sample alone
    try:
        flow = net.module(_ones(model, size)).sum()
        wanted = [net.parameters[name] for name in names]
        gradients = list[Any](torch.autograd.grad(flow, wanted, allow_unused=True))
    finally:
        for layer in level:
            del vars(layer)["forward"]
    used = {name: g for name, g in zip(names, gradients, strict=True) if g is not None}
    return {n: (net.parameters[n].detach() * used[n]).abs() if n in used else None for n in names}


def _ones(model: Model, size: tuple[int, ...]) -> Tensor:
    """An input of ones; or as many as it takes for every token to be in one."""
    one = blank(model.arch, size)
    if one.is_floating_point():
        return one.to(dtype_of(model.weights)) + 1
    known = tokens(cached_module(model).module)
    count = -(-known // one.numel())
    return (torch.arange(count * one.numel()) % known).view(count, *size)


def _bypass(x: Tensor) -> Tensor:
    return x
