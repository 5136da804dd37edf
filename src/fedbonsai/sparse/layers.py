"""Linear and convolution layers that hold and train the kept weights alone.

Input and output have the shapes of the dense layers, but lie in memory with the batch last: a view, as channels-last is
one in torch. What comes in another order is copied into this one; layers between two sparse ones that keep the order
of their input, as elementwise ones do, cost no transposition. Everything is float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedbonsai.errors import ConfigError
from fedbonsai.sparse.geometry import Pair, evenly, geometry
from fedbonsai.sparse.pattern import Pattern
from fedbonsai.sparse.rows import product, sampled

Watch = Callable[[Tensor, Tensor], None]  # sees a layer's input and the gradient of its output, as the layer has them


class Masked(nn.Module):
    """What sparse layers share: values at the kept places of a weight.

    Attributes:
        watch: is called in every pass backward that takes the gradient of the values; see `fedbonsai.sparse.growth`.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    watch: Watch | None = None

    def __init__(self, pattern: Pattern, values: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.pattern = pattern
        self.values = nn.Parameter(values.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def dense(self) -> Tensor:
        """The dense weight, a copy, exactly zero where nothing is kept."""
        return self.pattern.dense(self.values.detach())

    def load(self, weight: Tensor, mask: Tensor) -> None:
        """Keep the places of a mask, with the values that a dense weight has there."""
        if not self.pattern.same(mask):
            self.pattern = Pattern.of(mask, self.pattern.stride)
        self.values = nn.Parameter(self.pattern.gathered(weight))

    def extra_repr(self) -> str:
        """Shape and density."""
        return f"{list(self.pattern.shape)}, density {self.pattern.density:.4f}"


class SparseLinear(Masked):
    """A linear layer, [..., inputs] to [..., outputs]."""

    @staticmethod
    def of(layer: nn.Linear, mask: Tensor) -> SparseLinear:
        """The same layer with the weights that a mask keeps."""
        pattern = Pattern.of(mask)
        return SparseLinear(pattern, pattern.gathered(layer.weight.detach()), layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        flat = x.reshape(-1, x.shape[-1])
        y = _linear(flat.t(), self.values, self.bias, self.pattern, self.watch).t()
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], -1)


class SparseConv2d(Masked):
    """A convolution of one group without dilation, [samples, inputs, h, w] to [samples, outputs, h', w']."""

    def __init__(self, pattern: Pattern, values: Tensor, bias: Tensor | None, padding: Pair) -> None:
        super().__init__(pattern, values, bias)
        self.padding = padding

    @staticmethod
    def of(layer: nn.Conv2d, mask: Tensor) -> SparseConv2d:
        """The same layer with the weights that a mask keeps.

        Raises:
            ConfigError: a convolution that has no sparse form.
        """
        _formed(layer)
        pattern = Pattern.of(mask, _pair(layer.stride))
        return SparseConv2d(pattern, pattern.gathered(layer.weight.detach()), layer.bias, _pair(layer.padding))

    def forward(self, x: Tensor) -> Tensor:
        """[samples, inputs, h, w] to [samples, outputs, h', w'], the batch last in memory."""
        y = _conv(x.permute(1, 2, 3, 0), self.values, self.bias, self.pattern, self.padding, self.watch)
        return y.permute(3, 0, 1, 2)


class SparseConv1d(SparseConv2d):
    """The same of series, [samples, inputs, length] to [samples, outputs, length']: images of one row."""

    @staticmethod
    def of(layer: nn.Conv1d, mask: Tensor) -> SparseConv1d:  # type: ignore[override]
        """The same layer with the weights that a mask keeps.

        Raises:
            ConfigError: a convolution that has no sparse form.
        """
        _formed(layer)
        stride, padding = int(layer.stride[0]), int(layer.padding[0])
        pattern = Pattern.of(mask.unsqueeze(2), (1, stride))
        return SparseConv1d(pattern, pattern.gathered(layer.weight.detach()), layer.bias, (0, padding))

    def forward(self, x: Tensor) -> Tensor:
        """[samples, inputs, length] to [samples, outputs, length'], the batch last in memory."""
        return super().forward(x.unsqueeze(2)).squeeze(2)

    def dense(self) -> Tensor:
        """The dense weight, a copy, exactly zero where nothing is kept."""
        return super().dense().squeeze(2)

    def load(self, weight: Tensor, mask: Tensor) -> None:
        """Keep the places of a mask, with the values that a dense weight has there."""
        super().load(weight.unsqueeze(2), mask.unsqueeze(2))


def sparse(layer: nn.Module, mask: Tensor) -> Masked:
    """The sparse form of a layer, with the weights that a mask keeps.

    Raises:
        ConfigError: it has none.
    """
    if isinstance(layer, nn.Linear):
        return SparseLinear.of(layer, mask)
    if isinstance(layer, nn.Conv1d):
        return SparseConv1d.of(layer, mask)
    if isinstance(layer, nn.Conv2d):
        return SparseConv2d.of(layer, mask)
    raise ConfigError(f"{layer} has no sparse form: expected a linear layer or a convolution of series or images")


def has_sparse_form(layer: nn.Module) -> bool:
    """Whether a layer is linear, or a convolution of one group without dilation that is padded by zeros."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        plain = layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
        return plain and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def _formed(layer: nn.Module) -> None:
    if not has_sparse_form(layer):
        raise ConfigError(f"{layer}: sparse convolutions have one group, no dilation and numeric padding of zeros")


def _pair(value: Any) -> Pair:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


class _Linear(torch.autograd.Function):
    """[inputs, batch] to [outputs, batch]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, watch: Watch | None
    ) -> Tensor:
        x = x.contiguous()
        outputs, inputs, batch = pattern.shape[0], pattern.shape[1], x.shape[1]
        ctx.save_for_backward(x, values)
        ctx.pattern, ctx.biased, ctx.watch = pattern, bias is not None, watch
        y = x.new_empty(outputs, batch)
        product(pattern.rows, values, evenly(inputs, batch), x, y, (1, batch, batch), bias)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        grad, size = grads[0].contiguous(), (1, x.shape[1], x.shape[1])
        dx = dv = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            turned = values.index_select(0, torch.from_numpy(pattern.order))
            product(pattern.back, turned, evenly(len(grad), x.shape[1]), grad, dx, size)
        if ctx.needs_input_grad[1]:
            dv = sampled(pattern.rows, evenly(len(x), x.shape[1]), x, grad, size)
            if ctx.watch is not None:
                ctx.watch(x.t(), grad.t())
        return dx, dv, grad.sum(1) if ctx.biased else None, None, None


