"""Networks of linear layers and gated recurrent units: clients lie one behind another among the samples.

All that has no weights then computes as in one network, and a layer that has takes the samples of each client apart. It
saves what `torch.func.vmap` costs at each call, which with small layers is more than the layers.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fedbonsai.cached_module import CachedModule
from fedbonsai.training.own_loss import Made, Make
from fedbonsai.training.stacked.layers import unrollable, unrolled
from fedbonsai.tree import Tree


class Folding:
    """How the layers of a network find the weights of all clients.

    Args:
        net: whose layers compute with stacked weights from now on.
    """

    def __init__(self, net: CachedModule) -> None:
        self._module = net.module
        names = {id(value): name for name, value in net.module.named_parameters()}
        self._layers: list[tuple[Any, dict[str, str]]] = []
        for layer in net.module.modules():
            own = dict(layer.named_parameters(recurse=False))
            if own:
                self._layers.append((layer, {name: names[id(value)] for name, value in own.items()}))
                layer.forward = MethodType(_linear if isinstance(layer, nn.Linear) else _recurrent, layer)

    def __call__(self, make: Make, weights: Tree, x: Tensor) -> Made:
        """What is made of inputs, each [clients, samples, ...], with weights [clients, ...] by name."""
        for layer, names in self._layers:
            # a module that is given an attribute looks long at what it is
            vars(layer)["stacked"] = {name: weights[whole] for name, whole in names.items()}
        return tuple([value.unflatten(0, x.shape[:2]) for value in make(self._module, x.flatten(0, 1))])


def foldable(net: CachedModule) -> bool:
    """Whether all layers that have weights are linear or recurrent ones, and none draws or looks at several samples."""
    if net.foreign or not net.names == list(net.parameters) == [name for name, _ in net.module.named_parameters()]:
        return False
    return all(_fits(layer) for layer in net.module.modules())


def _fits(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear or (type(layer) is nn.GRU and unrollable(layer)):
        return True
    return not (layer._parameters or layer._buffers or isinstance(layer, APART))


APART = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)  # even without weights


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a linear layer makes of [clients x samples, ..., inputs], with weights [clients, outputs, inputs]."""
    parts, weight = x.reshape(len(weight), -1, x.shape[-1]), weight.transpose(1, 2)
    made = torch.bmm(parts, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), parts, weight)
    return made.view(*x.shape[:-1], made.shape[-1])


class Linear(torch.autograd.Function):
    """The same of [clients, samples, inputs], whose gradients lie in memory as the weights do.

    Those of `torch.baddbmm` are transposed, and each step of an optimiser then takes four times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Outputs [clients, samples, outputs]."""
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by inputs, weights and biases, as far as they are wanted."""
        (grad,), (x, weight), (by_x, by_weight, by_bias) = grads, ctx.saved_tensors, ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if by_x else None,
            torch.bmm(grad.transpose(1, 2), x) if by_weight else None,
            grad.sum(1) if by_bias else None,
        )


def _linear(layer: Any, x: Tensor) -> Tensor:
    weight = layer.stacked["weight"]
    made: Any = Linear.apply(x.reshape(len(weight), -1, x.shape[-1]), weight, layer.stacked.get("bias"))
    return made.view(*x.shape[:-1], made.shape[-1])


def _recurrent(layer: Any, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return unrolled(layer, x, hx, layer.stacked, linear)
