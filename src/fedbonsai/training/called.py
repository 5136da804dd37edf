"""A network's outputs with other tensors in place of its parameters, so that a step can go through a part of them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import functional_call

from fedbonsai.tree import Tree


def called(net: nn.Module, tensors: Tree, x: Tensor) -> Tensor:
    """Outputs of ``net`` for ``x``; gradients reach the tensors. Afterwards the network holds what it held.

    A parameter that stands under several names is replaced under all of them. A module that stands there is named once:
    torch would put the tensor back in the place of the parameter.

    Args:
        net: network.
        tensors: by the first name of a parameter; those that are not named stay.
        x: inputs.
    """
    names = {id(value): name for name, value in net.named_parameters()}
    shown: dict[str, Tensor] = {}
    for path, module in net.named_modules():
        for key, value in module._parameters.items():
            if value is not None and (name := names[id(value)]) in tensors:
                shown[f"{path}.{key}" if path else key] = tensors[name]
    return functional_call(net, shown, (x,), tie_weights=False)