class _Conv(torch.autograd.Function):
    """[inputs, h, w, batch] to [outputs, h', w', batch]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        pattern: Pattern,
        padding: Pair,
        watch: Watch | None,
    ) -> Tensor:
        x = x.contiguous()
        (outputs, inputs, *kernel), (_, height, width, batch) = pattern.shape, x.shape
        here = geometry(inputs, outputs, (kernel[0], kernel[1]), pattern.stride, padding, (height, width), batch)
        ctx.save_for_backward(x, values)
        ctx.pattern, ctx.geometry, ctx.biased, ctx.watch = pattern, here, bias is not None, watch
        y = x.new_empty(outputs, *here.size, batch)
        size = (here.size[0], here.size[1] * batch, here.step)
        product(pattern.rows, values, here.table, here.prepared(x), y, size, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        pattern, here, batch, grad = ctx.pattern, ctx.geometry, ctx.saved_tensors[0].shape[-1], grads[0].contiguous()
        dx = dv = None
        if ctx.needs_input_grad[1]:
            size = (here.size[0], here.size[1] * batch, here.step)
            dv = sampled(pattern.rows, here.table, here.prepared(x), grad, size)
            if ctx.watch is not None:
                ctx.watch(x.permute(3, 0, 1, 2), grad.permute(3, 0, 1, 2))
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            turned, framed = values.index_select(0, torch.from_numpy(pattern.order)), here.framed(grad)
            for part in here.parts:
                down, across = part.size
                whole = here.stride == (1, 1)
                to = dx if whole else x.new_empty(len(x), down, across, batch)
                size = (down, across * batch, here.span)
                product(pattern.back, turned, part.table, framed, to, size, base=part.base)
                if not whole:
                    dx[:, part.first[0] :: here.stride[0], part.first[1] :: here.stride[1]] = to
        return dx, dv, grad.flatten(1).sum(1) if ctx.biased else None, None, None, None


def _linear(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, watch: Watch | None) -> Tensor:
    apply: Any = _Linear.apply
    return apply(x, values, bias, pattern, watch)


def _conv(
    x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern, padding: Pair, watch: Watch | None
) -> Tensor:
    apply: Any = _Conv.apply
    return apply(x, values, bias, pattern, padding, watch)
