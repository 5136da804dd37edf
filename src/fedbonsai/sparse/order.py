"""Layers of torch on activations whose batch lies last in memory.

Batch normalisation takes a channel, which is one line of memory, while it is in the cache. With samples and channels
exchanged such activations are channels-last images, which pooling has loops for. Whatever comes in another order goes
through the layer as it is. Elementwise layers need nothing of this. Dense convolutions with 1x1 kernels are products of
matrices; others are turned back and forth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedbonsai.sparse import kernels
from fedbonsai.sparse.rows import evenly_shared

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def batch_last(x: Tensor) -> bool:
    """Whether images [samples, channels, h, w] lie in memory as [channels, h, w, samples] and in no other order."""
    return x.dim() == 4 and not x.is_contiguous() and x.permute(1, 2, 3, 0).is_contiguous()


class Norm(nn.Module):
    """Batch normalisation that keeps the order of its input; statistics of a batch are taken by loops of our own."""

    def __init__(self, inner: nn.BatchNorm2d) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """[samples, channels, h, w] to the same."""
        if not batch_last(x):
            return self.inner(x)
        whole = x.permute(1, 2, 3, 0)
        if not (self.inner.training and self.inner.affine and x.dtype == torch.float32):
            return self.inner(whole.flatten(1, 2)[None])[0].view(whole.shape).permute(3, 0, 1, 2)
        apply: Any = _Norm.apply
        y, mean, variance = apply(whole.flatten(1), self.inner.weight, self.inner.bias, self.inner.eps)
        self._follow(mean, variance, x.numel() // len(mean))
        return y.view(whole.shape).permute(3, 0, 1, 2)

    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics towards those of a batch, the variance as of a sample."""
        inner = self.inner
        if inner.running_mean is None or inner.running_var is None or inner.num_batches_tracked is None:
            return
        with torch.no_grad():
            inner.num_batches_tracked.add_(1)
            part = 1 / float(inner.num_batches_tracked) if inner.momentum is None else inner.momentum
            inner.running_mean.mul_(1 - part).add_(mean, alpha=part)
            inner.running_var.mul_(1 - part).add_(variance, alpha=part * count / (count - 1))


class _Norm(torch.autograd.Function):
    """[channels, everything else] to the same, and each channel's mean and variance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, ...]:
        y, mean = torch.empty_like(x), torch.empty_like(gain)
        scale, variance = torch.empty_like(gain), torch.empty_like(gain)
        given = [each.detach().numpy() for each in (x, gain, shift)]
        made = [each.numpy() for each in (y, mean, scale, variance)]
        evenly_shared(lambda a, b: kernels.normalise(*given, eps, *made, (a, b)), *x.shape)
        ctx.save_for_backward(x, gain, mean, scale)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, mean, scale = ctx.saved_tensors
        dx, dgain, dshift = torch.empty_like(x), torch.empty_like(gain), torch.empty_like(gain)
        given = [each.detach().numpy() for each in (x, grads[0].contiguous(), gain, mean, scale)]
        made = [each.numpy() for each in (dx, dgain, dshift)]
        evenly_shared(lambda a, b: kernels.normalise_back(*given, *made, (a, b)), *x.shape)
        return dx, dgain, dshift, None


class GroupNorm(nn.Module):
    """Group normalisation that keeps the order of its input."""

    def __init__(self, inner: nn.GroupNorm) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """[samples, channels, h, w] to the same."""
        if not batch_last(x):
            return self.inner(x)
        whole = x.permute(1, 2, 3, 0)
        groups = whole.reshape(self.inner.num_groups, -1, whole.shape[-1])
        variance, mean = torch.var_mean(groups, 1, correction=0, keepdim=True)
        y = ((groups - mean) * (variance + self.inner.eps).rsqrt()).view(whole.shape)
        if self.inner.affine:
            y = y * self.inner.weight[:, None, None, None] + self.inner.bias[:, None, None, None]
        return y.permute(3, 0, 1, 2)


class Pool(nn.Module):
    """Pooling that keeps the order of its input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """[samples, channels, h, w] to [samples, channels, h', w']."""
        return self.inner(x.transpose(0, 1)).transpose(0, 1) if batch_last(x) else self.inner(x)


class Conv(nn.Module):
    """A dense convolution that keeps the order of its input."""

    def __init__(self, inner: nn.Conv2d) -> None:
        super().__init__()
        self.inner = inner
        self.pointwise = set(inner.kernel_size) == {1} and inner.groups == 1 and inner.padding in ((0, 0), "valid")

    def forward(self, x: Tensor) -> Tensor:
        """[samples, inputs, h, w] to [samples, outputs, h', w']."""
        if not batch_last(x):
            return self.inner(x)
        whole = x.permute(1, 2, 3, 0)
        if not self.pointwise:
            # as a matrix: torch turns matrices in blocks, images element by element
            return last(self.inner(whole.flatten(0, 2).t().contiguous().view(x.shape)))
        down, across = self.inner.stride
        taken = whole[:, ::down, ::across]
        y = self.inner.weight.flatten(1) @ taken.reshape(len(taken), -1)
        y = y if self.inner.bias is None else y + self.inner.bias[:, None]
        return y.view(-1, *taken.shape[1:]).permute(3, 0, 1, 2)


def last(x: Tensor) -> Tensor:
    """Images in this order, copied if they lie in another one; anything else as it is."""
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2) if x.dim() == 4 else x


def keeping(layer: nn.Module) -> nn.Module | None:
    """The layer in a form that keeps the order of its input; None where it needs none, or has none."""
    if isinstance(layer, nn.BatchNorm2d):
        return Norm(layer)
    if isinstance(layer, nn.GroupNorm):
        return GroupNorm(layer)
    if isinstance(layer, nn.Conv2d):
        return Conv(layer)
    if isinstance(layer, POOLS) and not getattr(layer, "return_indices", False):
        return Pool(layer)
    return None
