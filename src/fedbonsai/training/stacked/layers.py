"""Layers that a stack computes in another way than one client does: what draws, and what has no rule of `torch.func`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbonsai.tree import Tree


class Draws:
    """Each client's own generator, and how many of the rows that lie before the network are its samples.

    Attributes:
        generators: one a row of the stack, seeded as the client would be.
        counts: samples of each; what lies behind them is padding.
    """

    def __init__(self) -> None:
        self.generators: Sequence[torch.Generator] = ()
        self.counts: Sequence[int] = ()

    def noise(self, shape: Sequence[int], p: float) -> Tensor:
        """What dropout multiplies with [clients, samples, ...], drawn as each client alone would draw it."""
        made = torch.zeros(shape, device=self.generators[0].device)
        for row, count, generator in zip(made, self.counts, self.generators, strict=True):
            row[:count].bernoulli_(1 - p, generator=generator)
        return made.div_(1 - p) if p < 1 else made


class Noise(torch.autograd.Function):
    """Noise of dropout; under `torch.func.vmap` that of all clients at once."""

    @staticmethod
    def forward(x: Tensor, shape: Sequence[int], p: float, draws: Draws) -> Tensor:
        """Noise of one client [samples, ...]."""
        return draws.noise((1, *shape), p)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Noise has no gradient."""
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, None]:  # pyright: ignore
        """Of nothing."""
        return None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        """Noise of all clients [clients, samples, ...]."""
        _, shape, p, draws = args
        return draws.noise((info.batch_size, *shape), p), 0


WHOLE = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # drop whole channels


def adapt(module: nn.Module, draws: Draws) -> None:
    """Put a stack's way of computing in place of the layers that need it; their names and weights stay."""
    for layer in module.modules():
        if isinstance(layer, (nn.Dropout, *WHOLE)):
            layer.forward = _dropout(layer, draws)
        elif isinstance(layer, nn.GRU) and unrollable(layer):
            layer.forward = MethodType(unrolled, layer)


def _dropout(layer: nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d, draws: Draws) -> Any:
    def forward(x: Tensor) -> Tensor:
        if not layer.training or layer.p == 0:
            return x
        shape = (*x.shape[:2], *(1,) * (x.ndim - 2)) if isinstance(layer, WHOLE) else tuple(x.shape)
        return x * Noise.apply(x.detach(), shape, layer.p, draws)

    return forward


def unrollable(gru: nn.GRU) -> bool:
    """Whether `unrolled` computes the same."""
    return gru.batch_first and not gru.bidirectional and not gru.dropout


Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # inputs, weight, bias


def unrolled(
    gru: nn.GRU, x: Tensor, hx: Tensor | None = None, weights: Tree | None = None, linear: Linear = F.linear
) -> tuple[Tensor, Tensor]:
    """What `nn.GRU` computes of [samples, length, features], step by step.

    Args:
        gru: the layer.
        x: inputs.
        hx: states before the first step [layers, samples, hidden]; zeros where not given.
        weights: instead of the layer's own, by their names in it.
        linear: what multiplies with them.
    """
    ends: list[Tensor] = []
    weights = dict(gru.named_parameters()) if weights is None else weights
    for layer in range(gru.num_layers):
        w, v = weights[f"weight_ih_l{layer}"], weights[f"weight_hh_l{layer}"]
        b, c = (weights.get(f"bias_{kind}_l{layer}") for kind in ("ih", "hh"))
        h = x.new_zeros(len(x), gru.hidden_size) if hx is None else hx[layer]
        states: list[Tensor] = []
        for inward in linear(x, w, b).unbind(1):
            onward = linear(h, v, c)
            (r, z, n), (s, y, m) = inward.chunk(3, -1), onward.chunk(3, -1)
            new = torch.tanh(n + torch.sigmoid(r + s) * m)
            h = torch.lerp(new, h, torch.sigmoid(z + y))
            states.append(h)
        x = torch.stack(states, 1)
        ends.append(h)
    return x, torch.stack(ends)
